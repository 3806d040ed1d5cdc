"""Foreign PACS that are polled: real ones, and quirks of real ones that a test chooses."""

from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client
from pydantic import ValidationError
from pydicom.dataset import Dataset

from gateway.actions import apply_configuration, record_join
from gateway.envelope import Configuration, Directory, ImportRule, JoinAnswer
from gateway.foreign import actions, polling
from gateway.foreign.models import ForeignStudy, Retrieval
from gateway.foreign.pacing import Pace, is_within
from gateway.foreign.queries import due_jobs
from standards.errors import RegisError
from standards.uids import new_uid
from tests.factories.foreign_peers import quirky
from tests.node.foreign_looking import NOW, TODAY, job_for, listed, matching, polled, quirky_source

pytestmark = pytest.mark.django_db(transaction=True)


def test_answers_that_a_pacs_caps_without_a_word_are_all_found() -> None:
    studies = [listed(new_uid(), time=f"12{second // 60:02}{second % 60:02}") for second in range(230)]
    with quirky(lambda query: matching(query, studies)[:50]) as (port, asked):
        look = polled(quirky_source(port, answers_at_most=50))
    assert len(look.studies) == 230
    assert look.is_whole
    assert polling.CAPPED in look.quirks
    assert len(asked) < 60


def test_more_studies_within_a_second_than_are_answered_are_told_of() -> None:
    studies = [listed(new_uid()) for _ in range(60)]
    with quirky(lambda query: matching(query, studies)[:50]) as (port, _):
        look = polled(quirky_source(port, answers_at_most=50))
    assert not look.is_whole
    assert len(look.studies) == 50


def test_a_pacs_that_refuses_ranges_is_asked_day_by_day_and_from_then_on_at_once() -> None:
    studies = [listed(new_uid(), date=day) for day in (TODAY, "20261118")]

    def judge(query: Dataset) -> list[Dataset] | int:
        return 0xA900 if "-" in str(query.get("StudyDate", "")) else matching(query, studies)

    with quirky(judge) as (port, asked):
        look = polled(quirky_source(port))
        assert len(look.studies) == 2
        assert polling.NO_RANGES in look.quirks
        actions.record_poll(quirky_source(port), now=NOW, due=NOW, swept=True, quirks=look.quirks)
        before = len(asked)
        polled(quirky_source(port))
        assert not any("-" in str(query.get("StudyDate", "")) for query in asked[before:])


def test_a_pacs_without_counts_that_ignores_dates_answers_twice_and_names_nothing_is_borne() -> None:
    uid, old = new_uid(), new_uid()
    nameless = listed("1.2.3")
    del nameless.StudyInstanceUID

    def judge(query: Dataset) -> list[Dataset] | int:
        if query.QueryRetrieveLevel != "STUDY":
            return 0xA900
        return [listed(uid), listed(uid), listed(old, date="20200101"), nameless]

    with quirky(judge) as (port, _):
        look = polled(quirky_source(port))
    assert set(look.studies) == {uid}
    assert look.quirks == {
        polling.NO_COUNTS,
        polling.NO_SERIES,
        polling.IGNORES_DATES,
        polling.TWICE,
        polling.NAMELESS,
    }
    assert ForeignStudy.objects.get(study_instance_uid=uid).instance_count is None


def test_names_in_the_character_set_that_is_assumed_of_a_pacs_are_read() -> None:
    silent = listed(new_uid())
    silent.add_new("PatientName", "PN", "Ёжиков^Пётр".encode("iso8859_5"))
    with quirky(lambda query: [silent]) as (port, _):
        look = polled(quirky_source(port, character_set="ISO_IR 144"))
    (found,) = look.studies.values()
    assert found.patient.patient_name == "Ёжиков^Пётр"


def test_names_of_a_pacs_that_lies_about_its_character_set_are_read_all_the_same() -> None:
    lying = listed(new_uid(), SpecificCharacterSet="ISO_IR 100")
    lying.add_new("PatientName", "PN", "Кузнецова^Марина^Сергеевна".encode("cp1251"))
    lying.add_new("StudyDescription", "LO", "Грудная клетка".encode("cp1251"))
    with quirky(lambda query: [lying]) as (port, _):
        look = polled(quirky_source(port))
    (found,) = look.studies.values()
    assert found.patient.patient_name == "Кузнецова^Марина^Сергеевна"
    assert found.study.study_description == "Грудная клетка"
    assert "wrong-character-set" in look.quirks


def test_an_old_study_that_arrives_late_is_seen_by_its_day_of_arrival() -> None:
    late = listed(new_uid(), date="20190101")

    def judge(query: Dataset) -> list[Dataset]:
        arrived = str(query.get("StudyArrivalDate", ""))
        return [late] if arrived and arrived.partition("-")[0] <= TODAY else []

    with quirky(judge) as (port, _):
        look = polled(quirky_source(port, changes_by="StudyArrivalDate"), sweep=False)
        assert set(look.studies) == {late.StudyInstanceUID}
        polled(quirky_source(port))
        polled(quirky_source(port))
    assert ForeignStudy.objects.get().gone_at is None, "it is not missed among the studies of other days"


