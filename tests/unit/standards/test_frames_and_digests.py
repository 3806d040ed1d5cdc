"""Stored frames, and digests that prove an image is the same in another encoding."""

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.pixels.utils import iter_pixels

from standards import frames, jpeg
from standards.digests import DigestWriter, dataset_sha256, digests, frames_sha256, pixel_sha256, root_hash
from standards.errors import PermanentError
from standards.part10 import open_plain, read_header, write_file_meta
from standards.pixels import Frame, decode_frame

ImageFile = Callable[..., io.BytesIO]
BIG_ENDIAN = "1.2.840.10008.1.2.2"
RLE = "1.2.840.10008.1.2.5"

SAME_IMAGE = [
    ("ge_ct_all/CTImage.dcm_*", [".99.dcm", ".1.2.dcm", "4.57.dcm", "4.70.dcm", "4.80.dcm", "4.90.dcm", ".2.5.dcm"], 7),
    ("nema_ct1/CT1_*", ["UNC", "J2KR", "JLSL", "JPLL"], 4),
    ("small/MR_small*", ["dcm"], 7),
    ("seg_1bit/liver_[djr]*", ["dcm"], 3),
    ("seg_1bit/liver_nonbyte*", ["dcm"], 3),
    ("fragments_bot/CT0012*", [".57.dcm", ".70.dcm", ".80.dcm", "rle.dcm"], 7),
    ("colour_testpattern/*", ["LS-Lossless.dcm", "Lossless_RGB.dcm"], 2),
    ("colour/color-p?.dcm", ["dcm"], 2),
]


@pytest.mark.parametrize(("pattern", "endings", "count"), SAME_IMAGE, ids=lambda value: str(value)[:20])
def test_the_same_image_has_one_frame_digest_in_every_lossless_encoding(
    sample_data: Path, pattern: str, endings: list[str], count: int
) -> None:
    paths = [
        path
        for path in sorted((sample_data / "transfer_syntaxes").glob(pattern))
        if path.name.endswith(tuple(endings)) and "_exp" not in path.name
    ]
    assert len(paths) == count
    found = {frames_sha256(path) for path in paths}
    assert len(found) == 1
    assert None not in found
    if "color-p" not in pattern:
        assert len({digests(path).dataset for path in paths}) == count


@pytest.mark.parametrize("ending", ["4.50.dcm", "4.51.dcm", "4.53.dcm", "4.81.dcm", "4.91.dcm"])
def test_a_lossy_image_has_no_frame_digest_but_the_other_two(sample_data: Path, ending: str) -> None:
    (path,) = (sample_data / "transfer_syntaxes" / "ge_ct_all").glob(f"*{ending}")
    found = digests(path)
    assert found.frames is None
    assert found.pixels
    assert found.dataset


def decoded(path: Path) -> list[Frame]:
    """Every frame; none if the file or its codec is not for us."""
    with open(path, "rb") as file, contextlib.suppress(PermanentError):
        header = read_header(file, required=())
        with open_plain(file, header) as plain:
            return [decode_frame(plain, header, index) for index in range(frames.frame_count(header))]
    return []


def test_frames_decode_to_what_pydicom_decodes(sample_data: Path) -> None:
    compared = 0
    for folder in ("colour", "small", "fragments_bot", "htj2k"):
        for path in sorted((sample_data / "transfer_syntaxes" / folder).glob("*")):
            # pydicom refuses 12-bit JPEG, which has its own test below.
            if not path.name.endswith(".51.dcm") and (ours := decoded(path)):
                for mine, theirs in zip(ours, iter_pixels(dcmread(path), raw=True), strict=True):
                    # No bit above Bits Stored is set in these samples; there ours would differ by contract.
                    assert np.array_equal(mine, theirs), path
                    compared += 1
    assert compared > 50


def test_twelve_bit_jpeg_shows_the_image_that_was_compressed(sample_data: Path) -> None:
    folder = sample_data / "transfer_syntaxes" / "fragments_bot"
    (lossy,) = folder.glob("*.51.dcm")
    (lossless,) = folder.glob("*.57.dcm")
    for before, after in zip(decoded(lossless), decoded(lossy), strict=True):
        # The compressor moved all values up by one constant.
        difference = after.astype(int) - before
        assert difference.std() < 3
        assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("raw", [b"", b"\xff\xd8\xff\xd9", b"\xff\xd8" + bytes(100), b"x" * 500])
