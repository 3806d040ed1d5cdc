"""C-FIND matching, and the same matching as SQL sees it."""

import contextlib
import re
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from standards.errors import PermanentError
from standards.matching import (
    date_range,
    datetime_range,
    like_pattern,
    matcher_for,
    matches,
    time_range,
    uid_list,
)

KEY = st.text("ab*?%_\\", max_size=8)
VALUE = st.text("ab%_\\", max_size=8)


@given(KEY, VALUE)
def test_wildcards_agree_with_a_regular_expression_and_with_sql(key: str, value: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in key)
    expected = re.fullmatch(expression, value, re.DOTALL) is not None
    (in_sql,) = (
        sqlite3.connect(":memory:").execute(r"SELECT ? LIKE ? ESCAPE '\'", (value, like_pattern(key))).fetchone()
    )
    assert bool(in_sql) == expected
    if key.strip("*") and "\\" not in key:
        assert matcher_for("LO", key).matches(value) == expected


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not matcher_for("LO", "*a" * 30 + "b").matches("a" * 5000)


@pytest.mark.parametrize(
    ("key", "name", "found"),
    [
        ("ЩЕГОЛЕВ^ПЕТР", "Щёголев^Пётр", True),
        ("щёголев*", "ЩЕГОЛЕВ-ЯЩУРЖИНСКИЙ^ПЁТР", True),
        ("Щёголев^*", "Щёголев^Пётр", True),
        ("Щёголев^*", "Щёголев", True),
        ("Щёголев^*", "Щёголева^Анна", False),
        ("*^Пётр*", "Щёголев^Петр^Ёжикович", True),
        ("*^Пётр*", "^Петр^Ёжикович", True),
        ("Щёголев^*^Ёжикович", "Щёголев^Пётр^Ёжикович", True),
        ("Щёголев^*^*^*^мл.", "Щёголев^Пётр^Ёжикович^^мл.", True),
        ("Щёголев^*^*^*^мл.", "Щёголев^^^^мл.", True),
        ("Щёголев^*^*^*^мл.", "Щёголева^^^^мл.", False),
        ("Shchegolev^*^*^*^ml", "Щёголев^Пётр^^^мл.", True),
        ("*^*^*^*^*", "Щёголев^Пётр", True),
        ("a^* b^* c^* d^* e*^f", "a^f", False),
        ("Ще?олев*", "Щёголев^Пётр", True),
        ("SHCHEGOLEV*", "Щёголев^Пётр", True),
        ("Shchyogolev^P*", "Щёголев^Пётр", True),
        ("Yamada^Tarou", "Yamada^Tarou=山田^太郎", True),
        ("山田*", "Yamada^Tarou=山田^太郎", True),
        ("Петров*", "Щёголев^Пётр", False),
        ("", "Щёголев", True),
        ("*", "", True),
        ("Щёголев", "", False),
    ],
)
def test_names_are_found_whatever_their_case_and_script(key: str, name: str, found: bool) -> None:
    assert matcher_for("PN", key).matches(name) is found


@pytest.mark.parametrize(
    ("key", "name", "found"),
    [
        ("Щёголев", "Щёголев^Пётр", True),
        ("Щёголев", "Щёголева^Анна", False),
        ("Щёголев^Иван", "Щёголев^Пётр", False),
        ("Петров=山田", "Yamada^Tarou=山田^太郎", True),
        ("=太郎*", "Yamada^Tarou=山田^太郎", False),
        ("Shch*", "Соколов^Пётр", False),
        ("-", "", False),
        ("Щёголев\\Петров", "Петров^Иван", True),
    ],
)
def test_a_name_is_found_by_its_beginning_and_in_any_of_its_writings(key: str, name: str, found: bool) -> None:
    assert matcher_for("PN", key).matches(name) is found


def test_fuzzy_matching_finds_the_words_of_a_name_by_their_sound() -> None:
    assert matcher_for("PN", "Petr Schegolev", fuzzy=True).matches("Щёголев^Пётр^Ёжикович")
    assert not matcher_for("PN", "Petr Schegolev").matches("Щёголев^Пётр^Ёжикович")
    assert not matcher_for("PN", "Petr Sokolov", fuzzy=True).matches("Щёголев^Пётр^Ёжикович")


def test_numbers_match_by_value_and_refuse_what_is_none() -> None:
    assert matcher_for("IS", "01").matches("1")
    assert matcher_for("DS", "1.50").matches("1.5")
    assert not matcher_for("IS", "1").matches("")
    with pytest.raises(PermanentError, match="invalid-number"):
        matcher_for("IS", "one")


