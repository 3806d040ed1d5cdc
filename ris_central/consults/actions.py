"""Every change of a consult, each in one transaction; grants come and go with it."""

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

from django.db import IntegrityError, transaction
from django.db.backends.postgresql.psycopg_any import DateTimeTZRange
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from ris_central.accounts.models import Role, User
from ris_central.audit.actions import record
from ris_central.catalogue.actions import sending
from ris_central.catalogue.actions.announcing import announce_changed, tell_pages
from ris_central.catalogue.actions.grants import grant, revoke
from ris_central.catalogue.models import Study
from ris_central.consults.models import Consult
from ris_central.consults.permissions import may_answer, may_ask
from ris_central.consults.transitions import OPEN, move
from ris_central.federation.prepared import execute
from ris_central.organizations.models import Site
from ris_central.organizations.queries import people_of
from standards.errors import ConflictError, ForbiddenError, PermanentError

AnyRequest = HttpRequest | Request | None
DESK_GROUP = "consults"
_WAITING = """
SELECT id FROM consults_consult WHERE study_id = ANY(%(studies)s::bigint[]) AND status = ANY(%(open)s::text[])
"""


class OpinionConflict(ConflictError):
    """Somebody else saved the opinion meanwhile."""

    def __init__(self, current: Consult) -> None:
        super().__init__("version-conflict", "Somebody else saved this opinion meanwhile.")
        self.current = current


@transaction.atomic
def ask(
    study: Study,
    user: User,
    *,
    reference_site: Site,
    question: str,
    is_urgent: bool = False,
    request: AnyRequest = None,
) -> Consult:
    """Put a question to a reference centre: its experts may see this study from now on, and its images go first.

    Raises: PermanentError("may-not-ask", "not-a-reference-centre", "question-missing", "already-asked").
    """
    if not may_ask(user, study):
        raise ForbiddenError("may-not-ask", "Only radiologists of the study's site ask about it.")
    if reference_site.kind != Site.Kind.CONSULTANT:
        raise PermanentError("not-a-reference-centre", f"{reference_site} answers no consults.")
    if not question.strip():
        raise PermanentError("question-missing", "A consult needs a question.")
    # The study is locked, so that the last image cannot arrive between this look at the counts and the insert.
    study = Study.objects.select_for_update(of=("self",)).select_related("site").get(pk=study.pk)
    consult = Consult(
        study=study,
        requesting_site=study.site,
        reference_site=reference_site,
        requester=user,
        question=question.strip(),
        is_urgent=is_urgent,
        images_ready_at=timezone.now() if _images_ready(study) else None,
    )
    try:
        with transaction.atomic():
            consult.save()
    except IntegrityError as error:
        if "one_open_consult" not in str(error):
            raise
        raise ConflictError(
            "already-asked", f"{reference_site} was asked about this study and has not answered."
        ) from error
    grant(study, _experts(reference_site))
    sending.ask(study, sending.nodes_of(study), sending.CONSULT)
    _record("consult.requested", consult, user, request, site=reference_site.code, urgent=is_urgent)
    _announce(consult)
    return consult


@transaction.atomic
def take_slot(
    consult: Consult, user: User, *, starts_at: datetime | None = None, minutes: int = 30, request: AnyRequest = None
) -> Consult:
    """Take the consult for a time of one's own; without a time, now.

    Raises: PermanentError("may-not-answer", "state-conflict", "slot-taken", "slot-invalid").
    """
    consult = _locked(consult)
    _check_expert(consult, user)
    if consult.expert_id is not None and consult.expert_id != user.pk:
        raise ConflictError("slot-taken", f"{consult.expert} has taken this consult.")
    if not 5 <= minutes <= 8 * 60:
        raise PermanentError("slot-invalid", "A slot lasts from five minutes to eight hours.")
    starts_at = starts_at or timezone.now()
    move(consult, Consult.Status.ACCEPTED)
    consult.expert = user
    consult.slot = DateTimeTZRange(starts_at, starts_at + timedelta(minutes=minutes), "[)")
    try:
        with transaction.atomic():
            consult.save()
    except IntegrityError as error:
        if "expert_takes_one_consult_at_a_time" not in str(error):
            raise
        raise ConflictError("slot-taken", "You have another consult at that time: choose another slot.") from error
    _record("consult.accepted", consult, user, request, starts_at=starts_at.isoformat(), minutes=minutes)
    _announce(consult)
    return consult


@transaction.atomic
def give_back(consult: Consult, user: User, *, request: AnyRequest = None) -> Consult:
    """Return a taken consult to the queue before work has begun.

    Raises: PermanentError("not-yours", "state-conflict").
    """
    consult = _locked(consult)
    _check_own(consult, user)
    move(consult, Consult.Status.REQUESTED)
    consult.expert, consult.slot = None, None
    consult.save()
    _record("consult.returned", consult, user, request)
    _announce(consult)
    return consult


@transaction.atomic
def save_opinion(consult: Consult, user: User, *, version: int, opinion: str, request: AnyRequest = None) -> Consult:
    """Autosave of the opinion by the expert who took the slot.

    Raises: OpinionConflict, PermanentError("not-yours", "state-conflict").
    """
    consult = _locked(consult)
    _check_own(consult, user)
    if consult.opinion == opinion and consult.version:
        return consult
    if consult.version != version:
        raise OpinionConflict(consult)
    if consult.status == Consult.Status.ACCEPTED:
        move(consult, Consult.Status.IN_PROGRESS)
        _record("consult.begun", consult, user, request)
        _announce(consult)
    elif consult.status != Consult.Status.IN_PROGRESS:
        raise ConflictError("state-conflict", f"The consult is {consult.status}.")
    consult.opinion, consult.version = opinion, consult.version + 1
    consult.save()
    return consult


