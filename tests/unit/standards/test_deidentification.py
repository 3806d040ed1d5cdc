"""Whatever a data set holds, at whatever depth: after de-identification it is as the standard's table says."""

import io
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_keyword, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from standards.deidentification import ACTIONS, EDITION, action, deidentified, pseudonym_uid
from standards.errors import PermanentError

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
CT, SEGMENTATION, US = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.6.1"
PET, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.128", "1.2.840.10008.5.1.4.1.1.2.1"
SECRET: Final = b"of the tests"
TOLD: Final = "Zorgl"
"""A word that no dummy has."""
VALUES: Final[dict[str, Any]] = {
    "DA": "19700229", "TM": "131415", "DT": "19700229131415", "AS": "041Y", "DS": "70.25", "IS": "70025",
    "UI": "1.2.643.70229", "OB": b"ZorglZ", "UN": b"ZorglZ", "US": 1, "PN": "Zorgl^Paula", "AE": "ZORGLZORGL",
    "CS": "ZORGL", "UR": "http://Zorgl", "FD": 1.5, "FL": 1.5, "UL": 7, "SL": 7, "SS": 7, "OW": b"ZorglZ",
    "AT": 0x00100010,
}  # fmt: skip
HOLDERS: Final = ("ReferencedSeriesSequence", "ContributingEquipmentSequence", "PerFrameFunctionalGroupsSequence")
"""Sequences that the table leaves alone."""
NAMED: Final = sorted(tag for tag in ACTIONS if tag >> 16 >= 8)
SAFE_IDENTIFIERS: Final = frozenset({0x00100010, 0x00100020, 0x00080016, 0x00080018, 0x00120063})


def encoded(dataset: Dataset, syntax: str = EXPLICIT) -> bytes:
    target = DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = syntax == IMPLICIT, syntax != BIG_ENDIAN
    write_dataset(target, dataset)
    return target.getvalue()


def read(data: bytes, syntax: str = EXPLICIT) -> Dataset:
    return read_dataset(io.BytesIO(data), syntax == IMPLICIT, syntax != BIG_ENDIAN)


def after(dataset: Dataset, syntax: str = EXPLICIT, secret: bytes = SECRET) -> Dataset:
    return read(deidentified(encoded(dataset, syntax), syntax, secret), syntax)


def image(sop_class: str = CT) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, "1.2.643.1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.643.2", "1.2.643.3"
    dataset.PatientName, dataset.PatientID = "Zorgl^Paula", "ID-Zorgl"
    dataset.Modality, dataset.Rows, dataset.Columns = "CT", 2, 2
    return dataset


def put(dataset: Dataset, tag: int) -> None:
    """An element of the table with a value that tells something."""
    vr = dictionary_VR(tag).split(" or ")[0]
    if vr == "SQ":
        item = Dataset()
        if not ACTIONS[tag].endswith("U*"):  # where those stay, their codes do
            item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "Zorgl", "99ZORGL", "Zorgl Paula"
        item.ReferencedSOPInstanceUID = "1.2.643.1"
        dataset.add(DataElement(tag, vr, Sequence([item])))
    else:
        dataset.add(DataElement(tag, vr, VALUES.get(vr, "Zorgl Paula")))


def nested(dataset: Dataset, holders: tuple[str, ...]) -> Dataset:
    """``dataset`` within these sequences, at the top of an image."""
    for keyword in reversed(holders):
        outer = Dataset()
        setattr(outer, keyword, Sequence([dataset]))
        dataset = outer
    whole = image()
    whole.update(dataset)
    return whole


def all_of(dataset: Dataset, parent: int | None = None) -> list[tuple[int | None, DataElement]]:
    """Every element with the tag of the sequence around it."""
    found: list[tuple[int | None, DataElement]] = []
    for element in dataset:
        found.append((parent, element))
        if element.VR == "SQ":
            for item in element.value:
                found += all_of(item, int(element.tag))
    return found


