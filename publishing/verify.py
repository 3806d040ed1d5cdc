"""Read a written image back and hold it against what was meant to be on it."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from publishing.contract import ManifestEntry
from publishing.image import ImageReader
from standards.errors import PermanentError, RegisError
from standards.part10 import read_header, text


def verify_image(
    path: Path,
    digests: Mapping[str, str],
    manifest: Sequence[ManifestEntry],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Check that the image holds exactly these files, byte for byte, and that its DICOMDIR leads to every instance.

    ``digests`` maps each file on the disc to its SHA-256.

    Raises: PermanentError("verification-failed"), naming the first difference.
    """
    with ImageReader(path) as image:
        for tree in ("iso", "joliet", "udf"):
            if tree != "iso" and not image.has(tree):
                raise _failed(f"the {tree} names are missing")
            names = set(image.names(tree))
            if names != set(digests):
                raise _failed(f"{tree} names differ: {', '.join(sorted(names ^ set(digests))[:3])}")
        for number, (name, digest) in enumerate(sorted(digests.items())):
            progress(number, len(digests))
            if image.sha256(name) != digest:
                raise _failed(f"{name} reads back differently")
        listed = directory_entries(image.read("DICOMDIR"))
        expected = {entry.file_id: entry for entry in manifest}
        found = {"/".join(record.ReferencedFileID): record for record in listed}
        if found.keys() != expected.keys() or len(listed) != len(manifest):
            raise _failed(f"DICOMDIR lists {len(listed)} objects, {len(manifest)} were written")
        for file_id, entry in expected.items():
            _check_instance(image.read(file_id), found[file_id], entry)
        progress(len(digests), len(digests))


def directory_entries(content: bytes) -> list[Dataset]:
    """The records of a DICOMDIR that name a file, reached as a workstation does: from the root, by the offsets.

    Raises: PermanentError("corrupt-dicomdir") if it cannot be parsed, an offset leads nowhere or in a circle.
    """
    try:
        directory = dcmread(io.BytesIO(content))
        records = {record.seq_item_tell: record for record in directory.DirectoryRecordSequence}
        start = int(directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity)
    except Exception as error:  # pydicom raises whatever its parsers meet on hostile bytes
        raise PermanentError("corrupt-dicomdir", f"{type(error).__name__}: {error}"[:300]) from error
    found: list[Dataset] = []
    seen: set[int] = set()
    pending = [start] if start else []
    while pending:
        offset = pending.pop()
        if offset not in records or offset in seen:
            raise PermanentError(
                "corrupt-dicomdir", f"offset {offset} {'comes twice' if offset in seen else 'is no record'}"
            )
        seen.add(offset)
        record = records[offset]
        if record.get("ReferencedFileID"):
            if isinstance(record.ReferencedFileID, str):
                record.ReferencedFileID = [record.ReferencedFileID]
            found.append(record)
        for keyword in ("OffsetOfTheNextDirectoryRecord", "OffsetOfReferencedLowerLevelDirectoryEntity"):
            if record.get(keyword):
                pending.append(int(record.get(keyword)))
    return found


def _check_instance(content: bytes, record: Dataset, entry: ManifestEntry) -> None:
    try:
        header = read_header(io.BytesIO(content))
    except RegisError as error:
        raise _failed(f"{entry.file_id}: {error}") from error
    if hashlib.sha256(content[header.dataset_offset :]).hexdigest() != entry.dataset_digest:
        raise _failed(f"{entry.file_id}: the data set differs from the manifest's")
    said = tuple(
        text(record, f"Referenced{name}InFile") for name in ("SOPClassUID", "SOPInstanceUID", "TransferSyntaxUID")
    )
    if said != (header.sop_class_uid, header.sop_instance_uid, header.transfer_syntax):
        raise _failed(f"{entry.file_id}: DICOMDIR and the file disagree on what it is")
    if header.sop_instance_uid != entry.sop_instance_uid or header.transfer_syntax != entry.transfer_syntax_uid:
        raise _failed(f"{entry.file_id}: the file and the manifest disagree on what it is")


def _failed(detail: str) -> PermanentError:
    return PermanentError("verification-failed", detail)