def test_a_broken_codestream_is_named(tmp_path: Path, image_file: ImageFile, raw: bytes) -> None:
    path = tmp_path / "frames.dcm"
    for syntax in ("4.50", "4.51", "4.70", "4.80", "4.90", "4.201", "5", "8.1"):
        stream = encapsulated(image_file, encapsulate([raw or b"\0"], has_bot=False), 1)
        path.write_bytes(stream.getvalue())
        header = replace(read_header(stream), transfer_syntax=f"1.2.840.10008.1.2.{syntax}")
        with open(path, "rb") as file, pytest.raises(PermanentError, match="cannot-decode"):
            decode_frame(file, header, 0)


def test_a_codec_that_dies_costs_one_frame_only(sample_data: Path) -> None:
    (path,) = (sample_data / "transfer_syntaxes" / "ge_ct_all").glob("*4.70.dcm")
    header = read_header(io.BytesIO(path.read_bytes()))
    shape = frames.layout(header)
    whole = frames.frame_bytes(path, header, 0)
    expected = jpeg.decode(whole, shape, header.transfer_syntax)
    jpeg._decoder._running().kill()
    assert np.array_equal(jpeg.decode(whole, shape, header.transfer_syntax), expected)
    # An impossible request is what makes the worker itself fail.
    with pytest.raises(PermanentError, match="cannot-decode"):
        jpeg.decode(whole, replace(shape, photometric_interpretation="NO SUCH"), "1.2.3")
    assert np.array_equal(jpeg.decode(whole, shape, header.transfer_syntax), expected)


def test_an_rle_frame_that_unpacks_too_much_is_named(tmp_path: Path, image_file: ImageFile) -> None:
    segment = (2).to_bytes(4, "little") + (64).to_bytes(4, "little") + (66).to_bytes(4, "little") + bytes(52)
    path = tmp_path / "frames.dcm"
    # Three of these make the Rust codec panic.
    for tail in (b"\x81\x02\xc8\x80\x80", b"\x81\0" * 50, b"\x7f" + bytes(3), b"\x7f" * 200, b""):
        stream = encapsulated(image_file, encapsulate([segment + tail + b"\0" * (len(tail) % 2)], has_bot=False), 1)
        path.write_bytes(stream.getvalue())
        with open(path, "rb") as file, pytest.raises(PermanentError, match="cannot-decode"):
            decode_frame(file, read_header(stream), 0)


@pytest.mark.parametrize("ending", ["4.53.dcm", "4.55.dcm"])
def test_progressive_jpeg_equals_sequential(sample_data: Path, ending: str) -> None:
    folder = sample_data / "transfer_syntaxes" / "ge_ct_all"
    (path,), (sequential,) = folder.glob(f"*{ending}"), folder.glob("*4.51.dcm")
    assert np.array_equal(decoded(path)[0], decoded(sequential)[0])


def test_the_data_set_digest_covers_everything_after_the_meta_group(tmp_path: Path, image_file: ImageFile) -> None:
    stream = image_file()
    header = read_header(stream)
    raw = stream.getvalue()[header.dataset_offset :]
    path = tmp_path / "stored.dcm"
    with open(path, "wb") as file:
        writer = DigestWriter(file)
        writer.write_meta(write_file_meta(header.sop_class_uid, header.sop_instance_uid, header.transfer_syntax))
        for start in range(0, len(raw), 7):
            writer.write(memoryview(raw)[start : start + 7])
    expected = hashlib.sha256(raw).hexdigest()
    assert writer.hexdigest() == dataset_sha256(path) == dataset_sha256(stream) == digests(path).dataset == expected
    assert writer.length == len(raw)


def test_the_pixel_digest_is_of_the_encoded_value(image_file: ImageFile, sample_data: Path) -> None:
    stream = image_file()
    header = read_header(stream)
    value = (np.arange(24, dtype="<u2") * 100).tobytes()
    assert pixel_sha256(stream, header) == hashlib.sha256(value).hexdigest()
    path = sample_data / "transfer_syntaxes" / "small" / "MR_small_RLE.dcm"
    with open(path, "rb") as file:
        header = read_header(file)
        found = pixel_sha256(file, header)
    dataset = dcmread(path)
    # pydicom's value ends before the sequence delimiter too.
    assert found == hashlib.sha256(dataset.PixelData).hexdigest()