def test_two_quotation_marks_ask_for_what_is_empty_where_that_was_agreed() -> None:
    assert matcher_for("LO", '""', empty=True).matches("")
    assert not matcher_for("LO", '""', empty=True).matches("x")
    assert not matcher_for("LO", '""').matches("")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20260115", ("20260115", "20260115")),
        ("20260101-", ("20260101", None)),
        ("-20260131", (None, "20260131")),
        ("20260101-20260131", ("20260101", "20260131")),
        ("2026.01.15", ("20260115", "20260115")),
        ("", (None, None)),
    ],
)
def test_date_ranges(text: str, expected: tuple[str | None, str | None]) -> None:
    assert date_range(text) == expected


def test_spaces_around_the_hyphen_of_a_range_do_no_harm() -> None:
    assert date_range("20261102 - 20261103 ") == ("20261102", "20261103")
    assert time_range("1000 -") == ("100000.000000", None)


def test_time_ranges_cover_what_they_leave_out() -> None:
    assert time_range("10") == ("100000.000000", "105959.999999")
    assert time_range("1015-1020") == ("101500.000000", "102059.999999")
    assert time_range("-10:15:30") == (None, "101530.999999")
    assert time_range("101530.5-") == ("101530.500000", None)


def test_a_date_time_may_have_an_offset() -> None:
    assert datetime_range("2026") == ("20260101000000.000000", "20261231235959.999999")
    assert datetime_range("20260115103000-0500") == ("20260115103000.000000", "20260115103000.999999")
    assert datetime_range("20260101-20260131") == ("20260101000000.000000", "20260131235959.999999")
    assert datetime_range("20260115103000+0300-") == ("20260115103000.000000", None)


@pytest.mark.parametrize("text", ["2026", "yesterday", "20260101-2026013", "-", "20260101--20260131", "2026٠101"])
def test_a_range_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(PermanentError, match="invalid-range"):
        date_range(text)


@given(st.text(max_size=30))
def test_no_text_crashes_a_range(text: str) -> None:
    for parse in (date_range, time_range, datetime_range):
        with contextlib.suppress(PermanentError):
            low, high = parse(text)
            assert low is None or low[0].isdigit()
            assert high is None or high[0].isdigit()


@given(st.dates(), st.dates(), st.dates())
def test_a_date_lies_in_a_range_or_not(first: object, last: object, day: object) -> None:
    low, high, value = (str(item).replace("-", "") for item in (first, last, day))
    assert matcher_for("DA", f"{low}-{high}").matches(value) is (low <= value <= high)
    assert matcher_for("DA", f"{low}-").matches(value) is (low <= value)
    assert not matcher_for("DA", f"{low}-").matches("")


def test_lists_of_uids_match_any_and_refuse_what_is_none() -> None:
    assert uid_list("1.2\\1.3") == ["1.2", "1.3"]
    assert matcher_for("UI", "1.2\\1.3").matches("1.3")
    assert not matcher_for("UI", "1.2\\1.3").matches("1.2.3")
    with pytest.raises(PermanentError, match="invalid-uid"):
        uid_list("1.2\\../x")


def scheduled(name: str, station: str, date: str, modality: str = "CT") -> Dataset:
    """A worklist item."""
    step = Dataset()
    step.ScheduledStationAETitle = station
    step.ScheduledProcedureStepStartDate = date
    step.ScheduledProcedureStepStartTime = "101500"
    step.Modality = modality
    item = Dataset()
    item.PatientName = name
    item.PatientID = "К-1"
    item.ScheduledProcedureStepSequence = [step]
    return item


def test_a_worklist_query_matches_inside_the_sequence() -> None:
    query = scheduled("Щёг*", "CT1", "20260101-20261231")
    del query.PatientID
    step = query.ScheduledProcedureStepSequence[0]
    step.ScheduledProcedureStepStartTime = ""
    query.SpecificCharacterSet = "ISO_IR 144"
    assert matches(query, scheduled("ЩЕГОЛЕВ^П", "CT1", "20260505"))
    assert not matches(query, scheduled("ЩЕГОЛЕВ^П", "CT2", "20260505"))
    assert not matches(query, scheduled("ЩЕГОЛЕВ^П", "CT1", "20250505"))
    assert not matches(query, scheduled("Иванов^П", "CT1", "20260505"))
    step.Modality = ["MR", "CT"]
    assert matches(query, scheduled("ЩЕГОЛЕВ^П", "CT1", "20260505"))


def test_a_query_of_empty_keys_matches_all_and_a_set_key_nothing_absent() -> None:
    query = Dataset()
    query.PatientName = ""
    query.AccessionNumber = ""
    query.ScheduledProcedureStepSequence = []
    assert matches(query, scheduled("Щёголев", "CT1", "20260505"))
    assert matches(query, Dataset())
    query.AccessionNumber = "A1"
    assert not matches(query, scheduled("Щёголев", "CT1", "20260505"))