def test_the_table_is_the_whole_column_of_its_edition() -> None:
    assert EDITION == "2024b"
    assert len(ACTIONS) == 617  # 621 rows, less four for groups of elements
    assert set("/".join(ACTIONS.values()).split("/")) == {"X", "Z", "D", "U", "U*"}
    assert [ACTIONS[tag] for tag in (0x00080050, 0x00100010, 0x00080018, 0x00184000)] == ["Z", "Z", "U", "X"]


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
@given(
    tags=st.lists(st.sampled_from(NAMED), max_size=30, unique=True), holders=st.permutations(HOLDERS), data=st.data()
)
@settings(max_examples=60, deadline=None)
def test_what_the_table_names_is_removed_emptied_or_replaced_at_every_depth(
    syntax: str, tags: list[int], holders: list[str], data: st.DataObject
) -> None:
    inner = Dataset()
    for tag in tags:
        put(inner, tag)
    before = nested(inner, tuple(holders[: data.draw(st.integers(0, 3))]))
    new = deidentified(encoded(before, syntax), syntax, SECRET)
    for told in (b"Zorgl", b"ZORGL", b"19700229", b"131415", b"1.2.643", b"041Y", b"70.25"):
        assert told not in new, told
    for parent, element in all_of(read(new, syntax)):
        tag = int(element.tag)
        if tag in SAFE_IDENTIFIERS:
            continue
        wanted = action(tag, parent, CT)
        assert wanted != "X", element
        if wanted == "D":
            assert element.value not in ("", b"", None), element
        if wanted == "Z":
            assert not element.value, element


@given(tags=st.lists(st.sampled_from(sorted(set(NAMED))), max_size=20, unique=True))
@settings(max_examples=40, deadline=None)
def test_doing_it_again_under_the_same_secret_leaves_nothing_new_to_remove(tags: list[int]) -> None:
    before = image()
    for tag in tags:
        put(before, tag)
    once = after(before)
    assert set(after(once).keys()) == set(once.keys())


@given(
    uids=st.lists(st.from_regex(r"1\.2\.643\.[1-9][0-9]{0,20}", fullmatch=True), min_size=1, max_size=5, unique=True)
)
@settings(max_examples=40, deadline=None)
def test_a_uid_has_one_pseudonym_wherever_it_stands(uids: list[str]) -> None:
    before = image()
    before.StudyInstanceUID = uids[0]
    items = []
    for uid in uids:
        item, deeper = Dataset(), Dataset()
        deeper.ReferencedSOPClassUID, deeper.ReferencedSOPInstanceUID = CT, uid
        item.SeriesInstanceUID = uid
        item.ReferencedSOPSequence = [deeper]
        items.append(item)
    before.ReferencedSeriesSequence = items
    before.FailedSOPInstanceUIDList = uids
    one = after(before)
    expected = [pseudonym_uid(uid, SECRET) for uid in uids]
    assert one.StudyInstanceUID == expected[0]
    assert [item.SeriesInstanceUID for item in one.ReferencedSeriesSequence] == expected
    deep = [item.ReferencedSOPSequence[0] for item in one.ReferencedSeriesSequence]
    assert [item.ReferencedSOPInstanceUID for item in deep] == expected
    assert {item.ReferencedSOPClassUID for item in deep} == {CT}
    listed = one.FailedSOPInstanceUIDList
    assert ([listed] if isinstance(listed, str) else list(listed)) == expected
    assert len(set(expected)) == len(uids)
    assert all(UID(uid).is_valid for uid in expected)
    assert after(before, secret=b"another").StudyInstanceUID != expected[0]


