"""Part 10 files and bare data sets: good ones are understood, bad ones are refused by name."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from standards.errors import PermanentError
from standards.file_meta import read_file_meta
from standards.part10 import IDENTIFYING, inflate, open_plain, read_header, text, write_file_meta

ImageFile = Callable[..., io.BytesIO]
EXPLICIT = "1.2.840.10008.1.2.1"
NAMED = {
    "not-dicom",
    "truncated",
    "invalid-vr",
    "unknown-transfer-syntax",
    "missing-uid",
    "invalid-uid",
    "nesting-too-deep",
    "length-out-of-bounds",
    "too-many-elements",
    "invalid-deflate",
}


def refusal(stream: io.BytesIO, *args: str) -> str:
    """The code with which a stream is refused; "" if it is read."""
    try:
        read_header(stream, *args)
    except PermanentError as error:
        return error.code
    return ""


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    """One short explicit little-endian element."""
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def sequence_start(tag: int, length: int = 0xFFFFFFFF) -> bytes:
    """The header of an explicit little-endian sequence."""
    return struct.pack("<HH2s2xL", tag >> 16, tag & 0xFFFF, b"SQ", length)


ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


@pytest.mark.parametrize("syntax", [EXPLICIT, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_pixel_value_is_found_where_it_lies(image_file: ImageFile, syntax: str) -> None:
    stream = image_file(syntax)
    header = read_header(stream)
    assert header.pixel_offset is not None
    stream.seek(header.pixel_offset)
    order = ">HH" if syntax == ExplicitVRBigEndian else "<HH"
    assert stream.read(header.pixel_length or 0)[:4] == struct.pack(order, 0, 100)
    assert (header.pixel_length, header.encapsulated, header.transfer_syntax) == (48, False, syntax)
    assert text(header.dataset, "PatientName") == "Щёголев-Ящуржинский^Пётр^Ёжикович"
    assert "PixelData" not in header.dataset


def test_a_deflated_data_set_is_read_and_its_pixels_found_in_the_inflated_stream(image_file: ImageFile) -> None:
    stream = image_file(DeflatedExplicitVRLittleEndian)
    header = read_header(stream)
    with open_plain(stream, header) as plain:
        plain.seek(header.pixel_offset or 0)
        assert plain.read(4) == b"\0\0\x64\0"


def test_a_deflated_data_set_cut_short_is_truncated(image_file: ImageFile) -> None:
    raw = image_file(DeflatedExplicitVRLittleEndian).getvalue()
    assert refusal(io.BytesIO(raw[:-40])) == "truncated"


def test_rubbish_in_place_of_deflate_is_named() -> None:
    meta = write_file_meta("1.2", "1.2.3", DeflatedExplicitVRLittleEndian)
    assert refusal(io.BytesIO(meta + b"\xff" * 500)) == "invalid-deflate"


def test_inflating_stops_at_the_limit() -> None:
    packer = zlib.compressobj(wbits=-15)
    bomb = packer.compress(bytes(8 << 20)) + packer.flush()
    with pytest.raises(PermanentError, match="length-out-of-bounds"):
        for _ in inflate(io.BytesIO(bomb), 0, 1 << 20):
            pass


def test_a_bare_data_set_is_read_with_its_transfer_syntax(image_file: ImageFile) -> None:
    stream = image_file()
    bare = io.BytesIO(stream.getvalue()[read_header(stream).dataset_offset :])
    assert read_header(bare, EXPLICIT).dataset_offset == 0
    assert refusal(io.BytesIO(bare.getvalue())) == "not-dicom"


def test_what_we_write_before_a_data_set_others_can_read(image_file: ImageFile) -> None:
    stream = image_file()
    header = read_header(stream)
    bare = stream.getvalue()[header.dataset_offset :]
    stored = write_file_meta(header.sop_class_uid, header.sop_instance_uid, EXPLICIT) + bare
    dataset = dcmread(io.BytesIO(stored))
    assert dataset.file_meta.MediaStorageSOPInstanceUID == header.sop_instance_uid
    assert dataset.file_meta.ImplementationVersionName == "REGIS_0_1"
    assert dataset.pixel_array[0, 1] == 100
    assert stored[read_header(io.BytesIO(stored)).dataset_offset :] == bare


@pytest.mark.parametrize("keyword", IDENTIFYING)
def test_a_missing_uid_is_named(image_file: ImageFile, keyword: str) -> None:
    assert refusal(image_file(**{keyword: ""})) == "missing-uid"


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.abc", "1..2", "1." * 40 + "1"])
def test_a_uid_that_could_leave_its_folder_is_refused(image_file: ImageFile, uid: str) -> None:
    raw = image_file(StudyInstanceUID="1.2.3.4.5.6").getvalue()
    damaged = raw.replace(
        element(0x0020000D, b"UI", b"1.2.3.4.5.6\0"), element(0x0020000D, b"UI", uid.encode().ljust(82, b"\0"))
    )
    assert damaged != raw
    assert refusal(io.BytesIO(damaged)) == "invalid-uid"


def test_an_unknown_transfer_syntax_is_named(image_file: ImageFile) -> None:
    raw = image_file().getvalue()
    meta = write_file_meta("1.2", "1.2.3", "1.2.3.4.5")
    assert refusal(io.BytesIO(meta + raw[read_header(io.BytesIO(raw)).dataset_offset :])) == "unknown-transfer-syntax"


def test_sequences_may_nest_to_the_limit_and_no_deeper() -> None:
    def nested(depth: int) -> bytes:
        inside = (sequence_start(0x00400275) + ITEM) * depth + (ITEM_END + SEQUENCE_END) * depth
        return b"".join(element(tag, b"UI", b"1.2.3\0") for tag in (0x00080016, 0x00080018)) + (
            element(0x0020000D, b"UI", b"1.2.3\0") + element(0x0020000E, b"UI", b"1.2.3\0") + inside
        )

    assert refusal(io.BytesIO(nested(64)), EXPLICIT) == ""
    assert refusal(io.BytesIO(nested(65)), EXPLICIT) == "nesting-too-deep"
    assert refusal(io.BytesIO(nested(100_000)), EXPLICIT) == "nesting-too-deep"


def test_an_item_that_reaches_past_its_sequence_is_out_of_bounds() -> None:
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 100)
    data = sequence_start(0x00400275, 16) + item + bytes(8) + element(0x00400300, b"LO", b" " * 200)
    assert refusal(io.BytesIO(data), EXPLICIT) == "length-out-of-bounds"


@pytest.mark.parametrize("vr", [b"LO", b"UT", b"OB", b"UN", b"SQ", b"UC"])
def test_an_undefined_length_everywhere_is_refused_by_name(vr: bytes) -> None:
    data = struct.pack("<HH2s2xL", 0x0008, 0x1030, vr, 0xFFFFFFFF) + b"\xff" * 200
    assert refusal(io.BytesIO(data), EXPLICIT) in NAMED


def test_a_claim_of_four_gigabytes_costs_no_memory() -> None:
    data = struct.pack("<HH2s2xL", 0x0008, 0x1030, b"UT", 0xFFFFFFF0) + bytes(1000)
    tracemalloc.start()
    assert refusal(io.BytesIO(data), EXPLICIT) == "truncated"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_million_empty_items_are_walked_in_bounded_memory() -> None:
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    data = sequence_start(0x00400275) + item * 600_000 + SEQUENCE_END
    header = read_header(io.BytesIO(data), EXPLICIT, required=())
    assert not header.complete
    assert len(header.dataset[0x00400275].value) <= 500_000


def test_a_long_value_is_left_out_and_its_place_told(image_file: ImageFile) -> None:
    stream = image_file(ImageComments="я" * (1 << 20))
    header = read_header(stream)
    (tag, offset, length) = header.omitted[0]
    stream.seek(offset)
    assert (tag, length, stream.read(4).decode()) == (0x00204000, 2 << 20, "яя")
    assert not header.complete


def test_a_set_that_pydicom_does_not_know_is_read(image_file: ImageFile) -> None:
    raw = image_file(SpecificCharacterSet="ISO_IR 100", PatientName="¼uvre^Zoë").getvalue()
    header = read_header(io.BytesIO(raw.replace(b"ISO_IR 100", b"ISO_IR 203")))
    assert header.dataset.PatientName == "Œuvre^Zoë"


def test_zeros_after_the_data_set_are_padding(image_file: ImageFile) -> None:
    raw = image_file().getvalue()
    assert refusal(io.BytesIO(raw + bytes(1000))) == ""
    assert refusal(io.BytesIO(raw + bytes(1000) + b"x")) in {"not-dicom", "truncated"}


def test_an_unknown_character_set_is_no_error_and_the_name_is_still_readable(image_file: ImageFile) -> None:
    raw = image_file().getvalue().replace(b"ISO_IR 192", b"KLINGON_01")
    header = read_header(io.BytesIO(raw))
    assert text(header.dataset, "PatientName") == "Щёголев-Ящуржинский^Пётр^Ёжикович"


def test_an_absent_character_set_means_what_the_caller_knows_of_the_sender(image_file: ImageFile) -> None:
    stream = image_file(SpecificCharacterSet="ISO_IR 144", PatientName="Ёжиков^Пётр")
    raw = stream.getvalue().replace(element(0x00080005, b"CS", b"ISO_IR 144"), b"")
    header = read_header(io.BytesIO(raw), default_charset="ISO_IR 144")
    assert text(header.dataset, "PatientName") == "Ёжиков^Пётр"


def test_windows_1251_without_a_label_is_recognised() -> None:
    data = element(0x00100010, b"PN", "Ёжиков^Пётр ".encode("cp1251"))
    header = read_header(io.BytesIO(data), EXPLICIT, required=())
    assert text(header.dataset, "PatientName") == "Ёжиков^Пётр"


def test_a_broken_number_does_not_cost_the_instance(image_file: ImageFile) -> None:
    raw = image_file(InstanceNumber="12345678").getvalue().replace(b"12345678", b"12abc678")
    header = read_header(io.BytesIO(raw))
    assert text(header.dataset, "InstanceNumber") == "12abc678"
    assert header.sop_instance_uid


@settings(max_examples=300)
@given(st.binary(max_size=600))
def test_random_bytes_are_refused_by_name_or_read(raw: bytes) -> None:
    for syntax in (EXPLICIT, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian):
        assert refusal(io.BytesIO(raw), syntax) in NAMED
    assert refusal(io.BytesIO(bytes(128) + b"DICM" + raw)) in NAMED


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_refused_by_name_or_read(data: st.DataObject, sample_pool: list[bytes]) -> None:
    raw = bytearray(data.draw(st.sampled_from(sample_pool)))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    assert refusal(io.BytesIO(bytes(raw))) in NAMED | {""}


@pytest.fixture(scope="module")
def sample_pool(sample_data: Path) -> list[bytes]:
    names = [
        "transfer_syntaxes/small/MR_small_implicit.dcm",
        "transfer_syntaxes/small/MR_small_RLE.dcm",
        "transfer_syntaxes/small/MR_small_expb.dcm",
        "charsets/chrH32.dcm",
        "corrupt/Issue140.dcm",
        "corrupt/MultiframeWindowing.dcm",
        "corrupt/badVR.dcm",
    ]
    return [(sample_data / name).read_bytes() for name in names]


def dicom_files(folder: Path) -> list[Path]:
    """Every file of a folder, in order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_no_corrupt_file_does_anything_but_pass_or_be_refused_by_name(sample_data: Path) -> None:
    outcomes = {}
    for path in dicom_files(sample_data / "corrupt"):
        outcomes[path.name] = refusal(io.BytesIO(path.read_bytes()))
    assert set(outcomes.values()) <= NAMED | {""}
    assert outcomes["MR_truncated.dcm"] == "truncated"
    assert outcomes["3gb-bulk-data-truncated"] == "truncated"
    assert outcomes["rtplan_truncated.dcm"] == "truncated"
    assert outcomes["zipMR.gz"] == "not-dicom"
    assert outcomes["bad_sequence.dcm"] == "invalid-uid"
    assert outcomes["meta_missing_tsyntax.dcm"] == "unknown-transfer-syntax"
    assert outcomes["GH177_D_CLUNIE_CT1_IVRLE_BigEndian_undefined_length.dcm"] == ""


