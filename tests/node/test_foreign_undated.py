"""Studies without a Study Date at foreign PACS: no window of dates shows them, yet they are found, within a bound."""

from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from gateway.foreign import actions, polling
from gateway.foreign.models import ForeignStudy
from gateway.foreign.pacing import Pace
from gateway.foreign.pacs import pacs_of
from standards.uids import new_uid
from tests.factories.foreign_peers import Judge, dcmqrscp, orthanc, quirky, send_to
from tests.node.conftest import AE_TITLE
from tests.node.foreign_looking import NOW, image, listed, matching, polled, quirky_source

pytestmark = pytest.mark.django_db(transaction=True)


def undated(modality: str = "") -> Dataset:
    return listed(new_uid(), date="", time="", ModalitiesInStudy=modality)


def judged(studies: list[Dataset], *, cap: int = 1_000_000, refuses_all: bool = False) -> Judge:
    """A PACS that has these; it never matches an empty date to a range, and answers no more than ``cap``."""

    def judge(query: Dataset) -> list[Dataset] | int:
        modality = str(query.get("ModalitiesInStudy", "") or "")
        fitting = [one for one in studies if not modality or one.get("ModalitiesInStudy") == modality]
        if query.get("StudyDate"):
            return matching(query, [one for one in fitting if one.StudyDate])[:cap]
        return 0xA900 if refuses_all and not modality else fitting[:cap]

    return judge


def rows() -> dict[str, bool]:
    """The undated studies that were written down, and whether they are there still."""
    return {row.study_instance_uid: row.gone_at is None for row in ForeignStudy.objects.filter(study_date="")}


@pytest.mark.parametrize("kind", ["dicom", "dicomweb"])
def test_a_study_without_a_date_is_found_at_orthanc_by_a_sweep_and_its_loss_is_told(tmp_path: Path, kind: str) -> None:
    empty, absent = image(new_uid(), date=""), image(new_uid())
    del absent.StudyDate
    uids = {str(empty.StudyInstanceUID), str(absent.StudyInstanceUID)}
    with orthanc(tmp_path / "pacs") as archive:
        source = archive.source(kind=kind, retrieve="wado-rs")
        for one in (empty, absent, image(new_uid()), image(new_uid(), date="19990101")):
            archive.take(one, tmp_path)
        look = polled(source, sweep=False)
        assert rows() == {}, "between two sweeps nothing wide is asked"
        look = polled(source)
        assert look.is_whole
        assert rows() == dict.fromkeys(uids, True)
        assert polling.UNDATED_UNSEEN not in look.quirks
        assert ForeignStudy.objects.count() == 3, "old studies that have a date are not listed by the way"
        archive.forget(str(empty.StudyInstanceUID))
        polled(source)
        polled(source)
    assert rows() == {str(empty.StudyInstanceUID): False, str(absent.StudyInstanceUID): True}


def test_a_study_without_a_date_is_found_at_dcmqrscp(tmp_path: Path) -> None:
    study = image(new_uid(), date="")
    with dcmqrscp(tmp_path, {AE_TITLE: 104}) as port:
        send_to(port, "OLDPACS", [study, image(new_uid())], tmp_path / "files")
        polled(quirky_source(port, ae_title="OLDPACS", name="old"))
    assert rows() == {str(study.StudyInstanceUID): True}


def test_where_all_that_a_pacs_has_is_more_than_allowed_the_question_is_broken_off_and_told_of() -> None:
    studies = [listed(new_uid(), date="20100101") for _ in range(300)] + [undated()]
    with quirky(judged(studies)) as (port, asked):
        source = quirky_source(port, undated_at_most=70)
        look = polled(source)
        assert look.is_whole, "what has a date does not depend on it"
        assert polling.UNDATED_UNSEEN in look.quirks
        wide = [query for query in asked if not query.get("StudyDate")]
        assert len(wide) == 1, "once the answers allowed are used up nothing more is asked"
        actions.record_poll(source, now=NOW, due=NOW, swept=True, quirks=look.quirks)
        before = len(asked)
        assert polling.UNDATED_UNSEEN in polled(source, sweep=False).quirks, "it is told of until the next sweep"
        assert all(query.get("StudyDate") for query in asked[before:])


@pytest.mark.parametrize("refuses_all", [False, True])
def test_a_pacs_that_caps_or_refuses_so_wide_a_question_is_asked_by_modality(refuses_all: bool) -> None:
    wanted = undated("MR")
    studies = [undated("CT") for _ in range(60)] + [wanted]
    with quirky(judged(studies, cap=50, refuses_all=refuses_all)) as (port, asked):
        look = polled(quirky_source(port, answers_at_most=50))
    assert wanted.StudyInstanceUID in rows()
    assert polling.UNDATED_UNSEEN in look.quirks, "of the CT studies some may be unseen"
    assert len(asked) < 20


def test_looking_for_studies_without_a_date_can_be_forbidden() -> None:
    with quirky(judged([undated()])) as (port, asked):
        look = polled(quirky_source(port, undated_at_most=0))
    assert (rows(), look.quirks) == ({}, set())
    assert len(asked) == 1


def test_a_wide_question_that_is_not_answered_in_time_costs_the_dated_studies_nothing() -> None:
    today = listed(new_uid())

    def judge(query: Dataset) -> list[Dataset] | int:
        if not query.get("StudyDate"):
            raise RuntimeError("the PACS breaks down")  # pynetdicom answers C311 and goes on
        return matching(query, [today])

    with quirky(judge) as (port, _):
        look = polled(quirky_source(port, timeout_seconds=60))
    assert set(look.studies) == {today.StudyInstanceUID}
    assert polling.UNDATED_UNSEEN in look.quirks
    assert ForeignStudy.objects.get().missed == 0


def test_the_wide_questions_are_within_the_allowed_pace_too() -> None:
    waited: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        clock[0] += seconds

    with quirky(judged([undated()], refuses_all=True)) as (port, asked):
        source = quirky_source(port)
        pacs = pacs_of(source, Pace(5, clock=lambda: clock[0], sleep=sleep))
        try:
            polling.poll(source, pacs, now=NOW, sweep=True)
        finally:
            pacs.close()
    assert len(asked) > 10
    assert len(waited) >= len(asked) // 5 - 1