@given(
    tag=st.integers(0x0009, 0xFDFF).filter(lambda group: group % 2),
    number=st.integers(0x1000, 0xFFFF),
    deep=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_private_elements_go_with_their_creators_at_every_depth(tag: int, number: int, deep: bool) -> None:
    inner = Dataset()
    inner.add_new((tag, 0x0010), "LO", "Zorgl Ltd")
    inner.add_new((tag, number), "LO", "Zorgl")
    new = deidentified(encoded(nested(inner, HOLDERS[:1] if deep else ())), EXPLICIT, SECRET)
    assert b"Zorgl" not in new
    assert not any(element.tag.is_private for _, element in all_of(read(new)))


def test_curves_and_overlays_go() -> None:
    before = image()
    before.add_new(0x50003000, "OW", b"Zorgl!")
    before.add_new(0x60000010, "US", 512)
    before.add_new(0x60000100, "US", 1)
    before.add_new(0x60000102, "US", 0)
    before.add_new(0x60003000, "OW", b"Zorgl!")
    before.add_new(0x60024000, "LT", "Zorgl")
    assert not [element for element in after(before) if element.tag.group >= 0x5000]


def test_what_was_done_is_said_in_the_data_set() -> None:
    new = after(image())
    assert (new.PatientIdentityRemoved, new.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
    assert "PS3.15 2024b" in new.DeidentificationMethod
    (code,) = new.DeidentificationMethodCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113100", "DCM")
    assert (new.Modality, new.Rows, new.SOPClassUID) == ("CT", 2, CT)


@pytest.mark.parametrize(
    ("keyword", "sop_class", "value"),
    [
        ("SeriesDate", CT, None),  # type 3
        ("AcquisitionDate", CT, None),
        ("AcquisitionDate", PET, ""),  # type 2
        ("StudyDate", CT, ""),
        ("ContentDate", CT, "19000101"),
        ("AcquisitionDateTime", ENHANCED_CT, "19000101000000"),  # type 1C
        ("AcquisitionDateTime", CT, None),
        ("DeviceSerialNumber", CT, None),
        ("DeviceSerialNumber", ENHANCED_CT, "ANON"),  # type 1
        ("OperatorsName", CT, None),
        ("PatientSexNeutered", CT, ""),
    ],
)
def test_of_several_actions_the_mildest_that_the_iod_allows_is_taken(
    keyword: str, sop_class: str, value: str | None
) -> None:
    before = image(sop_class)
    setattr(before, keyword, VALUES.get(dictionary_VR(keyword), "Zorgl"))
    new = after(before)
    assert new.get(keyword) == value if value is None else str(new[keyword].value or "") == value


def test_references_to_images_stay_where_the_iod_requires_them_with_other_uids() -> None:
    before = image("1.2.840.10008.5.1.4.1.1.12.1")
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = CT, "1.2.643.9"
    before.ReferencedImageSequence = [item]
    (kept,) = after(before).ReferencedImageSequence
    assert kept.ReferencedSOPInstanceUID == pseudonym_uid("1.2.643.9", SECRET)
    before.SOPClassUID = CT
    assert "ReferencedImageSequence" not in after(before)


def test_within_a_sequence_that_is_replaced_even_codes_are() -> None:
    before = image(SEGMENTATION)
    person, who = Dataset(), Dataset()
    who.CodeValue, who.CodingSchemeDesignator, who.CodeMeaning = "12345", "99STAFF", "Zorgl Paula"
    person.PersonIdentificationCodeSequence = [who]
    before.ReferencedSeriesSequence = [person]
    found = after(before).ReferencedSeriesSequence[0].PersonIdentificationCodeSequence[0]
    assert (found.CodeValue, found.CodingSchemeDesignator, found.CodeMeaning) == ("ANON", "ANON", "ANON")


def test_codes_of_anatomy_stay() -> None:
    before = image()
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "69536005", "SCT", "Head"
    before.AnatomicRegionSequence = [item]
    assert after(before).AnatomicRegionSequence[0].CodeMeaning == "Head"


def test_patients_without_any_name_are_not_one_patient() -> None:
    one, other = image(), image()
    for each in (one, other):
        each.PatientName = each.PatientID = ""
    other.StudyInstanceUID = "1.2.643.77"
    assert after(one).PatientID != after(other).PatientID


def _with(keyword: str, value: object, sop_class: str = CT) -> Dataset:
    dataset = image(sop_class)
    setattr(dataset, keyword, value)
    return dataset


def _overlay_in_pixels() -> Dataset:
    dataset = image()
    dataset.add_new(0x60000100, "US", 16)
    dataset.add_new(0x60000102, "US", 12)
    return dataset


@pytest.mark.parametrize(
    "before",
    [
        _with("BurnedInAnnotation", "YES"),
        _with("ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"]),
        _overlay_in_pixels(),
        image(US),
        image("1.2.840.10008.5.1.4.1.1.6"),
        image("1.2.840.10008.5.1.4.1.1.7"),
        image("1.2.840.10008.5.1.4.1.1.88.11"),
        image("1.2.840.10008.5.1.4.1.1.11.1"),
        image("1.3.12.2.1107.5.9.1"),
    ],
    ids=[
        "burned in",
        "screen save",
        "overlay in pixels",
        "ultrasound",
        "retired",
        "captured",
        "report",
        "presentation state",
        "private",
    ],
)
def test_what_cannot_be_cleaned_is_refused(before: Dataset) -> None:
    with pytest.raises(PermanentError, match="not-deidentifiable"):
        deidentified(encoded(before), EXPLICIT, SECRET)


def test_what_a_person_declared_clean_is_taken() -> None:
    assert after(_with("BurnedInAnnotation", "NO", US)).PatientIdentityRemoved == "YES"


def test_every_attribute_of_the_table_is_known_by_name() -> None:
    assert all(dictionary_keyword(tag) for tag in NAMED)