def test_what_is_due_depends_on_the_hour_but_a_person_never_waits_for_it() -> None:
    asked, ruled, at_night = (job_for(quirky_source(9), new_uid()) for _ in range(3))
    Retrieval.objects.filter(pk=asked.pk).update(by_person=True, priority=10)
    Retrieval.objects.filter(pk=at_night.pk).update(at_night=True)

    def due(*, by_rule: bool, night: bool) -> list[int]:
        return [job.pk for job in due_jobs("quirky", busy=set(), now=NOW, by_rule=by_rule, at_night=night)]

    assert due(by_rule=False, night=False) == [asked.pk]
    assert due(by_rule=True, night=False) == [asked.pk, ruled.pk]
    assert due(by_rule=True, night=True) == [asked.pk, ruled.pk, at_night.pk]


def test_a_source_that_is_taken_out_of_the_configuration_and_comes_back_goes_on_where_it_was() -> None:
    study = listed(new_uid())
    with quirky(lambda query: [study]) as (port, _):
        source = quirky_source(port)
        polled(source)
        actions.record_poll(source, now=NOW, due=NOW, swept=True, quirks=set())
        job = job_for(source, study.StudyInstanceUID)
        actions.retire([], now=NOW)
        row = ForeignStudy.objects.get()
        job.refresh_from_db()
        assert (row.gone_at, job.status, job.last_error) == (NOW, "failed", "source-removed")
        polled(source)
        actions.record_poll(source, now=NOW, due=NOW, swept=True, quirks=set())
    row.refresh_from_db()
    job.refresh_from_db()
    assert (row.gone_at, job.status, job.last_error) == (None, "waiting", "")


def test_rules_fetch_new_studies_now_at_night_or_not_at_all() -> None:
    now, night, never = listed(new_uid()), listed(new_uid()), listed(new_uid())
    now.ModalitiesInStudy, night.ModalitiesInStudy, never.ModalitiesInStudy = "CT", "MG", "US"
    rules = [
        ImportRule(modalities=["CT"], when="now"),
        ImportRule(modalities=["MG"], when="night"),
        ImportRule(when="catalogue"),
    ]
    with quirky(lambda query: [now, night, never]) as (port, _):
        polled(quirky_source(port, rules=[rule.model_dump() for rule in rules]))
    jobs = {job.study_instance_uid: job.at_night for job in Retrieval.objects.all()}
    assert jobs == {now.StudyInstanceUID: False, night.StudyInstanceUID: True}
    assert not ForeignStudy.objects.get(study_instance_uid=never.StudyInstanceUID).may_fetch


def test_a_pacs_that_is_away_is_an_error_with_a_name() -> None:
    with pytest.raises(RegisError) as caught:
        polled(quirky_source(9))
    assert caught.value.code == "connection-failed"


def test_no_more_is_asked_in_any_minute_than_is_allowed() -> None:
    time = [0.0]

    def sleep(seconds: float) -> None:
        time[0] += seconds

    pace = Pace(20, clock=lambda: time[0], sleep=sleep)
    moments = []
    for _ in range(100):
        pace()
        moments.append(time[0])
        time[0] += 0.5
    assert all(later - earlier >= 60 for earlier, later in zip(moments, moments[20:], strict=False))


@pytest.mark.parametrize(
    ("sources", "fault"),
    [
        ([{"name": "a"}], "ae_title, host and port"),
        ([{"name": "a", "kind": "dicomweb"}], "the url"),
        ([{"name": "a", "ae_title": "A", "host": "h", "port": 104, "retrieve": "wado-rs"}], "the url"),
        ([{"name": "a", "ae_title": "A", "host": "h", "port": 104}] * 2, "a is there twice"),
        ([{"name": "a", "ae_title": "A", "host": "h", "port": 104, "hours": ["8-18"]}], "is not HH:MM-HH:MM"),
    ],
)
def test_a_source_that_cannot_work_is_refused_where_it_is_written_down(sources: list[object], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Configuration.model_validate({"foreign": sources})


def test_hours_go_over_midnight() -> None:
    night = ["20:00-06:00", "12:00-13:00"]
    moments = {"05:59": True, "06:00": False, "12:30": True, "19:59": False, "20:00": True, "00:00": True}
    day = datetime(2026, 11, 20, tzinfo=UTC)
    for text, expected in moments.items():
        hour, minute = map(int, text.split(":"))
        assert is_within(night, day + timedelta(hours=hour, minutes=minute)) is expected
    assert is_within([], day)


def test_the_node_s_own_page_says_how_its_foreign_pacs_answers(client: Client) -> None:
    source = quirky_source(9)
    join = JoinAnswer(name="clinic", directory=Directory(peers=[], token_keys={}, mirror_to=[]))
    record_join(join, "https://127.0.0.1:9")
    apply_configuration(Configuration(foreign=[source]))
    client.force_login(User.objects.create_user("anna"))
    assert "Not asked yet" in client.get("/state/").content.decode()
    actions.record_poll(source, now=NOW, due=NOW, swept=False, quirks=None, error="connection-failed: QUIRKY")
    page = client.get("/state/").content.decode()
    assert "Does not answer" in page
    assert "connection-failed: QUIRKY" in page
    actions.record_poll(source, now=NOW, due=NOW, swept=True, quirks=set())
    assert "connection-failed" not in client.get("/state/").content.decode()
