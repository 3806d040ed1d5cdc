"""`regis test` picks groups by path, counts honestly, and knows when the lock is stale."""

import os
from pathlib import Path

import pytest

from deploy import checks
from deploy.checks import Group, Tally, chosen, pinned

REPORT = """<testsuites><testsuite tests="7" failures="1" errors="1" skipped="2"/></testsuites>"""


def test_a_report_is_counted_and_an_error_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    tally = Tally()
    assert tally.add(tmp_path / "report.xml")
    assert (tally.passed, tally.failed, tally.skipped) == (3, 2, 2)


def test_a_run_that_left_no_report_is_a_failure(tmp_path: Path) -> None:
    tally = Tally()
    assert not tally.add(tmp_path / "nothing.xml")
    assert tally.failed == 1


def test_a_path_picks_its_group_and_everything_else_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checks.ROOT)
    picked = chosen(["-k", "port", "tests/unit/deploy/test_checks.py::test_x", "-x"])
    assert [(group.folder, words) for group, words in picked] == [
        ("unit", ["-k", "port", "-x", "tests/unit/deploy/test_checks.py::test_x"])
    ]


def test_without_a_path_every_group_that_has_tests_is_run() -> None:
    assert {"unit", "contract", "node"} <= {group.folder for group, _ in chosen(["-x"])}


def test_a_lock_is_compared_by_versions_and_markers_not_by_digests() -> None:
    one = "uv==1.0 ; sys_platform == 'linux' \\\n    --hash=sha256:aa\nvine==2 \\\n    --hash=sha256:bb\n"
    assert pinned(one) == {"uv==1.0 ; sys_platform == 'linux'", "vine==2"}


def test_an_untranslated_message_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "app" / "locale" / "ru" / "LC_MESSAGES"
    folder.mkdir(parents=True)
    header = 'msgid ""\nmsgstr ""\n"Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    (folder / "django.po").write_text(f'{header}msgid "Sign"\nmsgstr "Подписать"\n\nmsgid "Save"\nmsgstr ""\n')
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    assert checks.translations_complete() == "app/locale/ru/LC_MESSAGES/django.po: 'Save' is missing"


UNSTEADY = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range({failing}))
def test_of_a_slow_machine(number):
    tried = pathlib.Path(__file__).with_name(f"tried-{{number}}")
    was_tried = tried.exists()
    tried.touch()
    assert was_tried and {at_last}

def test_that_passes():
    pass
"""


@pytest.mark.parametrize(
    ("failing", "at_last", "expected"),
    [
        (2, True, (True, 3, 0, 2)),
        (2, False, (False, 1, 2, 0)),
        (checks.MOST_UNSTEADY + 1, True, (False, 1, checks.MOST_UNSTEADY + 1, 0)),
    ],
    ids=["passes at last", "fails again", "too many"],
)
def test_few_that_fail_are_tried_once_more_and_told_as_unsteady(
    tmp_path: Path, failing: int, at_last: bool, expected: tuple[bool, int, int, int]
) -> None:
    test = tmp_path / "test_unsteady.py"
    test.write_text(UNSTEADY.format(failing=failing, at_last=at_last))
    tally = Tally()
    alone = ["-c", os.devnull, "--rootdir", str(tmp_path), "-p", "no:django", str(test)]
    passed = checks.run_group(Group("a group of its own", options=("-n", "0")), alone, tmp_path, tally)
    assert (passed, tally.passed, tally.failed, len(tally.unsteady)) == expected
