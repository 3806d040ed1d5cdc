"""`regis test` picks groups by path, counts honestly, and knows when the lock is stale."""

from pathlib import Path

import pytest

from deploy import checks
from deploy.checks import Tally, chosen, pinned

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
