"""Studies that are fetched from foreign PACS: real ones, and quirks that a test chooses."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway import registry
from gateway.envelope import ForeignSource
from gateway.foreign.models import ForeignStudy, Retrieval
from gateway.foreign.pacs import pacs_of
from gateway.foreign.retrieving import fetch
from standards.uids import new_uid
from tests.factories.foreign_peers import Orthanc, dcmqrscp, orthanc, quirky, send_to
from tests.node.conftest import AE_TITLE, NodeProcess
from tests.node.foreign_looking import NOW, TODAY, at_once, image, job_for, polled, quirky_source

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as one:
        yield one


WAYS = pytest.mark.parametrize(
    ("kind", "retrieve"), [("dicom", "c-get"), ("dicom", "wado-rs"), ("dicomweb", "wado-rs")]
)


@WAYS
def test_a_new_study_of_orthanc_is_seen_grows_is_fetched_whole_and_its_loss_is_told(
    archive: Orthanc, tmp_path: Path, kind: str, retrieve: str
) -> None:
    study, series = new_uid(), new_uid()
    source = archive.source(name=f"{kind}-{retrieve}", kind=kind, retrieve=retrieve)
    first, second = image(study, 1, series=series), image(study, 2)
    archive.take(first, tmp_path)
    look = polled(source)
    assert look.is_whole
    row = ForeignStudy.objects.get(source=source.name, study_instance_uid=study)
    assert (row.instance_count, row.study_date, row.untold) == (1, TODAY, True)
    assert row.described["patient"]["patient_name"] == "Выдумкин^Пример"
    assert row.described["modalities"] == ["CT"]

    job = job_for(source, study)
    pacs = pacs_of(source, at_once)
    assert fetch(job, source, pacs) == "done"
    assert registry.store().received_of_study(study) == {first.SOPInstanceUID}

    archive.take(second, tmp_path)
    polled(source, sweep=False)
    row.refresh_from_db()
    job.refresh_from_db()
    assert (row.instance_count, job.status) == (2, "waiting"), "a study that grew is fetched again"
    assert fetch(job, source, pacs) == "done"
    job.refresh_from_db()
    assert (job.expected, job.held, job.missing_count, job.unlisted_count) == (2, 2, 0, 0)
    pacs.close()

    archive.forget(study)
    polled(source)
    row.refresh_from_db()
    assert row.gone_at is None, "once may be a hiccup"
    polled(source)
    row.refresh_from_db()
    assert row.gone_at == NOW


def test_dcmqrscp_is_polled_and_gives_its_images_by_c_get(tmp_path: Path) -> None:
    study = new_uid()
    with dcmqrscp(tmp_path / "pacs", {}) as port:
        send_to(port, "OLDPACS", [image(study, 1), image(study, 2)], tmp_path / "files")
        source = ForeignSource(name="old", ae_title="OLDPACS", host="127.0.0.1", port=port, retrieve="c-get")
        look = polled(source)
        assert set(look.studies) == {study}
        pacs = pacs_of(source, at_once)
        job = job_for(source, study)
        assert fetch(job, source, pacs) == "done"
        pacs.close()
        job.refresh_from_db()
        assert (job.expected, job.held) == (2, 2)


def test_what_a_rule_fetches_gives_way_between_series_to_what_a_person_waits_for(
    archive: Orthanc, tmp_path: Path
) -> None:
    study = new_uid()
    source = archive.source(name="busy", retrieve="c-get")
    for number in range(3):
        archive.take(image(study, number), tmp_path)  # a series each
    job = job_for(source, study)
    wanted = job_for(source, new_uid())
    Retrieval.objects.filter(pk=wanted.pk).update(by_person=True)
    pacs = pacs_of(source, at_once)
    assert fetch(job, source, pacs) == "waiting"
    job.refresh_from_db()
    assert (job.held, job.missing_count, job.attempts, job.last_error) == (1, 2, 0, "")
    Retrieval.objects.filter(pk=wanted.pk).delete()
    assert fetch(job, source, pacs) == "done"
    pacs.close()


FETCH = """
from django.utils import timezone
from gateway.envelope import ForeignSource
from gateway.foreign.models import Retrieval
from gateway.foreign.pacs import pacs_of
from gateway.foreign.queries import due_jobs
from gateway.foreign.retrieving import fetch
source = ForeignSource(name="old", ae_title="OLDPACS", host="127.0.0.1", port={port})
job = Retrieval.objects.create(source="old", study_instance_uid={study!r}, next_attempt_at=timezone.now())
pacs = pacs_of(source, lambda: None)
print("status", fetch(job, source, pacs))
pacs.close()
job.refresh_from_db()
print("counts", job.expected, job.held, job.last_error)
"""


def test_dcmqrscp_moves_a_study_to_the_node_and_says_when_it_does_not_know_it(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node, study = make_node(), new_uid()
    with dcmqrscp(tmp_path / "pacs", {AE_TITLE: node.dicom_port}) as port:
        send_to(port, "OLDPACS", [image(study, 1), image(study, 2)], tmp_path / "files")
        said = node.python(FETCH.format(port=port, study=study))
    assert "status done" in said
    assert "counts 2 2" in said
    assert len(node.held(study)) == 2
    assert node.sql("SELECT DISTINCT source_ae_title FROM study_index_instance") == [("OLDPACS",)]
    other = new_uid()
    with dcmqrscp(tmp_path / "stranger", {"ELSE": 9}) as port:
        send_to(port, "OLDPACS", [image(other, 3)], tmp_path / "more")
        said = node.python(FETCH.format(port=port, study=other))
    assert "status failed" in said
    assert "move-destination-unknown" in said


def test_pages_of_qido_are_asked_for_until_there_are_no_more(archive: Orthanc, tmp_path: Path) -> None:
    day = "20191201"
    for _ in range(23):
        archive.take(image(new_uid(), date=day), tmp_path)
    source = archive.source(name="paged", kind="dicomweb", retrieve="wado-rs", answers_at_most=10, window_days=0)
    look = polled(source, now=datetime(2019, 12, 1, 12, 0, tzinfo=UTC))
    assert len(look.studies) == 23
    assert look.is_whole


def test_a_pacs_that_lists_no_images_is_believed_when_it_says_that_all_were_sent() -> None:
    study = new_uid()
    images = [image(study, number) for number in range(2)]
    with quirky(lambda query: 0xA900, images) as (port, asked):
        source = quirky_source(port, retrieve="c-get")
        job = job_for(source, study)
        pacs = pacs_of(source, at_once)
        assert fetch(job, source, pacs) == "done"
        pacs.close()
    job.refresh_from_db()
    assert (job.expected, job.held) == (None, 2)
    assert asked[-1].StudyInstanceUID == study


def test_a_fetch_waits_for_a_pacs_that_is_away_however_long_and_does_not_fail() -> None:
    source = quirky_source(9)
    job = job_for(source, new_uid())
    Retrieval.objects.filter(pk=job.pk).update(attempts=100)
    assert fetch(job, source, pacs_of(source, at_once)) == "waiting"
    job.refresh_from_db()
    assert job.last_error.startswith("connection-failed")