@pytest.mark.parametrize("folder", ["transfer_syntaxes", "charsets", "us_cine", "rt", "sr_pdf_ps", "ecg_waveform"])
def test_a_sample_cut_at_any_sixteenth_is_never_taken_for_whole(sample_data: Path, folder: str) -> None:
    for path in dicom_files(sample_data / folder):
        raw = path.read_bytes()
        if refusal(io.BytesIO(raw)):
            continue
        for part in range(16):
            code = refusal(io.BytesIO(raw[: len(raw) * part // 16]))
            assert code in NAMED | {""}, path
            # A cut exactly between two top-level elements leaves a data set that is whole in itself.
            if not code:
                cut = read_header(io.BytesIO(raw[: len(raw) * part // 16]))
                assert cut.pixel_offset is None, path


def test_names_and_ids_agree_with_pydicom_on_every_sample(sample_data: Path) -> None:
    compared = 0
    for path in dicom_files(sample_data / "mr") + dicom_files(sample_data / "us_cine"):
        ours = read_header(io.BytesIO(path.read_bytes()))
        theirs = dcmread(path, stop_before_pixels=True)
        for keyword in ("PatientID", "StudyDate", "Modality", "SOPInstanceUID", "Rows", "StudyDescription"):
            expected = str(theirs.get(keyword) or "").strip(" \0")
            assert text(ours.dataset, keyword) == expected, (path, keyword)
            compared += 1
    assert compared > 100


def test_a_meta_group_whose_values_are_not_what_they_say_is_refused_by_name(image_file: ImageFile) -> None:
    raw = image_file().getvalue()
    lying = raw.replace(b"\x02\0\x10\0UI\x14\0", b"\x02\0\x10\0US\x13\0", 1)
    assert lying != raw
    assert refusal(io.BytesIO(lying)) in NAMED


@pytest.mark.parametrize("terms", [b"ISOn\0\xb5&F\xe9\xb1h 2022 IR 6", b"ISO_IR\t6", b"6", b"base64"])
def test_a_character_set_of_rubbish_costs_nothing(image_file: ImageFile, terms: bytes) -> None:
    raw = image_file().getvalue()
    damaged = raw.replace(element(0x00080005, b"CS", b"ISO_IR 192"), element(0x00080005, b"CS", terms), 1)
    assert damaged != raw
    assert text(read_header(io.BytesIO(damaged)).dataset, "PatientName") == "Щёголев-Ящуржинский^Пётр^Ёжикович"


def test_millions_of_tiny_elements_cost_bounded_memory() -> None:
    data = struct.pack("<HH2sH", 9, 0x1001, b"CS", 0) * 700_000
    tracemalloc.start()
    assert refusal(io.BytesIO(data), EXPLICIT) == "too-many-elements"
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_refusal_does_not_tell_what_stands_in_the_place_of_a_uid(image_file: ImageFile) -> None:
    raw = image_file(StudyInstanceUID="1.2.3.4.5.6").getvalue()
    shifted = raw.replace(
        element(0x0020000D, b"UI", b"1.2.3.4.5.6\0"), element(0x0020000D, b"UI", "ЁЖИКОВ^Пётр".encode())
    )
    assert shifted != raw
    with pytest.raises(PermanentError, match=r"^invalid-uid: '[?]+' is not a DICOM UID$"):
        read_header(io.BytesIO(shifted))


@pytest.mark.parametrize("vr", [b"UC", b"OL", b"UR", b"SV", b"OB", b"SH"])
def test_both_readers_of_a_meta_group_see_the_data_set_begin_at_one_place(image_file: ImageFile, vr: bytes) -> None:
    raw = image_file().getvalue()
    head = struct.pack("<HH2s", 2, 0x0102, vr)
    odd = head + (struct.pack("<H8s", 8, b"12345678") if vr == b"SH" else struct.pack("<2xL8s", 8, b"12345678"))
    start = read_header(io.BytesIO(raw)).dataset_offset
    longer = io.BytesIO(raw[:start] + odd + raw[start:])
    assert read_header(longer).dataset_offset == read_file_meta(longer).dataset_offset == start + len(odd)


def test_a_sequence_in_a_meta_group_is_refused_by_name(image_file: ImageFile) -> None:
    raw = image_file().getvalue()
    start = read_header(io.BytesIO(raw)).dataset_offset
    nested = raw[:start] + sequence_start(0x00020102) + SEQUENCE_END + raw[start:]
    assert refusal(io.BytesIO(nested)) == "invalid-vr"
