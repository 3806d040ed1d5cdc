"""What a disc job is asked for and what it answers."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Medium = Literal["cd", "dvd", "usb"]
Language = Literal["ru", "en"]

CAPACITY: dict[Medium, int] = {"cd": 700 * 1024 * 1024, "dvd": 4_700_000_000, "usb": 15_500_000_000}
"""Usable bytes of each medium; a USB stick is taken as a 16 GB one."""


@dataclass(frozen=True)
class DiscOptions:
    """How the disc is to be made.

    ``reports`` are PDF files or encapsulated PDF instances: put on the disc as web pages, the instances as DICOM too.
    ``label`` replaces the text to print on the disc; ``volume_id`` the ISO 9660 volume name (made from the date).
    """

    institution: str = "Regis"
    contact: str = ""
    medium: Medium = "cd"
    reports: tuple[Path, ...] = ()
    label: str = ""
    volume_id: str = ""
    language: Language = "ru"


@dataclass(frozen=True)
class Progress:
    """Where the job stands: ``done`` of ``total`` files in this ``step``; while writing the image, of its bytes."""

    step: Literal["reading", "viewer", "writing", "verifying"]
    done: int
    total: int


@dataclass(frozen=True)
class Rejected:
    """A source that is not on the disc: a stable ``code`` and a sentence for a person."""

    path: Path
    code: str
    reason: str


@dataclass(frozen=True)
class ManifestEntry:
    """One instance on the disc.

    ``dataset_digest`` is SHA-256 of all bytes after the file meta group as written on the disc,
    ``source_digest`` the same of the source; they are equal where nothing had to be re-encoded.
    """

    file_id: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    dataset_digest: str
    source_digest: str
    source: Path


@dataclass(frozen=True)
class DiscReport:
    """What was made. ``duplicates`` are sources whose instance was already taken; they are not failures."""

    output: Path
    size: int
    sha256: str
    volume_id: str
    label: str
    instances: int
    manifest: tuple[ManifestEntry, ...]
    rejected: tuple[Rejected, ...] = ()
    duplicates: tuple[Path, ...] = ()
    files: int = 0
    study_instance_uids: tuple[str, ...] = field(default=())
