"""Every change of a report, each in one transaction: save, sign, add, cancel. No saved text is ever lost."""

import hashlib
import json

from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.catalogue.actions.announcing import announce_changed
from ris_central.catalogue.models import Study
from ris_central.reporting.documents.rendering import render_documents
from ris_central.reporting.listeners import announce_signed
from ris_central.reporting.models import Addendum, Report, ReportRevision
from ris_central.reporting.permissions import may_write
from ris_central.reporting.transitions import SIGNED, move
from standards.errors import ConflictError, ForbiddenError, PermanentError

AnyRequest = HttpRequest | Request | None


class VersionConflict(ConflictError):
    """Somebody else saved meanwhile. ``current`` is the saved report; the refused text stays with who typed it."""

    def __init__(self, current: Report) -> None:
        super().__init__("version-conflict", "Somebody else saved this report meanwhile: both texts are shown.")
        self.current = current


@transaction.atomic
def save_draft(
    study: Study, user: User, *, version: int, findings: str, conclusion: str, request: AnyRequest = None
) -> Report:
    """Save the text that was typed over ``version`` (0: there was no report yet). Every save is kept as a revision.

    Raises: VersionConflict, PermanentError("may-not-report", "report-signed").
    """
    _check_writer(study, user)
    report = _locked(study)
    if report is None:
        report = _created(study, user, version)
    if report.status in SIGNED:
        raise ConflictError("report-signed", "The report is signed: corrections are addenda.")
    if (report.findings, report.conclusion) == (findings, conclusion) and report.version:
        return report
    if report.version != version:
        raise VersionConflict(report)
    is_new = report.version == 0
    report.findings, report.conclusion = findings, conclusion
    report.version += 1
    report.save()
    ReportRevision.objects.create(
        report=report, version=report.version, author=user, findings=findings, conclusion=conclusion
    )
    if is_new:
        _record("report.begun", report, user, request)
        announce_changed(study)
    return report


def _created(study: Study, user: User, version: int) -> Report:
    try:
        with transaction.atomic():
            report = Report.objects.create(study=study, author=user)
    except IntegrityError:
        current = _locked(study)
        if current is None:
            raise
        return current
    if version:
        raise VersionConflict(report)
    return report


@transaction.atomic
def sign(
    study: Study, user: User, *, version: int, findings: str, conclusion: str, request: AnyRequest = None
) -> Report:
    """Save the text and sign it: it never changes again, and its PDF and SR exist with it.

    Raises: VersionConflict, PermanentError("may-not-report", "report-signed", "report-empty", "state-conflict").
    """
    if not conclusion.strip():
        raise PermanentError("report-empty", "A report needs a conclusion before it is signed.")
    report = save_draft(study, user, version=version, findings=findings, conclusion=conclusion, request=request)
    move(report, Report.Status.FINAL)
    report.signed_at, report.signed_by = timezone.now(), user
    report.content_sha256 = content_sha256(report)
    report.save()
    render_documents(report)
    _record("report.signed", report, user, request, sha256=report.content_sha256, version=report.version)
    announce_changed(study)
    announce_signed(report)
    return report


@transaction.atomic
def add_addendum(report: Report, user: User, text: str, *, request: AnyRequest = None) -> Addendum:
    """Sign an addition or correction to a signed report, which itself stays as it is.

    Raises: PermanentError("may-not-report", "addendum-empty", "state-conflict").
    """
    report = (
        Report.objects.select_for_update(of=("self",)).select_related("study__patient", "study__site").get(pk=report.pk)
    )
    _check_writer(report.study, user)
    if not text.strip():
        raise PermanentError("addendum-empty", "An addendum needs a text.")
    move(report, Report.Status.APPENDED)
    report.save(update_fields=["status", "updated_at"])
    addendum = Addendum.objects.create(report=report, author=user, text=text.strip())
    render_documents(report)
    _record("report.appended", report, user, request, addendum=addendum.pk)
    announce_changed(report.study)
    announce_signed(report)
    return addendum


@transaction.atomic
def cancel(report: Report, user: User, *, request: AnyRequest = None) -> Report:
    """Give up a draft; its revisions stay.

    Raises: PermanentError("may-not-report", "state-conflict").
    """
    report = Report.objects.select_for_update(of=("self",)).select_related("study").get(pk=report.pk)
    _check_writer(report.study, user)
    move(report, Report.Status.CANCELLED)
    report.save(update_fields=["status", "updated_at"])
    _record("report.cancelled", report, user, request)
    announce_changed(report.study)
    return report


def content_sha256(report: Report) -> str:
    """The hash of what was signed: study, texts, who and when."""
    signed = {
        "study_instance_uid": report.study.study_instance_uid,
        "findings": report.findings,
        "conclusion": report.conclusion,
        "signed_by": report.signed_by.username if report.signed_by else "",
        "signed_at": report.signed_at.isoformat() if report.signed_at else "",
    }
    return hashlib.sha256(json.dumps(signed, ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def _check_writer(study: Study, user: User) -> None:
    if not may_write(user, study):
        raise ForbiddenError("may-not-report", "Only radiologists of the study's site write its report.")


def _locked(study: Study) -> Report | None:
    found = Report.objects.select_for_update(of=("self",)).select_related("study__patient", "study__site", "author")
    return found.filter(study=study).exclude(status=Report.Status.CANCELLED).first()


def _record(action: str, report: Report, user: User, request: AnyRequest, **detail: object) -> None:
    detail = {"study": report.study.study_instance_uid, **detail}
    record(action, request=request, actor=user, entity=report, patient_key=report.study.patient_id, detail=dict(detail))
