"""What goes on a disc, in which form, and what is refused by name."""

import hashlib
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders.base import get_encoder
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from publishing.build import build_disc
from publishing.contract import CAPACITY, DiscOptions, DiscReport, Progress
from publishing.image import ImageReader
from publishing.instance import load, write
from standards.errors import PermanentError, RegisError
from standards.uids import new_uid
from tests.unit.publishing.made_up import PDF, ct_slice, save, us_cine


def test_the_disc_holds_what_ihe_pdi_asks_for_under_8_3_names(disc: DiscReport, disc_folder: Path) -> None:
    names = {path.relative_to(disc_folder).as_posix() for path in disc_folder.rglob("*") if path.is_file()}
    assert {"DICOMDIR", "README.TXT", "INDEX.HTM", "IHE_PDI/VIEWER.JS", "IHE_PDI/INDEX.JS"} <= names
    assert disc.instances == 9
    for name in names:
        parts = name.split("/")
        assert len(parts) <= 8
        for part in parts:
            stem, _, extension = part.partition(".")
            assert 0 < len(stem) <= 8
            assert len(extension) <= 3
            assert all(char.isdigit() or char.isupper() or char == "_" for char in stem + extension)
        if parts[0] == "DICOM":
            assert dcmread(disc_folder / name).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
            assert "." not in parts[-1]


def test_the_readme_is_plain_ascii_and_names_institution_contact_and_maker(disc_folder: Path) -> None:
    readme = (disc_folder / "README.TXT").read_bytes()
    assert readme.isascii()
    assert b"\r\n" in readme
    for wanted in (b'Bolnitsa "Vymysel"', b"tel. 000", b"Regis", b"not for", b"INDEX.HTM"):
        assert wanted in readme


def test_an_instance_that_is_already_explicit_little_endian_keeps_every_byte(disc: DiscReport) -> None:
    assert all(entry.dataset_digest == entry.source_digest for entry in disc.manifest)


def test_the_report_names_the_image_by_size_and_digest(disc: DiscReport) -> None:
    content = disc.output.read_bytes()
    assert (disc.size, disc.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_joliet_and_udf_lead_to_the_same_files(disc: DiscReport) -> None:
    with ImageReader(disc.output) as image:
        assert set(image.names("iso")) == set(image.names("joliet")) == set(image.names("udf"))


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless],
    ids=lambda uid: uid.name,
)
def test_every_lossless_encoding_becomes_explicit_little_endian_with_the_same_pixels(
    syntax: str, tmp_path: Path
) -> None:
    original = ct_slice(new_uid(), new_uid(), 3)
    pixels = np.frombuffer(original.PixelData, "<i2").reshape(64, 64)
    if syntax in (JPEG2000Lossless, JPEGLSLossless, RLELossless):
        original.file_meta = dcmread(save(original, tmp_path / "plain.dcm")).file_meta
        original.compress(syntax, generate_instance_uid=False)
        (tmp_path / "plain.dcm").unlink()
    source = save(original, tmp_path / "source" / "one.dcm", syntax)
    report = build_disc([source], tmp_path / "disc.iso")
    with ImageReader(report.output) as image:
        (tmp_path / "back.dcm").write_bytes(image.read(report.manifest[0].file_id))
    back = dcmread(tmp_path / "back.dcm")
    assert back.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(back.pixel_array, pixels)
    assert str(back.PatientName) == str(original.PatientName)
    assert back.SOPInstanceUID == original.SOPInstanceUID


def test_big_endian_words_are_turned_round(tmp_path: Path) -> None:
    ds = ct_slice(new_uid(), new_uid(), 3)
    pixels = np.frombuffer(ds.PixelData, "<i2").reshape(64, 64)
    ds.PixelData = pixels.astype(">i2").tobytes()
    report = build_disc([save(ds, tmp_path / "source.dcm", ExplicitVRBigEndian)], tmp_path / "disc.iso")
    with ImageReader(report.output) as image:
        (tmp_path / "back.dcm").write_bytes(image.read(report.manifest[0].file_id))
    assert np.array_equal(dcmread(tmp_path / "back.dcm").pixel_array, pixels)


def test_a_dvd_keeps_jpeg_2000_and_a_cd_does_not(tmp_path: Path) -> None:
    ds = ct_slice(new_uid(), new_uid(), 1)
    save(ds, tmp_path / "plain.dcm")
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    source = save(ds, tmp_path / "j2k.dcm", JPEG2000Lossless)
    on = {
        medium: build_disc([source], tmp_path / f"{medium}.iso", options=DiscOptions(medium=medium))
        for medium in ("cd", "dvd")
    }
    assert on["cd"].manifest[0].transfer_syntax_uid == ExplicitVRLittleEndian
    assert on["dvd"].manifest[0].transfer_syntax_uid == JPEG2000Lossless


