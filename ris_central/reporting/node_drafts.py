"""Drafts that were written at a node while the centre was away: taken over, or kept beside what is here."""

from collections.abc import Sequence

from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone

from gateway import envelope
from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.catalogue.models import Study
from ris_central.federation.models import Node
from ris_central.federation.prepared import execute
from ris_central.orders.differences import note
from ris_central.orders.models import ReturnDifference
from ris_central.organizations.queries import people_of
from ris_central.reporting.actions import save_draft
from ris_central.reporting.models import NodeDraft, Report
from ris_central.reporting.permissions import may_write
from ris_central.reporting.queries import live_report
from ris_central.reporting.transitions import SIGNED
from standards.errors import ConflictError, ForbiddenError, PermanentError

State = NodeDraft.State
Side = ReturnDifference.Side
CHOICES = ("both", "node", "centre")
_WAITING = "SELECT id FROM reporting_nodedraft WHERE study_instance_uid = ANY(%(uids)s::text[]) AND state = %(state)s"


@transaction.atomic
def take(node: Node, event: envelope.Event) -> None:
    """Listener: the text of a draft at a node. The newest counts; an older one that comes again changes nothing."""
    body = event.body
    if not isinstance(body, envelope.ReportDraft):
        raise TypeError(f"report.draft expected, {body.type} given")
    values = {
        "version": body.version,
        "findings": body.findings,
        "conclusion": body.conclusion,
        "saved_at": body.saved_at,
    }
    draft, is_new = NodeDraft.objects.select_for_update(of=("self",)).get_or_create(
        node=node,
        study_instance_uid=body.study_instance_uid,
        dicom_patient_id=body.patient_id,
        author_name=body.author[:150],
        defaults=values,
    )
    if not is_new:
        if body.saved_at <= draft.saved_at:
            return
        for name, value in values.items():
            setattr(draft, name, value)
    _adopt(draft)


def adopt_waiting(studies: Sequence[Study]) -> None:
    """Listener: studies changed; drafts that came before their images find them now."""
    asked = {"uids": [study.study_instance_uid for study in studies], "state": State.WAITING.value}
    waiting = [pk for (pk,) in execute(_WAITING, asked)]
    if not waiting:
        return  # images come all the time, and drafts before them hardly ever
    for draft in NodeDraft.objects.filter(pk__in=waiting).select_related("node__site"):
        _adopt(draft)


def _adopt(draft: NodeDraft) -> None:
    study = _study_of(draft)
    if study is None:
        draft.state = State.WAITING
        draft.save()
        return
    author = people_of(draft.node.site).filter(username=draft.author_name).first()
    draft.study, draft.author = study, author
    if author is None or not may_write(author, study):
        draft.state = State.FOREIGN
        draft.save()
        return
    report = live_report(study)
    version = report.version if report else 0
    untouched = report is None or (report.status not in SIGNED and version == draft.report_version)
    if not untouched and report is not None and _same(report, draft):
        untouched = report.status not in SIGNED
    if untouched:
        draft.state = State.TAKEN
        draft.save()  # before the report announces the study, which looks for drafts that wait
        saved = save_draft(study, author, version=version, findings=draft.findings, conclusion=draft.conclusion)
        NodeDraft.objects.filter(pk=draft.pk).update(report_version=saved.version)
        _record("report.draft-taken", draft, study, author)
        return
    if report is not None and _same(report, draft):
        draft.state = State.SETTLED
        draft.save()
        return
    draft.state = State.BESIDE
    if draft.difference is None:
        draft.difference = note(
            draft.node,
            "draft-at-both-ends",
            order=study.service_request,
            patient=study.patient,
            node_value=draft.author_name,
            centre_value=str(report.author) if report else "",
            study=study.pk,
        )
    else:
        ReturnDifference.objects.filter(pk=draft.difference.pk).update(state=ReturnDifference.State.OPEN)
    draft.save()
    _record("report.draft-beside", draft, study, author)


def _same(report: Report, draft: NodeDraft) -> bool:
    return (report.findings, report.conclusion) == (draft.findings, draft.conclusion)


def _study_of(draft: NodeDraft) -> Study | None:
    studies = Study.objects.select_related("patient", "site", "service_request").filter(
        study_instance_uid=draft.study_instance_uid, site=draft.node.site
    )
    named = studies.filter(dicom_patient_id=draft.dicom_patient_id).first() if draft.dicom_patient_id else None
    return named or studies.first()


@transaction.atomic
def settle(draft: NodeDraft, user: User, choice: str, *, version: int, request: HttpRequest | None = None) -> None:
    """A radiologist of the site looked at both texts: join them, take the node's, or keep the centre's.

    ``version`` is the report's as it was shown. All texts stay: the node's here, the report's as revisions.

    Raises: VersionConflict, ForbiddenError("may-not-report"), ConflictError("state-conflict", "report-signed"),
        PermanentError("choice-unknown").
    """
    draft = NodeDraft.objects.select_for_update(of=("self",)).get(pk=draft.pk)
    study = draft.study
    if study is None or draft.state not in (State.BESIDE, State.FOREIGN):
        raise ConflictError("state-conflict", "It is dealt with already.")
    if not may_write(user, study):
        raise ForbiddenError("may-not-report", "Only radiologists of the study's site write its report.")
    if choice not in CHOICES:
        raise PermanentError("choice-unknown", choice)
    if choice != "centre":
        report = live_report(study)
        findings, conclusion = draft.findings, draft.conclusion
        if choice == "both" and report is not None:
            findings, conclusion = _joined(report.findings, findings), _joined(report.conclusion, conclusion)
        save_draft(study, user, version=version, findings=findings, conclusion=conclusion, request=request)
    draft.state = State.SETTLED
    draft.save()
    if draft.difference is not None:
        ReturnDifference.objects.filter(pk=draft.difference.pk).update(
            state=ReturnDifference.State.BY_PERSON,
            kept={"both": Side.BOTH, "node": Side.NODE, "centre": Side.CENTRE}[choice],
            decided_at=timezone.now(),
            decided_by=user,
        )
    _record("report.draft-settled", draft, study, user, choice=choice, request=request)


def _joined(here: str, there: str) -> str:
    return here if here.strip() == there.strip() else "\n\n".join(text for text in (here, there) if text.strip())


def _record(
    action: str, draft: NodeDraft, study: Study, actor: User, request: HttpRequest | None = None, **detail: object
) -> None:
    values = {"study": study.study_instance_uid, "node": draft.node.name, "version": draft.version, **detail}
    record(action, request=request, actor=actor, entity=draft, patient_key=study.patient_id, detail=values)