def test_an_object_without_pixels_has_one_digest(tmp_path: Path, image_file: ImageFile) -> None:
    path = tmp_path / "report.dcm"
    stream = image_file()
    header = read_header(stream)
    path.write_bytes(stream.getvalue()[: (header.pixel_offset or 0) - 12])
    found = digests(path)
    assert found.dataset
    assert found.pixels is None
    assert found.frames is None


def test_one_changed_pixel_changes_all_digests(tmp_path: Path, image_file: ImageFile) -> None:
    path, other = tmp_path / "a.dcm", tmp_path / "b.dcm"
    raw = image_file().getvalue()
    path.write_bytes(raw)
    other.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    before, after = digests(path), digests(other)
    assert before.dataset != after.dataset
    assert before.pixels != after.pixels
    assert before.frames != after.frames


def test_rubbish_above_bits_stored_is_not_part_of_the_image(tmp_path: Path, image_file: ImageFile) -> None:
    values = np.arange(24, dtype="<u2") * 100
    for name, pixels in (("clean", values), ("overlay", values | 0xF000)):
        (tmp_path / name).write_bytes(image_file(PixelData=pixels.astype("<u2").tobytes()).getvalue())
    assert digests(tmp_path / "clean").frames == digests(tmp_path / "overlay").frames
    assert digests(tmp_path / "clean").pixels != digests(tmp_path / "overlay").pixels


def test_big_endian_bytes_in_words_are_put_right(tmp_path: Path, image_file: ImageFile) -> None:
    shape = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Rows": 3, "Columns": 3}
    pixels = bytes(range(9)) + b"\0"
    for name, syntax in (("little", "1.2.840.10008.1.2.1"), ("big", BIG_ENDIAN)):
        (tmp_path / name).write_bytes(image_file(syntax, PixelData=pixels, **shape).getvalue())
    assert digests(tmp_path / "little").frames == digests(tmp_path / "big").frames
    assert digests(tmp_path / "little").pixels != digests(tmp_path / "big").pixels


def test_a_manifest_has_one_root_hash_in_any_order() -> None:
    entries = [("1.2", "aa"), ("1.10", "bb")]
    assert root_hash(entries) == root_hash([*reversed(entries), entries[0]])
    assert root_hash(entries) == hashlib.sha256(b"1.10 bb\n1.2 aa\n").hexdigest()
    assert root_hash(entries) != root_hash([("1.2", "bb"), ("1.10", "aa")])


def encapsulated(image_file: ImageFile, pixels: bytes, count: int, **attributes: object) -> io.BytesIO:
    """A file whose pixel data is the given fragments, in the RLE syntax."""
    bare = image_file(NumberOfFrames=str(count), **attributes)
    header = read_header(bare)
    raw = bare.getvalue()
    body = raw[header.dataset_offset : (header.pixel_offset or 0) - 12]
    element = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + pixels + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return io.BytesIO(write_file_meta(header.sop_class_uid, header.sop_instance_uid, RLE) + body + element)


FRAMES = [b"first!", b"second frame", b"third frame."]


@pytest.mark.parametrize("has_table", [True, False])
@pytest.mark.parametrize("fragments", [1, 2])
def test_fragments_are_joined_by_table_or_by_number(
    tmp_path: Path, image_file: ImageFile, has_table: bool, fragments: int
) -> None:
    path = tmp_path / "frames.dcm"
    pixels = encapsulate(FRAMES, fragments_per_frame=fragments, has_bot=has_table)
    path.write_bytes(encapsulated(image_file, pixels, 3).getvalue())
    header = read_header(io.BytesIO(path.read_bytes()))
    assert (frames.frame_count(header), header.encapsulated) == (3, True)
    if fragments == 2 and not has_table:
        with pytest.raises(PermanentError, match="ambiguous-fragments"):
            frames.frame_bytes(path, header, 1)
        return
    assert [frames.frame_bytes(path, header, n) for n in range(3)] == FRAMES


