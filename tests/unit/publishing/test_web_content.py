"""Frames, documents and pages for the viewer."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from pydicom import dcmread

from publishing.build import build_disc
from publishing.contract import DiscOptions, DiscReport
from publishing.documents import encapsulated_pdf, report_html
from publishing.frames import frames_of, pack
from publishing.image import ImageReader
from standards.uids import new_uid
from tests.unit.publishing.made_up import ct_slice, pdf_report, save, text_report, us_cine

Pixels = NDArray[Any]


def unpack(packed: str, like: Pixels) -> Pixels:
    """The inverse of ``pack``, written down from its description; the browser's own is held to it in the e2e test."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8)
    if like.ndim == 3:
        planes = raw.reshape(3, *like.shape[:2])
        return np.stack([unpredicted(plane, 0xFF) for plane in planes], axis=-1).astype(np.uint8)
    if like.dtype.itemsize == 1:
        return unpredicted(raw.reshape(like.shape), 0xFF).astype(np.uint8)
    size = like.size
    zigzag = raw[:size].astype(np.int64) | (raw[size:].astype(np.int64) << 8)
    words = unpredicted(((zigzag >> 1) ^ -(zigzag & 1)).reshape(like.shape), 0xFFFF)
    return (words - 0x8000 if like.dtype.kind == "i" else words).astype(like.dtype)


def unpredicted(errors: Pixels, mask: int) -> Pixels:
    out = np.zeros((errors.shape[0] + 1, errors.shape[1] + 1), np.int64)
    for y, x in np.ndindex(errors.shape):
        west, north, corner = out[y + 1, x], out[y, x + 1], out[y, x]
        guess = sorted((west, north, west + north - corner))[1]  # the median, which the edge detector is named after
        out[y + 1, x + 1] = (int(errors[y, x]) + guess) & mask
    return out[1:, 1:]


shapes = array_shapes(min_dims=2, max_dims=2, max_side=9)


@given(arrays(np.uint8, shapes) | arrays(np.uint16, shapes) | arrays(np.int16, shapes))
def test_every_grey_frame_unpacks_to_itself(values: Pixels) -> None:
    assert np.array_equal(unpack(pack(values), values), values)


@given(arrays(np.uint8, shapes.map(lambda shape: (*shape, 3))))
def test_every_colour_frame_unpacks_to_itself(values: Pixels) -> None:
    assert np.array_equal(unpack(pack(values), values), values)


def test_a_cine_loop_gives_its_frames_in_colour(tmp_path: Path) -> None:
    frames = list(frames_of(dcmread(save(us_cine(new_uid()), tmp_path / "us.dcm"))))
    assert len(frames) == 5
    assert [frame.values[12, 6 + 5 * number].tolist() for number, frame in enumerate(frames)] == [[200, 80, 20]] * 5


def test_a_slice_comes_with_its_window_spacing_and_slope(tmp_path: Path) -> None:
    (frame,) = frames_of(dcmread(save(ct_slice(new_uid(), new_uid(), 1), tmp_path / "ct.dcm")))
    assert frame.info["window"] == (40.0, 400.0)
    assert frame.info["spacing"] == [1.0, 1.0]
    assert frame.info["signed"]
    assert frame.values.min() == -1000


def test_an_image_without_a_window_gets_one_from_its_values(tmp_path: Path) -> None:
    ds = ct_slice(new_uid(), new_uid(), 1)
    del ds.WindowCenter, ds.WindowWidth
    (frame,) = frames_of(dcmread(save(ds, tmp_path / "ct.dcm")))
    centre, width = frame.info["window"]
    assert centre - width / 2 == pytest.approx(-1000, abs=5)
    assert centre + width / 2 == pytest.approx(46, abs=5)


def test_a_report_becomes_text_that_cannot_run() -> None:
    page = report_html(text_report(new_uid()))
    assert "Очаговых изменений не выявлено" in page
    assert "<b>&" not in page
    assert "&lt;b&gt;&amp; всё ясно" in page


def test_a_pdf_is_taken_out_without_its_padding() -> None:
    document = encapsulated_pdf(pdf_report(new_uid()))
    assert document is not None
    assert document.endswith(b"%%EOF\n")


def test_a_file_that_only_says_it_is_a_pdf_is_not_put_on_the_disc() -> None:
    ds = pdf_report(new_uid())
    ds.EncapsulatedDocument = b"<script>alert(1)</script>"
    assert encapsulated_pdf(ds) is None


def test_the_index_of_the_viewer_names_patient_series_and_documents(disc: DiscReport, disc_folder: Path) -> None:
    script = (disc_folder / "IHE_PDI" / "INDEX.JS").read_text("ascii")
    content = json.loads(script.removeprefix("regis.index(").removesuffix(");\n"))
    (patient,) = content["patients"]
    (study,) = patient["studies"]
    assert patient["name"] == "Щёголев-Ящуржинский Пётр Ёжикович"
    assert [(stack["modality"], stack["count"]) for stack in study["stacks"]] == [("CT", 6), ("US", 5)]
    assert study["stacks"][1]["rate"] == 25
    assert [document["title"] for document in study["documents"]] == [
        "Описание исследования",
        "Заключение рентгенолога",
    ]
    for stack in study["stacks"]:
        assert stack["chunks"][0][:2] == [0, 1]
        assert all((disc_folder / chunk[2]).is_file() for chunk in stack["chunks"])


def test_hostile_names_stay_text_in_every_page(tmp_path: Path) -> None:
    ds, report = ct_slice(new_uid(), new_uid(), 1), text_report(new_uid())
    for each in (ds, report):
        each.PatientName = "<script>alert(1)</script>^{{X}}"
        each.StudyDescription = "</script><img src=x>"
    save(ds, tmp_path / "source" / "1.dcm")
    save(report, tmp_path / "source" / "2.dcm")
    options = DiscOptions(institution="<script>{{COUNT}}</script>")
    made = build_disc([tmp_path / "source"], tmp_path / "disc.iso", options=options)
    with ImageReader(made.output) as image:
        for name in ("INDEX.HTM", "IHE_PDI/REPORT01.HTM"):
            page = image.read(name).decode()
            assert "<script>alert" not in page
            assert "<script>{{" not in page
            assert "<img" not in page
        assert "&lt;script&gt;{{COUNT}}&lt;/script&gt;" in image.read("INDEX.HTM").decode()