def test_bad_sources_are_named_and_the_rest_goes_on(study_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(study_folder, source)
    whole = (source / "us.dcm").read_bytes()
    (source / "us.dcm").write_bytes(whole[:-1000])
    (source / "letter.txt").write_text("not an image")
    video = us_cine(new_uid())
    video.PixelData = encapsulate([b"\0\0\x01\xb3"])
    video["PixelData"].is_undefined_length = True
    save(video, source / "video.dcm", MPEG2MPML)
    twin = dcmread(source / "ct" / "slice-1.dcm")
    twin.PatientComments = "changed afterwards"
    twin.save_as(source / "ct" / "slice-1-changed.dcm")
    shutil.copy(source / "ct" / "slice-2.dcm", source / "ct" / "slice-2-again.dcm")
    report = build_disc([source, tmp_path / "nowhere"], tmp_path / "disc.iso")
    assert {(item.path.name, item.code) for item in report.rejected} == {
        ("us.dcm", "truncated"),
        ("letter.txt", "not-dicom"),
        ("video.dcm", "video-not-allowed"),
        ("slice-1.dcm", "conflicting-instance"),
        ("nowhere", "not-found"),
    }
    assert [path.name for path in report.duplicates] == ["slice-2.dcm"]
    assert report.instances == 8


def test_a_disc_of_nothing_usable_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "letter.txt").write_text("not an image")
    output = tmp_path / "out" / "disc.iso"
    with pytest.raises(PermanentError, match=r"nothing-to-publish.*letter\.txt: not-dicom"):
        build_disc([tmp_path / "source"], output)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("capacity", [20_000, 90_000, 300_000])
def test_a_disc_larger_than_its_medium_is_refused_with_advice_and_leaves_nothing(
    capacity: int, study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CAPACITY, "cd", capacity)
    output = tmp_path / "out" / "disc.iso"
    with pytest.raises(PermanentError, match=r"disc-too-large: \d MB are needed, a CD holds \d MB; a DVD") as failure:
        build_disc([study_folder], output)
    assert failure.value.code == "disc-too-large"
    assert list(output.parent.iterdir()) == []


def test_an_older_disc_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    output = tmp_path / "disc.iso"
    output.write_bytes(b"the disc of yesterday")
    with pytest.raises(RegisError):
        build_disc([], output)
    assert output.read_bytes() == b"the disc of yesterday"


