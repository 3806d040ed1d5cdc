"""Which studies a person may see, and the lists made of them."""

from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib.auth.models import AnonymousUser
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum
from django.utils import timezone

from ris_central.accounts.models import Role, User
from ris_central.accounts.permissions import Capability, can
from ris_central.catalogue import listeners
from ris_central.catalogue.models import (
    Manifest,
    Series,
    SeriesHolder,
    SeriesInstance,
    Study,
    StudyUserObjectPermission,
)
from ris_central.federation.models import Node
from ris_central.organizations.models import Membership
from ris_central.patients.models import CareLink
from standards.person_names import fold, latin_key

GRANT = "consult_study"


def memberships_of(user: User) -> QuerySet[Membership, int]:
    """Keys of the sites that the user belongs to, as a subquery."""
    return Membership.objects.filter(user=user).values_list("site_id", flat=True)


def granted_to(user: User) -> QuerySet[StudyUserObjectPermission, int]:
    """Keys of the studies opened to the user by a consult or a share, as a subquery."""
    return StudyUserObjectPermission.objects.filter(user=user, permission__codename=GRANT).values_list(
        "content_object_id", flat=True
    )


def patients_granted_to(user: User) -> QuerySet[Any, int]:
    """Keys of the patients whose study is opened to the user by a consult or a share, as a subquery."""
    return Study.objects.filter(pk__in=granted_to(user)).values_list("patient_id", flat=True)


def visible_to(user: User | AnonymousUser) -> QuerySet[Study]:
    """The studies whose images and reports this person may see, in one query.

    Membership of the site, or a grant, or (radiologists) a care link of theirs or of their site's for the patient; the
    administrator sees all; who may not see studies at all sees none, whatever the site.
    """
    if not isinstance(user, User) or not can(user, Capability.SEE_STUDIES):
        return Study.objects.none()
    if user.role == Role.ADMINISTRATOR:
        return Study.objects.all()
    seen = Q(site__in=memberships_of(user)) | Q(pk__in=granted_to(user))
    if user.role == Role.RADIOLOGIST:
        links = CareLink.objects.filter(patient=OuterRef("patient"), expires_at__gt=timezone.now()).filter(
            Q(user=user) | Q(user=None, site__in=memberships_of(user))
        )
        seen |= Q(Exists(links))
    return Study.objects.filter(seen)


def may_hold(user: User, study: Study) -> bool:
    """Whether this person may keep a study from leaving: who reports at its site, and the administrator."""
    if can(user, Capability.ADMINISTER):
        return True
    return can(user, Capability.REPORT) and memberships_of(user).filter(site=study.site_id).exists()


def sees_only_by_grant(user: User, study: Study) -> bool:
    """Whether nothing but a consult opens this study to the person: then the patient's other studies stay closed."""
    if user.role == Role.ADMINISTRATOR or Membership.objects.filter(user=user, site=study.site_id).exists():
        return False
    return not with_care(user, study)


def with_care(user: User, study: Study) -> bool:
    """Whether the person treats the patient of the study."""
    if user.role != Role.RADIOLOGIST:
        return False
    return (
        CareLink.objects.filter(patient=study.patient_id, expires_at__gt=timezone.now())
        .filter(Q(user=user) | Q(user=None, site__in=memberships_of(user)))
        .exists()
    )


def priors(user: User, study: Study) -> QuerySet[Study]:
    """The patient's other studies that this person may see, newest first."""
    return of_patient(user, study.patient_id).exclude(pk=study.pk)


def of_patient(user: User, patient_key: int) -> QuerySet[Study]:
    """The patient's studies that this person may see, newest first."""
    return (
        visible_to(user)
        .filter(patient=patient_key)
        .select_related("patient", "site", "service_request")
        .annotate(**listeners.annotations())
        .order_by("-started_at", "-pk")
    )


