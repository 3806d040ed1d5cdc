"""The directory: right offsets, the same tree as DCMTK writes, accepted by the validators."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from publishing.build import build_disc
from publishing.contract import DiscReport
from publishing.dicomdir import Record, encode, keys_of, record_type
from publishing.verify import directory_entries
from standards.uids import new_uid
from tests.unit.publishing.made_up import PATIENT, ct_slice, save


def peer(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, timeout=60, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def by_file(path: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    directory = dcmread(path)
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    above: dict[str, dict[str, Any]] = {}
    for record in directory.DirectoryRecordSequence:
        keys = {element.keyword: element.value for element in record if element.tag.group != 4}
        kind = record.DirectoryRecordType
        if kind in ("PATIENT", "STUDY", "SERIES"):
            above[kind] = keys
        else:
            keys = {**above["PATIENT"], **above["STUDY"], **above["SERIES"], **keys}
            found["/".join(record.ReferencedFileID)] = (kind, keys)
    return found


def test_following_the_offsets_leads_to_every_instance(disc: DiscReport, disc_folder: Path) -> None:
    records = directory_entries((disc_folder / "DICOMDIR").read_bytes())
    assert {"/".join(r.ReferencedFileID): r.ReferencedSOPInstanceUIDInFile for r in records} == {
        entry.file_id: entry.sop_instance_uid for entry in disc.manifest
    }
    kinds = sorted(record.DirectoryRecordType for record in records)
    assert kinds == ["ENCAP DOC", *["IMAGE"] * 7, "SR DOCUMENT"]


def test_the_patient_record_carries_its_character_set(disc_folder: Path) -> None:
    patient = dcmread(disc_folder / "DICOMDIR").DirectoryRecordSequence[0]
    assert patient.SpecificCharacterSet == "ISO_IR 144"
    assert patient.PatientName == PATIENT


def test_a_name_that_its_declared_set_cannot_hold_is_written_in_unicode() -> None:
    header = ct_slice(new_uid(), new_uid(), 1)
    header.SpecificCharacterSet = "ISO_IR 100"
    keys = keys_of("PATIENT", header)
    assert (keys.SpecificCharacterSet, str(keys.PatientName)) == ("ISO_IR 192", PATIENT)


def test_what_the_directory_requires_and_a_file_lacks_is_made_up() -> None:
    header = Dataset()
    header.StudyInstanceUID = new_uid()
    header.SeriesDate, header.SeriesTime = "1999.05.24", "10:52:34"
    header.AcquisitionDate = "19990525"
    study = keys_of("STUDY", header)
    assert (study.StudyDate, study.StudyTime, study.StudyID) == ("19990525", "000000", "1")
    assert keys_of("PATIENT", header, number=7).PatientID == "NOID000007"


def test_an_offset_that_leads_in_a_circle_is_noticed() -> None:
    study = Record(keys_of("STUDY", ct_slice(new_uid(), new_uid(), 1)))
    content = encode([Record(keys_of("PATIENT", ct_slice(new_uid(), new_uid(), 1)), [study])], "TEST")
    first = int(dcmread(io.BytesIO(content)).OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity)
    lower = first + 8 + 12 + 10 + 8  # the value of (0004,1420) in the first record
    circle = content[:lower] + first.to_bytes(4, "little") + content[lower + 4 :]
    with pytest.raises(Exception, match=r"corrupt-dicomdir.*comes twice"):
        directory_entries(circle)


def test_the_tree_is_the_one_dcmmkdir_writes(disc_folder: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "DICOMDIR"
    run(peer("dcmmkdir"), "+id", ".", "+r", "DICOM", "+D", str(theirs), cwd=disc_folder)
    ours, reference = by_file(disc_folder / "DICOMDIR"), by_file(theirs)
    assert ours.keys() == reference.keys()
    for file_id, (kind, keys) in reference.items():
        assert ours[file_id][0] == kind
        for keyword, value in keys.items():
            assert ours[file_id][1].get(keyword) == value, (file_id, keyword)


def test_dciodvfy_finds_no_error_in_the_directory(disc_folder: Path) -> None:
    said = run(peer("dciodvfy"), "DICOMDIR", cwd=disc_folder)
    assert "BasicDirectory" in said
    assert "Error" not in said, said


def test_dcentvfy_finds_directory_and_files_of_one_mind(disc: DiscReport, disc_folder: Path) -> None:
    said = run(peer("dcentvfy"), "DICOMDIR", *(entry.file_id for entry in disc.manifest), cwd=disc_folder)
    assert "Error" not in said, said
    # It also warns that its own model gives Accession Number to two entities, which is not about the files.
    assert "Different values" not in said, said


def test_dciodvfy_accepts_the_instances_as_it_does_their_sources(disc: DiscReport, disc_folder: Path) -> None:
    for entry in disc.manifest:
        said = run(peer("dciodvfy"), entry.file_id, cwd=disc_folder)
        source = run(peer("dciodvfy"), str(entry.source), cwd=disc_folder)
        assert said.count("Error") == source.count("Error"), said


def test_dcmdump_reads_the_directory_without_a_word(disc_folder: Path) -> None:
    said = run(peer("dcmdump"), "DICOMDIR", cwd=disc_folder)
    assert not [line for line in said.splitlines() if line.startswith(("E:", "W:"))]
    assert said.count("Directory Record") >= 9


def test_a_thousand_records_are_written_in_linear_time(tmp_path: Path) -> None:
    study, series = new_uid(), new_uid()
    header = ct_slice(study, series, 1)
    keys = keys_of("IMAGE", header)
    series_record = Record(keys_of("SERIES", header), [Record(keys) for _ in range(3000)])
    content = encode([Record(keys_of("PATIENT", header), [Record(keys_of("STUDY", header), [series_record])])], "BIG")
    assert len(dcmread(io.BytesIO(content)).DirectoryRecordSequence) == 3003


@pytest.mark.parametrize(
    ("sop_class", "kind"),
    [
        ("1.2.840.10008.5.1.4.1.1.2", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.66.4", "IMAGE"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "PRESENTATION"),
        ("1.2.840.10008.5.1.4.1.1.88.33", "SR DOCUMENT"),
        ("1.2.840.10008.5.1.4.1.1.88.59", "KEY OBJECT DOC"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "ENCAP DOC"),
        ("1.2.840.10008.5.1.4.1.1.481.5", "RT PLAN"),
        ("1.2.840.10008.5.1.4.1.1.9.1.1", "WAVEFORM"),
        ("1.2.840.10008.5.1.4.38.1", None),
    ],
)
def test_each_kind_of_object_has_its_record_type(sop_class: str, kind: str | None) -> None:
    assert record_type(sop_class) == kind


def test_an_object_with_unknown_value_representations_is_readable_by_dcmtk(tmp_path: Path) -> None:
    ds = ct_slice(new_uid(), new_uid(), 1)
    source = save(ds, tmp_path / "source" / "1.dcm")
    content = source.read_bytes()
    name = content.index(b"\x20\x00\x0d\x00UI")
    length = int.from_bytes(content[name + 6 : name + 8], "little")
    unknown = content[:name] + b"\x20\x00\x0d\x00UN\0\0" + length.to_bytes(4, "little") + content[name + 8 :]
    source.write_bytes(unknown)
    report = build_disc([source], tmp_path / "disc.iso")
    assert report.instances == 1
    assert report.manifest[0].dataset_digest != report.manifest[0].source_digest
