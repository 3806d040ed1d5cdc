"""Read a disc from anywhere: a folder, an ISO image or a ZIP archive. Every file on it is accounted for."""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from publishing.image import ImageReader
from publishing.instance import parse
from publishing.verify import directory_entries
from standards.errors import PermanentError, RegisError
from standards.part10 import text
from standards.person_names import display

Status = Literal["ok", "corrupt", "unsupported", "duplicate", "missing"]

MAX_FILE = 4 << 30
_MAX_RATIO = 1000
_MANIFEST = "IHE_PDI/MANIFEST.TXT"
_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class FoundFile:
    """One file of the disc, or one that its DICOMDIR names and that is not there.

    ``path`` is as on the disc, parts separated by ``/``. ``local`` is where the content is: the file itself for a
    folder, its copy if it was extracted, else None. ``code`` and ``reason`` say why a file is not ok.
    """

    path: str
    status: Status
    code: str = ""
    reason: str = ""
    in_dicomdir: bool = False
    local: Path | None = None
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    series_instance_uid: str = ""
    study_instance_uid: str = ""
    transfer_syntax_uid: str = ""
    patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    study_date: str = ""
    modality: str = ""
    dataset_digest: str = ""


class _Source(Protocol):
    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def local(self, name: str) -> Path | None: ...


def read_disc(
    source: Path,
    *,
    extract_to: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[FoundFile]:
    """Every file of the disc at ``source``, in the order of their names, then those that are missing.

    With ``extract_to`` the ok instances are copied there under plain numbers, so that nothing on the disc chooses where
    a file is written. A ``MANIFEST.TXT`` of Regis is held against the files. One bad file never stops the rest.

    Raises: PermanentError "not-found", "not-an-image"; OSError if ``extract_to`` cannot be written.
    """
    with _opened(source) as disc:
        names = sorted(disc.names())
        by_folded = {name.upper(): name for name in names}
        entries, damage = _dicomdir(disc, by_folded)
        digests = _manifest(disc, by_folded)
        seen: dict[str, tuple[str, str]] = {}
        found: list[FoundFile] = []
        for number, name in enumerate(names):
            progress(number, len(names))
            one = _account(disc, name, digests)
            if one.code == "media-directory" and damage:
                one = FoundFile(name, "corrupt", damage.code, damage.detail)
            if one.status == "ok":
                one = _against_earlier(one, seen)
            if one.status == "ok" and extract_to is not None:
                extract_to.mkdir(parents=True, exist_ok=True)
                target = extract_to / f"{number:08d}.dcm"
                target.write_bytes(disc.read(name))
                one = replace(one, local=target)
            elif one.status == "ok":
                one = replace(one, local=disc.local(name))
            found.append(replace(one, in_dicomdir=name.upper() in entries))
        progress(len(names), len(names))
    for folded, shown in sorted(entries.items()):
        if _is_unsafe(shown):
            found.append(FoundFile(shown, "unsupported", "unsafe-path", "the path leads out of the disc", True))
        elif folded not in by_folded:
            found.append(FoundFile(shown, "missing", "not-on-disc", "DICOMDIR names it, the disc lacks it", True))
    found.extend(
        FoundFile(name, "missing", "not-on-disc", "MANIFEST.TXT names it, the disc lacks it")
        for name in sorted(digests)
        if name.upper() not in by_folded and name.upper() not in entries
    )
    return found


def _account(disc: _Source, name: str, digests: dict[str, str]) -> FoundFile:
    if _is_unsafe(name):
        return FoundFile(name, "unsupported", "unsafe-path", "the path leads out of the disc")
    try:
        content = disc.read(name)
    except RegisError as error:
        return FoundFile(name, "corrupt", error.code, error.detail)
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        return FoundFile(name, "corrupt", "unreadable", f"{type(error).__name__}: {error}"[:300])
    if name in digests and hashlib.sha256(content).hexdigest() != digests[name]:
        return FoundFile(name, "corrupt", "digest-mismatch", "not the bytes that MANIFEST.TXT lists")
    try:
        header = parse(content)
    except RegisError as error:
        outside = error.code in ("not-dicom", "media-directory", "unknown-transfer-syntax")
        return FoundFile(name, "unsupported" if outside else "corrupt", error.code, error.detail)
    return FoundFile(
        path=name,
        status="ok",
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
        series_instance_uid=header.series_instance_uid,
        study_instance_uid=header.study_instance_uid,
        transfer_syntax_uid=header.transfer_syntax,
        patient_id=text(header.dataset, "PatientID"),
        patient_name=display(header.dataset.get("PatientName")),
        patient_birth_date=text(header.dataset, "PatientBirthDate"),
        study_date=text(header.dataset, "StudyDate"),
        modality=text(header.dataset, "Modality"),
        dataset_digest=hashlib.sha256(content[header.dataset_offset :]).hexdigest(),
    )


def _against_earlier(one: FoundFile, seen: dict[str, tuple[str, str]]) -> FoundFile:
    if one.sop_instance_uid not in seen:
        seen[one.sop_instance_uid] = (one.dataset_digest, one.path)
        return one
    digest, first = seen[one.sop_instance_uid]
    if digest == one.dataset_digest:
        return replace(one, status="duplicate", code="same-instance", reason=f"the same as {first}")
    # Another content under a used UID is no duplicate: it is handed on, and whoever stores it applies its policy.
    return replace(one, code="conflicting-instance", reason=f"same UID as {first}, other content")


def _dicomdir(disc: _Source, names: dict[str, str]) -> tuple[dict[str, str], RegisError | None]:
    """File IDs that the DICOMDIR in the root names, by their upper-case form; and what is wrong with it."""
    if "DICOMDIR" not in names:
        return {}, None
    try:
        records = directory_entries(disc.read(names["DICOMDIR"]))
        ids = ["/".join(str(part) for part in record.ReferencedFileID) for record in records]
    except RegisError as error:
        return {}, error
    return {file_id.upper(): file_id for file_id in ids}, None


def _manifest(disc: _Source, names: dict[str, str]) -> dict[str, str]:
    if _MANIFEST not in names:
        return {}
    try:
        lines = disc.read(names[_MANIFEST]).decode("ascii").splitlines()
    except (RegisError, OSError, UnicodeDecodeError):
        return {}  # the file itself is accounted for below, as every other one
    pairs = (line.split("  ", 1) for line in lines)
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2 and len(pair[0]) == 64}


