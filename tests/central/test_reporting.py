"""Reports: no typed text is lost, two people get one winner, what is signed never changes and has its documents."""

import io
from collections.abc import Callable

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from pydicom import dcmread

from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.catalogue.actions.grants import grant
from ris_central.catalogue.models import Study
from ris_central.reporting import actions
from ris_central.reporting.documents.rendering import as_dicom
from ris_central.reporting.models import Addendum, Report, ReportDocument
from ris_central.reporting.tasks import store_document
from ris_central.reporting.transitions import REPORT, move
from standards.errors import PermanentError
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
FINDINGS = "Лёгочные поля без очаговых изменений.\nРазмер узла ≤ 5 мм."
CONCLUSION = "Патологии не выявлено."


@pytest.fixture
def study() -> Study:
    return region.Acquisition().arrive(region.node("node-a", region.site("a")))


@pytest.fixture
def doctor(study: Study) -> User:
    return region.person("doctor", Role.RADIOLOGIST, study.site)


def signed(study: Study, doctor: User) -> Report:
    return actions.sign(study, doctor, version=0, findings=FINDINGS, conclusion=CONCLUSION)


def test_every_save_is_kept_as_a_revision(study: Study, doctor: User) -> None:
    actions.save_draft(study, doctor, version=0, findings="Раз", conclusion="")
    report = actions.save_draft(study, doctor, version=1, findings="Раз, два", conclusion="")
    assert report.version == 2
    assert list(report.revisions.order_by("version").values_list("findings", flat=True)) == ["Раз", "Раз, два"]


def test_the_same_text_again_makes_no_new_version(study: Study, doctor: User) -> None:
    actions.save_draft(study, doctor, version=0, findings="Раз", conclusion="")
    assert actions.save_draft(study, doctor, version=0, findings="Раз", conclusion="").version == 1


def test_a_save_over_an_older_version_is_refused_and_shows_both_texts(study: Study, browser_of: Browser) -> None:
    first, second = (browser_of(region.person(name, Role.RADIOLOGIST, study.site)) for name in ("one", "two"))
    path = f"/studies/{study.pk}/report/save"
    assert first.post(path, {"version": 0, "findings": "Первый", "conclusion": ""}).status_code == 200
    refused = second.post(path, {"version": 0, "findings": "Второй", "conclusion": ""})
    assert (refused.status_code, refused["Content-Type"]) == (409, "application/problem+json")
    assert refused.json()["code"] == "version-conflict"
    assert (refused.json()["current"]["findings"], refused.json()["current"]["version"]) == ("Первый", 1)
    assert second.post(path, {"version": 1, "findings": "Первый\n\nВторой", "conclusion": ""}).status_code == 200
    assert Report.objects.get().revisions.count() == 2


def test_a_report_without_a_conclusion_is_not_signed(study: Study, doctor: User) -> None:
    with pytest.raises(PermanentError, match="report-empty"):
        actions.sign(study, doctor, version=0, findings=FINDINGS, conclusion="  ")
    assert not Report.objects.exists()


def test_a_signed_report_refuses_every_further_save(study: Study, doctor: User) -> None:
    report = signed(study, doctor)
    with pytest.raises(PermanentError, match="report-signed"):
        actions.save_draft(study, doctor, version=report.version, findings="Иначе", conclusion="")
    with pytest.raises(PermanentError, match="report-signed"):
        actions.sign(study, doctor, version=report.version, findings="Иначе", conclusion="Иначе")


@pytest.mark.parametrize("change", [{"findings": "x"}, {"conclusion": "x"}, {"status": "partial"}, {"signed_at": None}])
def test_the_database_itself_refuses_to_change_a_signed_report(
    study: Study, doctor: User, change: dict[str, object]
) -> None:
    report = signed(study, doctor)
    with pytest.raises(IntegrityError, match="never changes"), transaction.atomic():
        Report.objects.filter(pk=report.pk).update(**change)
    with pytest.raises(IntegrityError, match="never deleted"), transaction.atomic():
        Report.objects.filter(pk=report.pk)._raw_delete("default")


def test_an_addendum_is_added_and_never_changes(study: Study, doctor: User) -> None:
    report = signed(study, doctor)
    addendum = actions.add_addendum(report, doctor, "Уточнение: слева.")
    report.refresh_from_db()
    assert (report.status, report.findings) == ("appended", FINDINGS)
    with pytest.raises(IntegrityError, match="never changes"), transaction.atomic():
        Addendum.objects.filter(pk=addendum.pk).update(text="x")
    assert sorted(report.documents.values_list("kind", "number")) == [("pdf", 1), ("pdf", 2), ("sr", 1), ("sr", 2)]