def test_a_pdf_report_is_on_the_disc_as_a_page(study_folder: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "signed.pdf"
    pdf.write_bytes(PDF)
    report = build_disc([study_folder / "ct"], tmp_path / "disc.iso", options=DiscOptions(reports=(pdf,)))
    with ImageReader(report.output) as image:
        assert image.read("IHE_PDI/REPORT01.PDF") == PDF
        assert "IHE_PDI/REPORT01.PDF" in image.read("INDEX.HTM").decode()


def test_a_report_given_as_an_instance_is_on_the_disc_as_dicom_and_as_a_page(
    study_folder: Path, tmp_path: Path
) -> None:
    options = DiscOptions(reports=(study_folder / "report-pdf.dcm",))
    report = build_disc([study_folder / "ct"], tmp_path / "disc.iso", options=options)
    assert report.instances == 7
    with ImageReader(report.output) as image:
        assert image.read("IHE_PDI/REPORT01.PDF") == PDF


def test_a_disc_is_not_made_without_the_report_it_was_ordered_with(study_folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "signed.pdf"
    broken.write_bytes(b"half a repo")
    with pytest.raises(PermanentError, match=r"report-unusable: signed\.pdf"):
        build_disc([study_folder], tmp_path / "disc.iso", options=DiscOptions(reports=(broken,)))


def test_two_patients_under_one_study_uid_stay_two_patients(tmp_path: Path) -> None:
    study = new_uid()
    first, second = ct_slice(study, new_uid(), 1), ct_slice(study, new_uid(), 1)
    second.PatientName = "Вымышленная^Анна"
    save(first, tmp_path / "source" / "1.dcm")
    save(second, tmp_path / "source" / "2.dcm")
    report = build_disc([tmp_path / "source"], tmp_path / "disc.iso")
    assert {entry.file_id.split("/")[1] for entry in report.manifest} == {"PA000001", "PA000002"}


def test_progress_goes_through_every_step(study_folder: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    build_disc([study_folder], tmp_path / "disc.iso", progress=seen.append)
    assert list(dict.fromkeys(item.step for item in seen)) == ["reading", "viewer", "writing", "verifying"]
    assert all(0 <= item.done <= item.total for item in seen)


def test_the_label_says_whose_disc_it_is_and_what_is_on_it(disc: DiscReport) -> None:
    assert disc.label.splitlines()[0] == "Щёголев-Ящуржинский Пётр Ёжикович"
    assert "20.11.2026 КТ грудной клетки" in disc.label
    assert disc.label.splitlines()[-1] == "DICOM PLUS WEB"


def test_text_that_is_not_in_its_declared_character_set_keeps_its_bytes(tmp_path: Path) -> None:
    ds = ct_slice(new_uid(), new_uid(), 1)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.StudyDescription = "PLACEHOLDER!"
    source = save(ds, tmp_path / "source.dcm", ImplicitVRLittleEndian)
    mislabelled = "Голова 12345".encode("cp1251")
    source.write_bytes(source.read_bytes().replace(b"PLACEHOLDER!", mislabelled))
    report = build_disc([source], tmp_path / "disc.iso")
    with ImageReader(report.output) as image:
        assert mislabelled in image.read(report.manifest[0].file_id)
        directory = dcmread(io.BytesIO(image.read("DICOMDIR")))
    assert directory.DirectoryRecordSequence[1].StudyDescription == "Голова 12345"


def test_compressed_one_bit_frames_are_packed_eight_to_a_byte_again(tmp_path: Path) -> None:
    frames = np.random.default_rng(5).integers(0, 2, (3, 65, 67), np.uint8)
    ds = ct_slice(new_uid(), new_uid(), 1)
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    ds.Rows, ds.Columns, ds.NumberOfFrames = 65, 67, 3
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    encoder = get_encoder(JPEG2000Lossless)
    ds.PixelData = encapsulate([encoder.encode(frame, **_grey_bytes(frame)) for frame in frames])
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    report = build_disc([save(ds, tmp_path / "seg.dcm", JPEG2000Lossless)], tmp_path / "disc.iso")
    with ImageReader(report.output) as image:
        back = dcmread(io.BytesIO(image.read(report.manifest[0].file_id)))
    assert len(back.PixelData) == 1634  # 13065 bits, even
    assert np.array_equal(back.pixel_array, frames)


def _grey_bytes(frame: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "rows": frame.shape[0],
        "columns": frame.shape[1],
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": 8,
        "bits_stored": 8,
        "pixel_representation": 0,
        "number_of_frames": 1,
        "encoding_plugin": "pylibjpeg",
    }


def test_a_full_disk_is_a_transient_error_and_leaves_nothing(study_folder: Path, tmp_path: Path) -> None:
    # A file size limit is the nearest thing to a full disk that every test machine has.
    script = (
        "import resource, signal, sys; from pathlib import Path; from publishing.build import build_disc\n"
        "from standards.errors import TransientError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try: build_disc([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "except TransientError as error: print(error.code)\n"
    )
    output = tmp_path / "out" / "disc.iso"
    done = subprocess.run(
        [sys.executable, "-c", script, str(study_folder), str(output)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "disk-full"
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("folder", ["charsets", "us_cine", "priors_fruit_ct_mr_sr", "sr_pdf_ps", "mr/single"])
def test_real_studies_go_on_a_disc_and_what_cannot_is_named(folder: str, sample_data: Path, tmp_path: Path) -> None:
    report = build_disc([sample_data / folder], tmp_path / "disc.iso")
    files = [path for path in (sample_data / folder).rglob("*") if path.is_file()]
    assert report.instances + len(report.rejected) + len(report.duplicates) == len(files)
    assert {item.code for item in report.rejected} <= {"not-dicom", "missing-uid", "conflicting-instance"}
    assert report.instances >= len(files) * 0.8


@pytest.mark.parametrize("folder", ["ge_ct_all", "colour", "small"])
def test_real_encodings_come_out_with_the_pixels_that_went_in(folder: str, sample_data: Path, tmp_path: Path) -> None:
    refused: dict[str, str] = {}
    checked = 0
    for path in sorted((sample_data / "transfer_syntaxes" / folder).iterdir()):
        try:
            write(load(path, path.read_bytes(), "cd"), tmp_path / "back.dcm")
        except PermanentError as error:
            refused[path.name] = error.code
            continue
        source, back = dcmread(path), dcmread(tmp_path / "back.dcm")
        assert back.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
        assert np.array_equal(source.pixel_array, back.pixel_array), path.name
        checked += 1
    assert set(refused.values()) <= {"missing-uid", "invalid-vr", "undecodable-pixels"}
    assert checked >= 8
