"""One number for the program: what nodes and files say is what the changelog tells people."""

import re
from pathlib import Path

import gateway
from publishing.pages import product
from standards.part10 import IMPLEMENTATION_VERSION_NAME
from standards.version import VERSION

CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


def test_the_newest_part_of_the_changelog_is_of_the_version_that_nodes_tell() -> None:
    newest = re.search(r"^## (\S+)", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION == gateway.VERSION


def test_discs_and_stored_files_name_that_version_too() -> None:
    assert product() == f"Regis {VERSION}"
    major, minor, *_ = VERSION.split(".")
    assert f"REGIS_{major}_{minor}" == IMPLEMENTATION_VERSION_NAME
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16, "(0002,0013) is an SH"
