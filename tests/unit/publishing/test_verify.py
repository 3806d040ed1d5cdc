"""Reading an image back: any difference from what was meant is noticed and named."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from publishing.build import build_disc
from publishing.contract import DiscReport
from publishing.image import ImageReader, write_image
from publishing.verify import verify_image
from standards.errors import PermanentError


def digests(image: Path) -> dict[str, str]:
    with ImageReader(image) as reader:
        return {name: reader.sha256(name) for name in reader.names()}


def offset_of(image: Path, content: bytes) -> int:
    return image.read_bytes().index(content)


def test_an_untouched_image_passes(disc: DiscReport) -> None:
    verify_image(disc.output, digests(disc.output), disc.manifest)


@pytest.mark.parametrize("name", ["DICOMDIR", "README.TXT", "IHE_PDI/VIEWER.JS", "an instance"])
def test_one_flipped_byte_is_noticed_and_its_file_named(name: str, disc: DiscReport, tmp_path: Path) -> None:
    meant = digests(disc.output)
    name = disc.manifest[3].file_id if name == "an instance" else name
    with ImageReader(disc.output) as image:
        content = image.read(name)
    copy = tmp_path / "copy.iso"
    shutil.copy(disc.output, copy)
    place = offset_of(copy, content) + random.randrange(len(content))
    with copy.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 0x10]))
    with pytest.raises(PermanentError, match=f"verification-failed: {name} reads back differently"):
        verify_image(copy, meant, disc.manifest)


def test_a_missing_file_is_noticed(disc: DiscReport, disc_folder: Path, tmp_path: Path) -> None:
    files = {name: disc_folder / name for name in digests(disc.output)}
    del files[disc.manifest[0].file_id]
    write_image(files, tmp_path / "short.iso", "SHORT")
    with pytest.raises(PermanentError, match="names differ"):
        verify_image(tmp_path / "short.iso", digests(disc.output), disc.manifest)


def test_a_directory_that_leaves_out_an_instance_is_noticed(
    disc: DiscReport, disc_folder: Path, tmp_path: Path
) -> None:
    directory = dcmread(disc_folder / "DICOMDIR")
    last = directory.DirectoryRecordSequence[-1]
    assert last.ReferencedFileID
    content = bytearray((disc_folder / "DICOMDIR").read_bytes())
    # The series record above it is told that it has nothing below.
    series = directory.DirectoryRecordSequence[-2]
    place = series.seq_item_tell + 8 + 12 + 10 + 8
    content[place : place + 4] = bytes(4)
    (tmp_path / "DICOMDIR").write_bytes(content)
    files = {name: disc_folder / name for name in digests(disc.output)} | {"DICOMDIR": tmp_path / "DICOMDIR"}
    write_image(files, tmp_path / "changed.iso", "CHANGED")
    with pytest.raises(PermanentError, match="DICOMDIR lists 8 objects, 9 were written"):
        verify_image(tmp_path / "changed.iso", digests(tmp_path / "changed.iso"), disc.manifest)


def test_a_disc_that_does_not_read_back_is_not_delivered(
    study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_and_spoil(files: dict[str, Path], target: Path, *rest: Any) -> None:
        write_image(files, target, *rest)
        place = offset_of(target, files["README.TXT"].read_bytes())
        with target.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"#")

    monkeypatch.setattr("publishing.build.write_image", write_and_spoil)
    output = tmp_path / "out" / "disc.iso"
    with pytest.raises(PermanentError, match=r"verification-failed: README\.TXT reads back differently"):
        build_disc([study_folder], output)
    assert list(output.parent.iterdir()) == []
