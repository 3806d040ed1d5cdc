"""UIDs are digits and dots, and so safe in a path."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standards.errors import PermanentError
from standards.sop_classes import STORAGE_SOP_CLASSES, sop_class_name
from standards.transfer_syntaxes import STORAGE_TRANSFER_SYNTAXES, is_encapsulated, is_lossy, is_video
from standards.uids import is_valid_uid, new_uid, validated_uid


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=5))
def test_components_of_digits_are_valid_in_both_modes(components: list[int]) -> None:
    uid = ".".join(map(str, components))
    assert is_valid_uid(uid) == is_valid_uid(uid, strict=True) == (len(uid) <= 64)


@given(st.text(max_size=70))
def test_whatever_is_accepted_stays_one_path_segment(text: str) -> None:
    if is_valid_uid(text):
        assert set(text) <= set("0123456789.")
        assert PurePosixPath("a", text).parts == ("a", text)
    else:
        with pytest.raises(PermanentError, match="invalid-uid"):
            validated_uid(text.rstrip("\0 ") + "/")


@pytest.mark.parametrize("text", ["", ".", "..", "1.", ".1", "1..2", "1.2/3", "1.2\n", "١.٢", "1" * 65, "1.2 .3"])
def test_these_are_no_uids(text: str) -> None:
    assert not is_valid_uid(text)
    with pytest.raises(PermanentError, match="invalid-uid"):
        validated_uid(text)


def test_a_leading_zero_is_accepted_unless_asked_to_be_strict() -> None:
    assert validated_uid("1.2.0345\0") == "1.2.0345"
    assert not is_valid_uid("1.2.0345", strict=True)


def test_new_uids_are_valid_and_differ() -> None:
    made = {new_uid() for _ in range(1000)}
    assert len(made) == 1000
    assert all(is_valid_uid(uid, strict=True) and uid.startswith("2.25.") for uid in made)


def test_every_storage_class_and_syntax_is_listed_once_and_valid() -> None:
    for listed in (STORAGE_SOP_CLASSES, STORAGE_TRANSFER_SYNTAXES):
        assert len(set(listed)) == len(listed)
        assert all(is_valid_uid(uid, strict=True) for uid in listed)
    assert "1.2.840.10008.5.1.4.1.1.2" in STORAGE_SOP_CLASSES
    assert "1.2.840.10008.1.20.1" not in STORAGE_SOP_CLASSES
    assert sop_class_name("1.2.840.10008.5.1.4.1.1.2") == "CT Image Storage"


TABLE_B_5 = """
    1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 2.3 2.4 2.5 3 3.1 4 4.1 4.2 4.3 4.4 5 6 6.1 6.2 6.3 7 7.1 7.2 7.3 7.4
    9.1.1 9.1.2 9.1.3 9.1.4 9.2.1 9.3.1 9.4.1 9.4.2 9.5.1 9.6.1 9.6.2 9.7.1 9.7.2 9.7.3 9.7.4 9.8.1 9.100.1 9.100.2
    11.1 11.2 11.3 11.4 11.5 11.6 11.7 11.8 11.9 11.10 11.11 11.12 12.1 12.1.1 12.2 12.2.1 12.3 13.1.1 13.1.2 13.1.3
    13.1.4 13.1.5 14.1 14.2 20 30 66 66.1 66.2 66.3 66.4 66.5 66.6 66.7 66.8 67 68.1 68.2 77.1.1 77.1.1.1 77.1.2
    77.1.2.1 77.1.3 77.1.4 77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.3 77.1.5.4 77.1.5.5 77.1.5.6 77.1.5.7 77.1.5.8 77.1.6
    77.1.7 77.1.8 77.1.9 78.1 78.2 78.3 78.4 78.5 78.6 78.7 78.8 79.1 80.1 81.1 82.1 88.11 88.22 88.33 88.34 88.35 88.40
    88.50 88.59 88.65 88.67 88.68 88.69 88.70 88.71 88.72 88.73 88.74 88.75 88.76 88.77 90.1 91.1 104.1 104.2 104.3
    104.4 104.5 128 128.1 130 131 200.2 200.8 201.1 481.1 481.2 481.3 481.4 481.5 481.6 481.7 481.8 481.9 481.10 481.11
    481.12 481.13 481.14 481.15 481.16 481.17 481.18 481.19 481.20 481.21 481.22 481.23 481.24 481.25 601.5"""
FILE_SYNTAXES = """
    1 1.98 1.99 2 4.50 4.51 4.57 4.70 4.80 4.81 4.90 4.91 4.100 4.101 4.102 4.103 4.104 4.105 4.106 4.107 4.108
    4.110 4.111 4.112 4.201 4.202 4.203 5 8.1"""


@pytest.mark.parametrize("tail", TABLE_B_5.split())
def test_every_class_of_table_b_5_is_stored_and_has_a_name(tail: str) -> None:
    uid = f"1.2.840.10008.5.1.4.1.1.{tail}"
    assert uid in STORAGE_SOP_CLASSES
    assert sop_class_name(uid) != uid


@pytest.mark.parametrize("tail", FILE_SYNTAXES.split())
def test_every_transfer_syntax_of_a_file_is_stored(tail: str) -> None:
    assert f"1.2.840.10008.1.2.{tail}" in STORAGE_TRANSFER_SYNTAXES


@pytest.mark.parametrize("tail", ["4.94", "4.95", "4.204", "4.205", "6.1", "6.2", "7.1"])
def test_a_reference_to_pixels_elsewhere_or_a_stream_is_no_file(tail: str) -> None:
    assert f"1.2.840.10008.1.2.{tail}" not in STORAGE_TRANSFER_SYNTAXES


@pytest.mark.parametrize(
    ("uid", "encapsulated", "lossy", "video"),
    [
        ("1.2.840.10008.1.2", False, False, False),
        ("1.2.840.10008.1.2.1.99", False, False, False),
        ("1.2.840.10008.1.2.2", False, False, False),
        ("1.2.840.10008.1.2.4.50", True, True, False),
        ("1.2.840.10008.1.2.4.70", True, False, False),
        ("1.2.840.10008.1.2.4.80", True, False, False),
        ("1.2.840.10008.1.2.4.91", True, True, False),
        ("1.2.840.10008.1.2.4.102.1", True, True, True),
        ("1.2.840.10008.1.2.4.110", True, False, False),
        ("1.2.840.10008.1.2.4.201", True, False, False),
        ("1.2.840.10008.1.2.5", True, False, False),
    ],
)
def test_a_transfer_syntax_is_what_the_standard_says(uid: str, encapsulated: bool, lossy: bool, video: bool) -> None:
    assert uid in STORAGE_TRANSFER_SYNTAXES
    assert (is_encapsulated(uid), is_lossy(uid), is_video(uid)) == (encapsulated, lossy, video)
