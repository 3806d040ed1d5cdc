"""Discs that come in: every file is accounted for, whatever its state."""

import collections
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest
from pydicom import dcmread

from publishing.contract import DiscReport
from publishing.dicomdir import Record, encode, instance_keys, keys_of
from publishing.read import FoundFile, read_disc
from standards.errors import PermanentError
from standards.uids import new_uid
from tests.unit.publishing.made_up import ct_slice, save


def statuses(found: list[FoundFile]) -> dict[str, tuple[str, str]]:
    return {one.path: (one.status, one.code) for one in found}


@pytest.fixture
def folder(disc_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(disc_folder, tmp_path / "disc"))


def as_zip(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            if path.is_file():
                archive.write(path, path.relative_to(folder).as_posix())
    return target


def test_our_own_disc_reads_the_same_as_folder_image_and_archive(
    disc: DiscReport, disc_folder: Path, tmp_path: Path
) -> None:
    from_folder, from_image = read_disc(disc_folder), read_disc(disc.output)
    from_zip = read_disc(as_zip(disc_folder, tmp_path / "disc.zip"))
    assert statuses(from_folder) == statuses(from_image) == statuses(from_zip)
    good = {one.path: one for one in from_image if one.status == "ok"}
    assert good.keys() == {entry.file_id for entry in disc.manifest}
    for entry in disc.manifest:
        one = good[entry.file_id]
        assert (one.sop_instance_uid, one.dataset_digest) == (entry.sop_instance_uid, entry.dataset_digest)
        assert one.in_dicomdir
        assert one.patient_name == "Щёголев-Ящуржинский Пётр Ёжикович"
    assert len(from_image) == disc.files


def test_instances_are_taken_out_under_names_of_our_own(disc: DiscReport, tmp_path: Path) -> None:
    found = read_disc(disc.output, extract_to=tmp_path / "out")
    taken = [one for one in found if one.local]
    assert len(taken) == disc.instances
    for one in taken:
        assert one.local is not None
        assert one.local.parent == tmp_path / "out"
        assert dcmread(one.local).SOPInstanceUID == one.sop_instance_uid


def test_damaged_missing_and_doubled_files_are_each_named(folder: Path, disc: DiscReport) -> None:
    first, second, third, fourth = (entry.file_id for entry in disc.manifest[:4])
    (folder / "IHE_PDI" / "MANIFEST.TXT").unlink()
    content = (folder / first).read_bytes()
    (folder / first).write_bytes(content[: len(content) // 2])
    (folder / second).unlink()
    shutil.copy(folder / third, folder / "DICOM" / "ZCOPY")
    changed = dcmread(folder / fourth)
    changed.PatientComments = "another content"
    changed.save_as(folder / "DICOM" / "ZOTHER")
    said = statuses(read_disc(folder))
    assert said[first] == ("corrupt", "truncated")
    assert said[second] == ("missing", "not-on-disc")
    assert said["DICOM/ZCOPY"] == ("duplicate", "same-instance")
    assert said["DICOM/ZOTHER"] == ("ok", "conflicting-instance")
    assert said["README.TXT"] == ("unsupported", "not-dicom")
    assert said["DICOMDIR"] == ("unsupported", "media-directory")


def test_one_flipped_bit_in_a_pixel_is_noticed_by_our_manifest(folder: Path, disc: DiscReport) -> None:
    victim = disc.manifest[random.randrange(disc.instances)].file_id
    content = bytearray((folder / victim).read_bytes())
    content[-5] ^= 1
    (folder / victim).write_bytes(content)
    bad = {path: said for path, said in statuses(read_disc(folder)).items() if said[0] == "corrupt"}
    assert bad == {victim: ("corrupt", "digest-mismatch")}


def test_a_file_that_only_the_manifest_names_is_missing(folder: Path) -> None:
    (folder / "IHE_PDI" / "STYLE.CSS").unlink()
    assert statuses(read_disc(folder))["IHE_PDI/STYLE.CSS"] == ("missing", "not-on-disc")


def test_a_zip_slip_is_refused_and_writes_nothing_outside(tmp_path: Path) -> None:
    good = save(ct_slice(new_uid(), new_uid(), 1), tmp_path / "good.dcm")
    names = ["../evil.dcm", "/absolute.dcm", "C:/windows.dcm", "a/../../evil.dcm", "fine/good.dcm"]
    with zipfile.ZipFile(tmp_path / "disc.zip", "w") as archive:
        for name in names:
            archive.writestr(name, good.read_bytes())
    out = tmp_path / "deep" / "out"
    said = statuses(read_disc(tmp_path / "disc.zip", extract_to=out))
    assert said.pop("fine/good.dcm") == ("ok", "")
    assert set(said.values()) == {("unsupported", "unsafe-path")}
    assert len(said) == 4
    assert [path.name for path in (tmp_path / "deep").rglob("*") if path.is_file()] == ["00000004.dcm"]


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "disc.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(64 << 20))
        archive.writestr("letter.txt", "hello")
    said = statuses(read_disc(tmp_path / "disc.zip"))
    assert said == {"bomb": ("corrupt", "suspicious-compression"), "letter.txt": ("unsupported", "not-dicom")}


def test_a_dicomdir_that_points_out_of_the_disc_is_refused(tmp_path: Path) -> None:
    header = ct_slice(new_uid(), new_uid(), 1)
    leaf = Record(instance_keys(header, "../SECRET", "1.2.840.10008.1.2.1", number=1))
    series = Record(keys_of("SERIES", header), [leaf])
    patient = Record(keys_of("PATIENT", header), [Record(keys_of("STUDY", header), [series])])
    (tmp_path / "disc").mkdir()
    (tmp_path / "disc" / "DICOMDIR").write_bytes(encode([patient], "EVIL"))
    save(header, tmp_path / "SECRET")
    said = statuses(read_disc(tmp_path / "disc"))
    assert said["../SECRET"] == ("unsupported", "unsafe-path")


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    secret = save(ct_slice(new_uid(), new_uid(), 1), tmp_path / "secret.dcm")
    (tmp_path / "disc").mkdir()
    os.symlink(secret, tmp_path / "disc" / "LINK")
    said = statuses(read_disc(tmp_path / "disc"))
    assert said == {"LINK": ("corrupt", "unsafe-path")}


def test_a_broken_directory_does_not_hide_the_files(folder: Path, disc: DiscReport) -> None:
    (folder / "IHE_PDI" / "MANIFEST.TXT").unlink()
    directory = (folder / "DICOMDIR").read_bytes()
    (folder / "DICOMDIR").write_bytes(directory[: len(directory) // 2])
    found = read_disc(folder)
    assert collections.Counter(one.status for one in found)["ok"] == disc.instances
    assert statuses(found)["DICOMDIR"][0] == "corrupt"


def test_what_is_no_disc_at_all_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="not-found"):
        read_disc(tmp_path / "nowhere")
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(PermanentError, match="not-an-image"):
        read_disc(tmp_path / "letter.txt")


def test_foreign_discs_are_accounted_for(sample_data: Path) -> None:
    incomplete = read_disc(sample_data / "dicomdir" / "nema_wg04_rle_incomplete_disc")
    counts = collections.Counter(one.status for one in incomplete)
    assert (counts["ok"], counts["missing"]) == (7, 13)
    for folder in ("dicomdir/pydicom", "dicomdir/clunie_charsets_disc", "corrupt"):
        files = [path for path in (sample_data / folder).rglob("*") if path.is_file()]
        found = [one for one in read_disc(sample_data / folder) if one.status != "missing"]
        assert len(found) == len(files)
