"""multipart/related, Accept negotiation and the DICOM JSON Model."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import Dataset

from standards.dicom_json import from_json, to_json
from standards.errors import PermanentError
from standards.media_types import Offer, frame_offers, negotiate, parse
from standards.multipart import OutgoingPart, encode_related, new_boundary, parse_related
from standards.part10 import read_header

TYPE = 'multipart/related; type="application/dicom"; boundary="b0"'
BODIES = st.lists(
    st.lists(st.sampled_from([b"a", b"\r\n", b"--b", b"--b0", b"\r", b"-", b"\n"]), max_size=12), max_size=4
)


class Dribble(io.RawIOBase):
    """A stream that gives few bytes at a time, as a slow client does."""

    def __init__(self, raw: bytes, step: int) -> None:
        self._inner, self._step = io.BytesIO(raw), step

    def read(self, size: int = -1) -> bytes:
        return self._inner.read(min(size, self._step) if size > 0 else self._step)


@given(BODIES, st.integers(1, 50))
def test_parts_come_out_as_they_went_in(pieces: list[list[bytes]], step: int) -> None:
    bodies = [b"".join(part) for part in pieces]
    bodies = [body for body in bodies if b"\r\n--b0" not in b"\r\n" + body]
    sent = b"".join(encode_related([OutgoingPart({"Content-Type": "x/y"}, body) for body in bodies], "b0"))
    received = [(part.content_type, b"".join(part)) for part in parse_related(Dribble(sent, step), TYPE)]
    assert received == [("x/y", body) for body in bodies]


def test_an_unread_part_is_skipped_and_a_preamble_ignored() -> None:
    sent = b"".join(encode_related([OutgoingPart({}, b"one" * 99), OutgoingPart({"A": "b"}, b"two")], "b0"))
    parts = parse_related(io.BytesIO(b"for people\r\n" + sent), TYPE)
    next(parts)
    second = next(parts)
    assert (second.headers, second.read(2), second.read(9), second.read(9)) == ({"a": "b"}, b"tw", b"o", b"")
    assert list(parts) == []


def test_a_long_part_is_never_held_whole() -> None:
    def pieces() -> list[bytes]:
        return [bytes(1 << 16)] * 64

    sent = b"".join(encode_related([OutgoingPart({}, pieces())], "b0"))
    (lengths,) = [[len(piece) for piece in part] for part in parse_related(io.BytesIO(sent), TYPE)]
    assert sum(lengths) == 64 << 16
    assert max(lengths) <= 1 << 16


@given(st.integers(0, 340))
def test_a_message_cut_anywhere_is_truncated(cut: int) -> None:
    sent = b"".join(encode_related([OutgoingPart({"Content-Type": "x/y"}, b"z" * 300)], "b0"))[:-4]
    with pytest.raises(PermanentError, match="truncated"):
        list(parse_related(io.BytesIO(sent[:cut]), TYPE))


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/related", 'multipart/related; boundary="я"']
)
def test_a_message_of_another_type_is_refused(content_type: str) -> None:
    with pytest.raises(PermanentError, match="invalid-multipart"):
        next(parse_related(io.BytesIO(b""), content_type))


def test_endless_headers_are_refused() -> None:
    for header in (b"a" * 40_000, b"a: b\r\n" * 10_000):
        with pytest.raises(PermanentError, match="invalid-multipart"):
            next(parse_related(io.BytesIO(b"--b0\r\n" + header), TYPE))


def test_boundaries_are_new_each_time() -> None:
    assert new_boundary() != new_boundary()


JLS, NATIVE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.1"


@pytest.mark.parametrize(
    ("accept", "syntax", "media"),
    [
        ("multipart/related; type=application/octet-stream; transfer-syntax=*", JLS, "application/octet-stream"),
        ('multipart/related; type="image/jls"', JLS, "image/jls"),
        (
            f"multipart/related; type=application/octet-stream; transfer-syntax={NATIVE}",
            NATIVE,
            "application/octet-stream",
        ),
        ("*/*", JLS, "image/jls"),
        (None, JLS, "image/jls"),
        ('multipart/related; type="image/jls"; q=0.2, multipart/related; type="image/*"', JLS, "image/jls"),
    ],
)
def test_a_viewer_gets_the_frame_it_asks_for(accept: str | None, syntax: str, media: str) -> None:
    offer = negotiate(accept, frame_offers(JLS, decodable=True))
    assert offer is not None
    assert (offer.transfer_syntax, offer.type, offer.multipart) == (syntax, media, True)


def test_without_a_transfer_syntax_the_default_holds() -> None:
    offer = negotiate(
        'multipart/related; type="application/octet-stream"',
        frame_offers(JLS, decodable=True),
        default_transfer_syntax=NATIVE,
    )
    assert offer is not None
    assert offer.transfer_syntax == NATIVE


@pytest.mark.parametrize("accept", ["text/html", "application/dicom+json;q=0", "nonsense", "image/gif, text/*"])
def test_what_cannot_be_given_is_406(accept: str) -> None:
    assert negotiate(accept, [Offer("application/dicom+json")]) is None


def test_quality_decides_and_then_the_clients_order() -> None:
    offers = [Offer("image/jpeg"), Offer("image/png")]
    assert negotiate("image/jpeg;q=0.5, image/png;q=0.9", offers) == offers[1]
    assert negotiate("image/png, image/jpeg", offers) == offers[1]
    assert negotiate("image/*", offers) == offers[0]
    assert negotiate("*/*;q=0.1, image/png;q=0.2", offers) == offers[1]


@given(st.text(max_size=60))
def test_no_header_crashes_the_parser(text: str) -> None:
    for media in parse(text):
        assert "/" in media.type
        assert 0 <= media.q <= 1


def test_a_data_set_becomes_json_and_comes_back() -> None:
    inner = Dataset()
    inner.CodeValue = "Т-1"
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 144"
    dataset.PatientName = "Щёголев^Пётр=山田"
    dataset.PatientID = "К-1"
    dataset.Rows = 4
    dataset.SliceThickness = "1.5"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.FrameIncrementPointer = 0x00181063
    dataset.AccessionNumber = ""
    dataset.ConceptNameCodeSequence = [inner]
    dataset.add_new(0x00420011, "OB", b"%PDF")
    model = to_json(dataset)
    assert model["00080005"] == {"vr": "CS", "Value": ["ISO_IR 192"]}
    assert model["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Щёголев^Пётр", "Ideographic": "山田"}]}
    assert model["00280009"]["Value"] == ["00181063"]
    assert model["00080050"] == {"vr": "SH"}
    assert model["00420011"]["InlineBinary"] == "JVBERg=="
    assert list(model) == sorted(model)
    back = from_json(json.dumps(model))
    assert str(back.PatientName) == "Щёголев^Пётр=山田"
    assert (back.Rows, back.SliceThickness, back.ImageType) == (4, 1.5, ["ORIGINAL", "PRIMARY"])
    assert back.ConceptNameCodeSequence[0].CodeValue == "Т-1"
    assert to_json(back) == model


def test_bulk_data_is_named_by_its_place() -> None:
    inner = Dataset()
    inner.add_new(0x00420011, "OB", b"12345678")
    dataset = Dataset()
    dataset.ConceptNameCodeSequence = [inner]
    seen = []

    def uri(path: str, length: int) -> str:
        seen.append((path, length))
        return f"https://example.org/bulk/{path}"

    model = to_json(dataset, uri, extra={"7FE00010": {"vr": "OW", "BulkDataURI": "https://example.org/p"}})
    assert seen == [("0040A043/0/00420011", 8)]
    assert model["0040A043"]["Value"][0]["00420011"]["BulkDataURI"].endswith("0040A043/0/00420011")
    assert model["7FE00010"]["BulkDataURI"] == "https://example.org/p"


def test_a_broken_value_is_noted_and_the_rest_is_given(image_file: Callable[..., io.BytesIO]) -> None:
    raw = image_file(InstanceNumber="12345678").getvalue().replace(b"12345678", b"12abc678")
    notes: list[str] = []
    model = to_json(read_header(io.BytesIO(raw)).dataset, notes=notes)
    assert model["00200013"] == {"vr": "IS"}
    assert model["00100020"]["Value"] == ["К-1"]
    assert [note.split(":")[0] for note in notes] == ["00200013"]


def test_binary_values_are_little_endian_whatever_the_file(image_file: Callable[..., io.BytesIO]) -> None:
    def table(syntax: str, raw: bytes) -> str:
        lut = Dataset()
        lut.LUTDescriptor = [2, 0, 16]
        lut.add_new(0x00283006, "OW", raw)
        header = read_header(image_file(syntax, VOILUTSequence=[lut]))
        model = to_json(header.dataset)["00283010"]["Value"][0]["00283006"]
        return str(model["InlineBinary"])

    assert table("1.2.840.10008.1.2.2", b"\1\2\3\4") == table(NATIVE, b"\2\1\4\3")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"0010": {"vr": "PN"}}', '{"00100010": 5}', '{"x": {"vr": "PN"}}'])
def test_json_that_is_no_data_set_is_refused(text: str) -> None:
    with pytest.raises(PermanentError, match="invalid-dicom-json"):
        from_json(text)


def test_json_nested_without_end_is_refused() -> None:
    for depth in (70, 5000):
        text = '{"00400275":{"vr":"SQ","Value":[' * depth + "{}" + "]}}" * depth
        with pytest.raises(PermanentError, match="invalid-dicom-json"):
            from_json(text)


@settings(deadline=None)
@given(st.recursive(st.none() | st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner)))
def test_no_json_crashes_the_reader(model: object) -> None:
    # Whatever the value is, it is no element: it has no "vr" that the model knows.
    with pytest.raises(PermanentError, match="invalid-dicom-json"):
        from_json(json.dumps({"00100010": model}))


def test_every_sample_has_a_json_that_agrees_with_pydicom(sample_data: Path) -> None:
    compared = 0
    for folder in ("sr_pdf_ps", "charsets", "us_cine", "rt"):
        for path in sorted((sample_data / folder).rglob("*.dcm")):
            header = read_header(io.BytesIO(path.read_bytes()), required=())
            notes: list[str] = []
            model = json.loads(json.dumps(to_json(header.dataset, notes=notes), allow_nan=False))
            theirs = dcmread(path, stop_before_pixels=True)
            for element in theirs:
                name = f"{element.tag:08X}"
                if element.VR in ("LO", "SH", "UI", "DA", "CS") and element.VM == 1 and not element.tag.is_private:
                    if name == "00080005" or "�" in str(element.value):
                        continue
                    assert str(model[name]["Value"][0]) == str(element.value), (path, name)
                    compared += 1
    assert compared > 500
