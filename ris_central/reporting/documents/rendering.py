"""The rows of a signed report's documents: a PDF and an SR for the signature and for each addendum."""

import hashlib
from datetime import datetime
from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import translation
from django.utils.translation import gettext as _

from ris_central.accounts.models import User
from ris_central.catalogue.models import Study
from ris_central.catalogue.queries import instance_references
from ris_central.reporting.documents.dicom import (
    SignedText,
    Subject,
    basic_text_sr,
    derived_uid,
    encapsulated_pdf,
)
from ris_central.reporting.documents.pdf import Page, render_pdf
from ris_central.reporting.models import Report, ReportDocument
from standards.person_names import display


def subject_of(study: Study) -> Subject:
    """Whose and which study, as DICOM writes it."""
    patient = study.patient
    return Subject(
        patient_name=patient.name,
        patient_id=study.dicom_patient_id,
        issuer_of_patient_id=study.issuer_of_patient_id,
        patient_birth_date=f"{patient.birth_date:%Y%m%d}" if patient.birth_date else "",
        patient_sex=patient.sex,
        study_instance_uid=study.study_instance_uid,
        study_date=study.study_date,
        study_time=study.study_time,
        study_id=study.study_id,
        study_description=study.study_description,
        accession_number=study.accession_number,
        referring_physician_name=study.referring_physician_name,
        institution_name=study.site.name,
    )


def facts_of(study: Study) -> list[tuple[str, str]]:
    """The block at the top of a PDF, in the active language."""
    zone = ZoneInfo(study.site.time_zone)
    patient = study.patient
    sex = {"F": _("female"), "M": _("male")}.get(patient.sex, "")
    return [
        (_("Patient"), display(patient.name)),
        (_("Born"), f"{patient.birth_date:%d.%m.%Y}" if patient.birth_date else ""),
        (_("Sex"), sex),
        (_("Patient ID"), study.dicom_patient_id),
        (_("Study"), study.study_description),
        (_("Modality"), ", ".join(study.modalities)),
        (_("Date of study"), _moment(study.started_at, zone) if study.started_at else ""),
        (_("Accession number"), study.accession_number),
        (_("Referring physician"), display(study.referring_physician_name)),
    ]


def _moment(moment: datetime, zone: ZoneInfo) -> str:
    return f"{moment.astimezone(zone):%d.%m.%Y %H:%M}"


def _person(user: User) -> str:
    return ", ".join(part for part in (user.get_full_name() or user.username, user.position) if part)


def render_documents(report: Report) -> list[ReportDocument]:
    """Make the PDF and the SR of the report as it is now signed, in the caller's transaction."""
    addenda = list(report.addenda.select_related("author").order_by("pk"))
    number = len(addenda) + 1
    with translation.override(settings.LANGUAGE_CODE):
        pdf = _pdf(report)
        sr = _sr(report, number)
    rows = []
    for kind, content in ((ReportDocument.Kind.PDF, pdf), (ReportDocument.Kind.SR, sr)):
        rows.append(
            ReportDocument(
                report=report,
                kind=kind,
                number=number,
                sop_instance_uid=_uid(report, kind, number),
                series_instance_uid=_series_uid(report, kind),
                content=content,
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    return ReportDocument.objects.bulk_create(rows)


def _uid(report: Report, kind: str, number: int) -> str:
    return derived_uid("report", report.study.study_instance_uid, report.content_sha256, kind, number)


def _series_uid(report: Report, kind: str) -> str:
    return derived_uid("report-series", report.study.study_instance_uid, report.content_sha256, kind)


def _pdf(report: Report) -> bytes:
    study = report.study
    zone = ZoneInfo(study.site.time_zone)
    texts = [(_("Findings"), report.findings)] if report.findings.strip() else []
    texts.append((_("Conclusion"), report.conclusion))
    signatures = [
        _("Signed: %(who)s, %(when)s") % {"who": _person_signed(report), "when": _signed_moment(report, zone)}
    ]
    for addendum in report.addenda.select_related("author").order_by("pk"):
        head = _("Addendum of %(when)s, %(who)s") % {
            "when": _moment(addendum.signed_at, zone),
            "who": _person(addendum.author),
        }
        texts.append((head, addendum.text))
    page = Page(
        title=_("Radiology report"),
        institution=study.site.name + (f", {study.site.address}" if study.site.address else ""),
        facts=facts_of(study),
        texts=texts,
        signatures=signatures,
        footer=f"{settings.CONFIG.region_name} · SHA-256 {report.content_sha256[:32]}…",
        author=_person_signed(report),
        page_label=_("page {} of {}"),
    )
    return render_pdf(page)


def _person_signed(report: Report) -> str:
    return _person(report.signed_by) if report.signed_by else ""


def _signed_moment(report: Report, zone: ZoneInfo) -> str:
    return _moment(report.signed_at, zone) if report.signed_at else ""


def _sr(report: Report, number: int) -> bytes:
    study = report.study
    zone = ZoneInfo(study.site.time_zone)
    addenda = list(report.addenda.select_related("author").order_by("pk"))
    last = addenda[-1] if addenda else None
    author = last.author if last else report.signed_by
    signed_at = last.signed_at if last else report.signed_at
    if author is None or signed_at is None:
        raise ValueError("only a signed report has documents")
    earlier = report.documents.filter(kind=ReportDocument.Kind.SR, number__lt=number).order_by("number")
    text = SignedText(
        title=_("Radiology report"),
        findings=report.findings,
        conclusion=report.conclusion,
        addenda=tuple(one.text for one in addenda),
        author=_dicom_name(author),
        signed_at=signed_at,
        evidence=instance_references(study),
        predecessors=tuple((one.series_instance_uid, one.sop_instance_uid) for one in earlier),
        language=settings.LANGUAGE_CODE[:2],
    )
    return basic_text_sr(
        text,
        subject_of(study),
        zone=zone,
        series_uid=_series_uid(report, ReportDocument.Kind.SR),
        uid=_uid(report, ReportDocument.Kind.SR, number),
        number=number,
    )


def _dicom_name(user: User) -> str:
    given, _space, middle = user.first_name.partition(" ")
    return "^".join((user.last_name or user.username, given, middle)).rstrip("^")


def as_dicom(document: ReportDocument) -> bytes:
    """The Part 10 file of a document; asked again it gives the same bytes, so storing it twice is storing it once."""
    content = bytes(document.content)
    if document.kind == ReportDocument.Kind.SR:
        return content
    study = document.report.study
    with translation.override(settings.LANGUAGE_CODE):
        title = _("Radiology report")
    return encapsulated_pdf(
        content,
        subject_of(study),
        title=title,
        at=document.created_at,
        zone=ZoneInfo(study.site.time_zone),
        series_uid=document.series_instance_uid,
        uid=document.sop_instance_uid,
        number=document.number,
    )
