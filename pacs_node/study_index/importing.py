"""Taking an existing folder of DICOM in: every file is accounted for, one bad file never stops the rest."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pacs_node.study_index.actions import ingest
from standards.errors import PermanentError


@dataclass(frozen=True)
class FileOutcome:
    """What became of one file. ``code`` and ``detail`` say why when it was refused."""

    path: Path
    outcome: Literal["stored", "duplicate", "conflict", "refused"]
    code: str = ""
    detail: str = ""


def import_folder(folder: Path, *, source_ae_title: str = "IMPORT", character_set: str = "") -> Iterator[FileOutcome]:
    """Take in all files below ``folder`` (or the one file it is), in the order of their paths. Originals stay.

    Raises: TransientError("storage-full") or ("database-busy"): what came before is in, and a second run goes on.
    """
    for path in _files(folder):
        try:
            taken = ingest(path, source_ae_title=source_ae_title, default_character_set=character_set)
        except PermanentError as error:
            yield FileOutcome(path, "refused", error.code, error.detail)
        except OSError as error:
            yield FileOutcome(path, "refused", "unreadable", error.strerror or type(error).__name__)
        else:
            yield FileOutcome(path, taken.outcome)


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path