@transaction.atomic
def conclude(consult: Consult, user: User, *, version: int, opinion: str, request: AnyRequest = None) -> Consult:
    """Sign the opinion: it never changes again, the clinic sees it, and the study is closed to the experts.

    Raises: OpinionConflict, PermanentError("not-yours", "state-conflict", "opinion-missing").
    """
    if not opinion.strip():
        raise PermanentError("opinion-missing", "A consult needs an opinion before it is signed.")
    consult = save_opinion(consult, user, version=version, opinion=opinion, request=request)
    move(consult, Consult.Status.COMPLETED)
    consult.signed_at = timezone.now()
    consult.content_sha256 = content_sha256(consult)
    consult.save()
    _close(consult)
    _record("consult.completed", consult, user, request, sha256=consult.content_sha256)
    _announce(consult)
    announce_changed(consult.study)
    return consult


@transaction.atomic
def reject(consult: Consult, user: User, *, reason: str, request: AnyRequest = None) -> Consult:
    """Decline a consult, with a reason that the clinic reads.

    Raises: PermanentError("may-not-answer", "not-yours", "state-conflict", "reason-missing").
    """
    consult = _locked(consult)
    _check_expert(consult, user)
    if consult.expert_id is not None:
        _check_own(consult, user)
    return _end(consult, user, Consult.Status.REJECTED, reason, request)


@transaction.atomic
def cancel(consult: Consult, user: User, *, reason: str, request: AnyRequest = None) -> Consult:
    """Withdraw a question that is not answered yet.

    Raises: PermanentError("may-not-ask", "state-conflict", "reason-missing").
    """
    consult = _locked(consult)
    if not may_ask(user, consult.study):
        raise ForbiddenError("may-not-ask", "Only radiologists of the site that asked withdraw a consult.")
    return _end(consult, user, Consult.Status.CANCELLED, reason, request)


def _end(consult: Consult, user: User, status: str, reason: str, request: AnyRequest) -> Consult:
    if not reason.strip():
        raise PermanentError("reason-missing", "Say why, so that the other side knows.")
    move(consult, status)
    consult.reason, consult.slot = reason.strip(), None
    consult.save()
    _close(consult)
    _record(f"consult.{status}", consult, user, request, reason=consult.reason[:500])
    _announce(consult)
    announce_changed(consult.study)
    return consult


def images_changed(studies: Sequence[Study]) -> None:
    """Called in the transaction that changed studies: say when all images of a waiting consult are at the archive."""
    changed = {study.pk: study for study in studies}
    asked = {"studies": list(changed), "open": [str(status) for status in OPEN]}
    waiting = [pk for (pk,) in execute(_WAITING, asked)]
    if not waiting:
        return  # images come all the time, and seldom while a consult waits for them
    for consult in Consult.objects.filter(pk__in=waiting):
        if consult.images_ready_at is None and _images_ready(changed[consult.study_id]):
            consult.images_ready_at = timezone.now()
            consult.save(update_fields=["images_ready_at"])
        _announce(consult)


def content_sha256(consult: Consult) -> str:
    """The hash of what was signed: study, question, opinion, who and when."""
    signed = {
        "study_instance_uid": consult.study.study_instance_uid,
        "question": consult.question,
        "opinion": consult.opinion,
        "signed_by": consult.expert.username if consult.expert else "",
        "signed_at": consult.signed_at.isoformat() if consult.signed_at else "",
    }
    return hashlib.sha256(json.dumps(signed, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _images_ready(study: Study) -> bool:
    return study.instances_known > 0 and study.instances_safe >= study.instances_known


def _experts(site: Site) -> list[User]:
    return list(people_of(site).filter(role=Role.EXPERT))


def _close(consult: Consult) -> None:
    """Close the study to the centre's experts, but for those whom another open consult still lets in."""
    site = consult.reference_site
    others = Consult.objects.filter(study=consult.study, status__in=list(OPEN)).exclude(pk=consult.pk)
    kept = {expert.pk for other in others.select_related("reference_site") for expert in _experts(other.reference_site)}
    members = User.objects.filter(memberships__site=site)
    revoke(consult.study, [user for user in members if user.pk not in kept])


def _locked(consult: Consult) -> Consult:
    found = Consult.objects.select_for_update(of=("self",)).select_related(
        "study__patient", "study__site", "requesting_site", "reference_site", "expert", "requester"
    )
    return found.get(pk=consult.pk)


def _check_expert(consult: Consult, user: User) -> None:
    if not may_answer(user, consult):
        raise ForbiddenError("may-not-answer", "Only experts of the centre that was asked answer.")


def _check_own(consult: Consult, user: User) -> None:
    _check_expert(consult, user)
    if consult.expert_id != user.pk:
        raise ForbiddenError("not-yours", "Another expert has taken this consult.")


def _announce(consult: Consult) -> None:
    transaction.on_commit(partial(tell_pages, DESK_GROUP, {"type": "consult.changed", "consult": consult.pk}))


def _record(action: str, consult: Consult, user: User, request: AnyRequest, **detail: object) -> None:
    detail = {"study": consult.study.study_instance_uid, **detail}
    record(action, request=request, actor=user, entity=consult, patient_key=consult.study.patient_id, detail=detail)