def worklist(user: User, chosen: dict[str, str], zone: ZoneInfo) -> QuerySet[Study]:
    """Rows of the worklist, newest first: ``chosen`` has ``text``, ``modality``, ``status``, ``since``, ``until``."""
    studies = (
        visible_to(user)
        .select_related("patient", "site", "service_request")
        .annotate(**listeners.annotations())
        .order_by("-last_instance_at", "-pk")
    )
    if text := chosen.get("text", "").strip():
        studies = studies.filter(_text(text))
    if modality := chosen.get("modality"):
        studies = studies.filter(modalities__contains=[modality])
    if since := _day(chosen.get("since", "")):
        studies = studies.filter(started_at__gte=datetime.combine(since, datetime.min.time(), zone))
    if until := _day(chosen.get("until", "")):
        end = datetime.combine(until + timedelta(days=1), datetime.min.time(), zone)
        studies = studies.filter(started_at__lt=end)
    status = chosen.get("status")
    if status == "arriving":
        studies = studies.filter(complete_at=None, instances_known__gt=0)
    elif status == "complete":
        studies = studies.filter(complete_at__isnull=False)
    for extra in listeners.worklist_filters():
        if extra.key == status:
            studies = studies.filter(extra.condition)
    return studies


def _text(text: str) -> Q:
    """Every word must be in the patient's name (any spelling), or the whole is the start of an id or number."""
    named = Q()
    for word in fold(text).split():
        part = Q(patient__name_fold__contains=word)
        if latin := latin_key(word):
            part |= Q(patient__name_latin__contains=latin)
        named &= part
    return (
        (named if named else Q(pk=None))
        | Q(dicom_patient_id__startswith=text)
        | Q(accession_number__startswith=text)
        | Q(study_instance_uid=text)
        | Q(study_description__icontains=text)
    )


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def holders(study: Study) -> list[dict[str, Any]]:
    """Which nodes hold how many instances of the study now, the archive first, then who holds most."""
    rows = (
        SeriesHolder.objects.filter(series__study=study, count__gt=0)
        .values("node_id")
        .annotate(held=Sum("count"))
        .order_by("node_id")
    )
    counts = {row["node_id"]: row["held"] for row in rows}
    nodes = Node.objects.select_related("site").filter(pk__in=counts)
    found = [
        {"node": node, "held": counts[node.pk], "has_all": counts[node.pk] >= study.instances_known} for node in nodes
    ]
    found.sort(key=lambda entry: (entry["node"].kind != Node.Kind.ARCHIVE, -entry["held"]))
    return found


def nearest_nodes(study_key: int, series_instance_uid: str = "") -> list[Node]:
    """Nodes to ask for images, best first: the archive if it has all that is asked for, then who has most of it."""
    series = Series.objects.filter(study=study_key)
    if series_instance_uid:
        series = series.filter(series_instance_uid=series_instance_uid)
    wanted = series.aggregate(total=Sum("instance_count"))["total"] or 0
    held = (
        SeriesHolder.objects.filter(series__in=series, count__gt=0, node__revoked_at=None)
        .values("node_id")
        .annotate(held=Sum("count"))
        .order_by()
    )
    counts = {row["node_id"]: row["held"] for row in held}
    nodes = list(Node.objects.select_related("site").filter(pk__in=counts).exclude(url=""))

    def rank(node: Node) -> tuple[bool, int, bool]:
        complete_archive = node.kind == Node.Kind.ARCHIVE and counts[node.pk] >= wanted
        return (not complete_archive, -counts[node.pk], node.kind != Node.Kind.ARCHIVE)

    return sorted(nodes, key=rank)


def instance_references(study: Study) -> dict[str, list[tuple[str, str]]]:
    """Series UID → (SOP class, SOP instance) of all known instances of the study, from rows or manifests."""
    references: dict[str, list[tuple[str, str]]] = {}
    rows = SeriesInstance.objects.filter(series__study=study).order_by("series_id", "instance_number", "pk")
    for series, sop_class, uid in rows.values_list("series__series_instance_uid", "sop_class_uid", "sop_instance_uid"):
        references.setdefault(series, []).append((sop_class, uid))
    settled = Manifest.objects.filter(series__study=study).select_related("series").order_by("series_id", "-version")
    for manifest in settled.distinct("series_id"):
        series = manifest.series.series_instance_uid
        if series not in references:
            references[series] = [(entry["sop_class_uid"], entry["sop_instance_uid"]) for entry in manifest.entries]
    return references


def archive_node() -> Node | None:
    """The archive of the region, once it has joined."""
    archives = Node.objects.filter(kind=Node.Kind.ARCHIVE, revoked_at=None, joined_at__isnull=False).exclude(url="")
    return archives.order_by("pk").first()
