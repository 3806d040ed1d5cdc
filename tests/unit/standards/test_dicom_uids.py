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