def test_an_extended_offset_table_is_used(tmp_path: Path, image_file: ImageFile) -> None:
    path = tmp_path / "frames.dcm"
    pixels, offsets, lengths = encapsulate_extended(FRAMES)
    stream = encapsulated(image_file, pixels, 3, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    path.write_bytes(stream.getvalue())
    header = read_header(stream)
    assert frames.frame_bytes(path, header, 1) == FRAMES[1]


def test_jpeg_frames_without_a_table_are_parted_at_their_end_marker(tmp_path: Path, image_file: ImageFile) -> None:
    images = [b"\xff\xd8" + bytes(20) + b"\xff\xd9", b"\xff\xd8" + bytes(30) + b"\xff\xd9"]
    pixels = encapsulate(images, fragments_per_frame=2, has_bot=False)
    path = tmp_path / "frames.dcm"
    path.write_bytes(encapsulated(image_file, pixels, 2).getvalue())
    header = read_header(io.BytesIO(path.read_bytes()))
    assert [frames.frame_bytes(path, header, n) for n in range(2)] == images


def test_a_lying_offset_table_does_not_cut_frames_wrongly(tmp_path: Path, image_file: ImageFile) -> None:
    pixels = bytearray(encapsulate(FRAMES, has_bot=True))
    pixels[12:16] = (3).to_bytes(4, "little")
    path = tmp_path / "frames.dcm"
    path.write_bytes(encapsulated(image_file, bytes(pixels), 3).getvalue())
    header = read_header(io.BytesIO(path.read_bytes()))
    assert [frames.frame_bytes(path, header, n) for n in range(3)] == FRAMES


def test_stored_frames_of_samples_are_what_pydicom_cuts(sample_data: Path) -> None:
    paths = [*(sample_data / "transfer_syntaxes" / "fragments_bot").glob("*not_fragmented*")]
    paths += [*(sample_data / "us_cine").glob("*"), *(sample_data / "xa_rf_nm_pt").glob("*")]
    compared = 0
    for path in paths:
        header = read_header(io.BytesIO(path.read_bytes()))
        if not header.encapsulated:
            continue
        count = frames.frame_count(header)
        theirs = list(generate_frames(dcmread(path).PixelData, number_of_frames=count))
        assert [frames.frame_bytes(path, header, n) for n in range(count)] == theirs, path
        compared += count
    assert compared > 50


def test_frames_outside_the_object_are_refused_by_name(tmp_path: Path, image_file: ImageFile) -> None:
    path = tmp_path / "image.dcm"
    stream = image_file(NumberOfFrames="3")
    path.write_bytes(stream.getvalue())
    header = read_header(stream)
    with pytest.raises(PermanentError, match="no-such-frame"):
        frames.frame_bytes(path, header, 3)
    with pytest.raises(PermanentError, match="no-such-frame"):
        frames.frame_bytes(path, header, -1)
    with pytest.raises(PermanentError, match="truncated"):
        frames.frame_bytes(path, header, 1)


def test_bit_packed_frames_start_on_a_byte(tmp_path: Path, image_file: ImageFile) -> None:
    bits = np.tile(np.array([1, 0, 0], np.uint8), 5)
    pixels = np.packbits(np.concatenate([bits, 1 - bits]), bitorder="little").tobytes()
    shape = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "Rows": 3, "Columns": 5, "NumberOfFrames": "2"}
    path = tmp_path / "mask.dcm"
    path.write_bytes(image_file(PixelData=pixels, **shape).getvalue())
    with open(path, "rb") as file:
        header = read_header(file)
        assert np.array_equal(decode_frame(file, header, 1).ravel(), 1 - bits)


@pytest.mark.parametrize("name", ["2026-05-26-oob-monochrome-46341.dcm", "2026-05-26-oob-monochrome-65535.dcm"])
def test_an_image_larger_than_its_bytes_is_refused_by_name(sample_data: Path, name: str) -> None:
    path = sample_data / "corrupt" / name
    header = read_header(io.BytesIO(path.read_bytes()))
    with pytest.raises(PermanentError, match="truncated"):
        frames.frame_bytes(path, header, 0)
    assert digests(path).frames is None


def test_no_corrupt_sample_breaks_the_digests(sample_data: Path) -> None:
    made = 0
    for path in sorted((sample_data / "corrupt").rglob("*")):
        if path.is_file():
            try:
                header = read_header(io.BytesIO(path.read_bytes()))
            except PermanentError:
                continue
            assert digests(path, header).dataset
            made += 1
    assert made > 10