def _is_unsafe(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or bool(_DRIVE.match(name))


@contextmanager
def _opened(source: Path) -> Iterator[_Source]:
    if source.is_dir():
        yield _Folder(source)
    elif not source.exists():
        raise PermanentError("not-found", f"{source} does not exist")
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            yield _Archive(archive)
    else:
        with ImageReader(source) as image:
            yield _Image(image)


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def names(self) -> list[str]:
        return [path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if not path.is_dir()]

    def read(self, name: str) -> bytes:
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise PermanentError("unsafe-path", "a link that leads out of the disc")
        if not path.is_file():
            raise PermanentError("unreadable", "not a regular file")
        return path.read_bytes()

    def local(self, name: str) -> Path | None:
        return self._root / name


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def names(self) -> list[str]:
        return [info.filename for info in self._archive.infolist() if not info.is_dir()]

    def read(self, name: str) -> bytes:
        info = self._archive.getinfo(name)
        if info.file_size > MAX_FILE or info.file_size > max(info.compress_size, 1) * _MAX_RATIO + (1 << 20):
            raise PermanentError("suspicious-compression", f"{info.compress_size} bytes would become {info.file_size}")
        return self._archive.read(info)

    def local(self, name: str) -> Path | None:
        return None


class _Image:
    def __init__(self, image: ImageReader) -> None:
        self._image = image

    def names(self) -> list[str]:
        return list(self._image.names())

    def read(self, name: str) -> bytes:
        buffer = io.BytesIO()
        self._image.copy(name, buffer)
        return buffer.getvalue()

    def local(self, name: str) -> Path | None:
        return None