def test_only_radiologists_of_the_site_write(study: Study) -> None:
    stranger = region.person("stranger", Role.RADIOLOGIST, region.site("b"))
    clerk = region.person("clerk", Role.CLERK, study.site)
    for user in (stranger, clerk):
        with pytest.raises(PermanentError, match="may-not-report"):
            actions.save_draft(study, user, version=0, findings="x", conclusion="")


def test_pages_and_rest_refuse_a_save_with_the_same_status(study: Study, doctor: User, browser_of: Browser) -> None:
    report = signed(study, doctor)
    browser, stranger = browser_of(doctor), browser_of(region.person("chief", Role.RADIOLOGIST, region.site("b")))
    typed = {"version": report.version, "findings": "Иначе", "conclusion": "x"}
    rest = {**typed, "study": study.pk}
    for answer in (
        browser.post(f"/studies/{study.pk}/report/save", typed),
        browser.post("/api/v1/reports", rest, "application/json"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "report-signed")
    for answer in (
        stranger.post(f"/studies/{study.pk}/report/save", typed),
        stranger.post("/api/v1/reports", rest, "application/json"),
    ):
        assert answer.status_code == 404
    grant(study, [User.objects.get(username="chief")])
    for answer in (
        stranger.post(f"/studies/{study.pk}/report/save", typed),
        stranger.post("/api/v1/reports", rest, "application/json"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "may-not-report")


def test_the_sr_says_what_was_signed_in_cyrillic_and_what_it_is_about(study: Study, doctor: User) -> None:
    report = signed(study, doctor)
    dataset = dcmread(io.BytesIO(as_dicom(report.documents.get(kind="sr"))))
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert str(dataset.PatientName) == region.NAME
    assert dataset.StudyInstanceUID == study.study_instance_uid
    assert (dataset.CompletionFlag, dataset.VerificationFlag) == ("COMPLETE", "VERIFIED")
    sections = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in dataset.ContentSequence}
    assert sections["Findings"].ContentSequence[0].TextValue == FINDINGS.replace("\n", "\r\n")
    assert sections["Conclusions"].ContentSequence[0].TextValue == CONCLUSION
    (evidence,) = dataset.CurrentRequestedProcedureEvidenceSequence
    assert len(evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 3


def test_the_encapsulated_pdf_is_the_same_each_time_and_holds_the_pdf(study: Study, doctor: User) -> None:
    document = signed(study, doctor).documents.get(kind="pdf")
    assert as_dicom(document) == as_dicom(ReportDocument.objects.get(pk=document.pk))
    dataset = dcmread(io.BytesIO(as_dicom(document)))
    held = bytes(dataset.EncapsulatedDocument)[: dataset.EncapsulatedDocumentLength]
    assert held == bytes(document.content)
    assert held.startswith(b"%PDF-")
    assert b"PTSans" in held


def test_a_document_waits_while_there_is_no_archive(study: Study, doctor: User) -> None:
    document = signed(study, doctor).documents.get(kind="pdf")
    assert not store_document(document.pk)
    document.refresh_from_db()
    assert (document.stored_at, document.attempts) == (None, 1)
    assert document.last_error.startswith("no-archive")
    assert not store_document(document.pk), "it is not due again at once"


def test_the_pdf_is_read_by_who_may_see_the_study_and_each_reading_is_recorded(
    study: Study, doctor: User, browser_of: Browser
) -> None:
    report = signed(study, doctor)
    answer = browser_of(doctor).get(f"/reports/{report.pk}/report.pdf")
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/pdf")
    assert AuditEvent.objects.filter(action="report.read", actor=doctor, patient_key=study.patient_id).count() == 1
    stranger = region.person("stranger", Role.RADIOLOGIST, region.site("b"))
    assert browser_of(stranger).get(f"/reports/{report.pk}/report.pdf").status_code == 404
    assert browser_of(None).get(f"/reports/{report.pk}/report.pdf").status_code == 302


def test_the_study_page_shows_an_editor_then_the_signed_text(study: Study, doctor: User, browser_of: Browser) -> None:
    browser = browser_of(doctor)
    assert "report-form" in browser.get(f"/studies/{study.pk}/").content.decode()
    assert (
        browser.post(
            f"/studies/{study.pk}/report/sign", {"version": 0, "findings": FINDINGS, "conclusion": CONCLUSION}
        ).status_code
        == 200
    )
    page = browser.get(f"/studies/{study.pk}/").content.decode()
    assert CONCLUSION in page
    assert 'id="report-form"' not in page


@pytest.mark.parametrize("start", list(REPORT))
def test_reports_move_only_by_the_table(start: str) -> None:
    for to in Report.Status.values:
        report = Report(status=start)
        if to in REPORT[start]:
            move(report, to)
            assert report.status == to
        else:
            with pytest.raises(PermanentError, match="state-conflict"):
                move(report, to)
            assert report.status == start
