"""What nodes tell of PACS outside the region: studies listed without their images, and how these are fetched."""

from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from gateway.envelope import (
    Configuration,
    Event,
    FetchStudy,
    ForeignRetrieval,
    ForeignSource,
    ForeignSourceState,
    ForeignStudySeen,
    ProbeSource,
)
from ris_central.audit.actions import record
from ris_central.catalogue.actions.announcing import announce_changed
from ris_central.catalogue.actions.arrivals import study_of_clinic
from ris_central.catalogue.actions.studies import lock_study
from ris_central.catalogue.models import ForeignHolding, ForeignPacs, Study
from ris_central.federation import configurations
from ris_central.federation.actions import send_command
from ris_central.federation.models import Node
from ris_central.patients.actions import resolve
from standards.errors import ConflictError, PermanentError

FETCH_PRIORITY = 10


@transaction.atomic
def take_foreign_study(node: Node, event: Event) -> None:
    """A PACS lists a study, lists it otherwise, or lists it no more."""
    body = event.body
    if not isinstance(body, ForeignStudySeen):
        raise TypeError(f"foreign.study expected, {body.type} given")
    uid = body.study.study_instance_uid
    lock_study(uid)
    known = ForeignHolding.objects.filter(node=node, source=body.source, study__study_instance_uid=uid)
    if body.gone:
        for holding in known.select_related("study").filter(gone_at=None):
            holding.gone_at = event.occurred_at
            holding.save(update_fields=["gone_at"])
            announce_changed(holding.study)
        return
    _follow_identity(node, body, known.select_related("study").filter(study__instances_known=0).first())
    study = study_of_clinic(node, body, event.occurred_at)
    changed = []
    if not study.instances_known:  # no image has said more
        if study.modalities != sorted(set(body.modalities)):
            study.modalities = sorted(set(body.modalities))
            changed.append("modalities")
        if study.started_at is not None and study.started_at < study.last_instance_at:
            study.last_instance_at = study.started_at  # lists are by the latest image: an old study is no news
            changed.append("last_instance_at")
    if changed:
        study.save(update_fields=changed)
    # Under another patient it is another study; the one before is listed no more.
    known.exclude(study=study).filter(gone_at=None).update(gone_at=event.occurred_at)
    ForeignHolding.objects.update_or_create(
        study=study,
        node=node,
        source=body.source,
        defaults={
            "series_count": body.series_count,
            "instance_count": body.instance_count,
            "may_fetch": body.may_fetch,
            "seen_at": event.occurred_at,
            "gone_at": None,
        },
    )
    announce_changed(study)


def _follow_identity(node: Node, body: ForeignStudySeen, holding: ForeignHolding | None) -> None:
    """A study that is listed alone has the patient that its PACS says, also when that is corrected there."""
    if holding is None or holding.study.service_request_id:
        return
    study = holding.study
    issuer = body.patient.issuer_of_patient_id or node.site.issuer_of_patient_id
    if (study.dicom_patient_id, study.issuer_of_patient_id) == (body.patient.patient_id, issuer):
        return
    patient = resolve(body.patient, issuer, node.site)
    if Study.objects.filter(study_instance_uid=study.study_instance_uid, patient=patient).exclude(pk=study.pk).exists():
        return
    study.patient, study.dicom_patient_id, study.issuer_of_patient_id = patient, body.patient.patient_id, issuer
    study.save(update_fields=["patient", "dicom_patient_id", "issuer_of_patient_id"])


@transaction.atomic
def take_foreign_retrieval(node: Node, event: Event) -> None:
    """How far a node is with fetching a study."""
    body = event.body
    if not isinstance(body, ForeignRetrieval):
        raise TypeError(f"foreign.retrieval expected, {body.type} given")
    holdings = ForeignHolding.objects.select_related("study").filter(
        node=node, source=body.source, study__study_instance_uid=body.study_instance_uid
    )
    for holding in holdings:
        holding.fetching = body.status
        holding.expected, holding.held = body.expected, body.held
        holding.missing_count, holding.missing = body.missing_count, body.missing
        holding.unlisted_count = body.unlisted_count
        holding.attempts, holding.next_attempt_at = body.attempts, body.next_attempt_at
        holding.last_error = body.last_error[:255]
        holding.save()
        announce_changed(holding.study)


@transaction.atomic
def take_foreign_source(node: Node, event: Event) -> None:
    """How a PACS answers."""
    body = event.body
    if not isinstance(body, ForeignSourceState):
        raise TypeError(f"foreign.source expected, {body.type} given")
    ForeignPacs.objects.update_or_create(
        node=node,
        source=body.source,
        defaults={
            "polled_at": body.polled_at,
            "failing_since": body.failing_since,
            "last_error": body.last_error[:255],
            "studies": body.studies,
            "quirks": body.quirks,
            "retired": body.retired,
            **({"probe": body.probe.model_dump(mode="json")} if body.probe is not None else {}),
        },
    )


def sources_of(node: Node) -> dict[str, ForeignSource]:
    """The PACS outside the region that the node's configuration has, by name."""
    body = configurations.body_of(node)
    return {source.name: source for source in Configuration.model_validate(body).foreign}


@transaction.atomic
def ask_probe(node: Node, source: str, request: HttpRequest) -> None:
    """Have the node try a PACS out, as it is configured now.

    Raises: PermanentError "unknown-source", "node-revoked".
    """
    if source not in sources_of(node):
        raise PermanentError("unknown-source", f"{node.name} knows no PACS {source}.")
    if node.revoked_at is not None:
        raise PermanentError("node-revoked", f"{node.name} is no longer part of the region.")
    now = timezone.now()
    ForeignPacs.objects.update_or_create(node=node, source=source, defaults={"probe_asked_at": now, "retired": False})
    send_command(node, ProbeSource(source=source, asked_at=now))
    record("foreign.probe-asked", request=request, entity=node, detail={"source": source})


@transaction.atomic
def ask_for(holding: ForeignHolding, request: HttpRequest) -> None:
    """Have the node fetch the images of a study; asking again tries again at once.

    Raises: ConflictError("study-gone"), PermanentError "not-to-be-fetched", "node-revoked", "source-not-in-use".
    """
    holding = ForeignHolding.objects.select_for_update(of=("self",)).select_related("study", "node").get(pk=holding.pk)
    if holding.gone_at is not None:
        raise ConflictError("study-gone", f"{holding.source} no longer lists this study.")
    if not holding.may_fetch:
        raise PermanentError("not-to-be-fetched", f"A rule says that images stay in {holding.source}.")
    if holding.node.revoked_at is not None:
        raise PermanentError("node-revoked", f"{holding.node.name} is no longer part of the region.")
    if (source := sources_of(holding.node).get(holding.source)) is not None and not source.enabled:
        raise PermanentError("source-not-in-use", f"{holding.source} is not in use now.")
    send_command(
        holding.node,
        FetchStudy(study_instance_uid=holding.study.study_instance_uid, source=holding.source, priority=FETCH_PRIORITY),
    )
    holding.asked_at, holding.fetching, holding.last_error = timezone.now(), ForeignHolding.Fetching.WAITING, ""
    holding.attempts, holding.next_attempt_at = 0, None
    holding.save()
    record(
        "study.fetch-asked",
        request=request,
        entity=holding.study,
        patient_key=holding.study.patient_id,
        detail={"source": holding.source, "node": holding.node.name},
    )
    announce_changed(holding.study)
