"""A folder as an ISO 9660 level 1 image with Joliet and UDF names over the same bytes; and reading such an image."""

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from standards.errors import PermanentError

_BLOCK = 1 << 20


def write_image(
    files: dict[str, Path],
    target: Path,
    volume_id: str,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write ``files`` (path on the disc, parts in 8.3 separated by ``/``, to file) as one finalised session.

    Source: PS3.12 Annex F (ISO 9660 level 1); Joliet and UDF only repeat the names.
    """
    image = pycdlib.PyCdlib()
    image.new(interchange_level=1, vol_ident=volume_id, joliet=3, udf="2.60", app_ident_str="REGIS")
    try:
        made: set[str] = set()
        for name in sorted(files):
            parts = name.split("/")
            for depth in range(1, len(parts)):
                folder = "/" + "/".join(parts[:depth])
                if folder not in made:
                    image.add_directory(folder, joliet_path=folder, udf_path=folder)
                    made.add(folder)
            image.add_file(str(files[name]), _iso_path(name), joliet_path=f"/{name}", udf_path=f"/{name}")
        image.write(str(target), blocksize=_BLOCK, progress_cb=lambda done, total, _: progress(done, total))
    finally:
        image.close()


class ImageReader:
    """The files of an ISO 9660 image, by the names of its ISO 9660 tree. Use as a context manager.

    Raises: PermanentError("not-an-image") on opening.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._image = pycdlib.PyCdlib()

    def __enter__(self) -> "ImageReader":
        try:
            self._image.open(str(self._path))
        except (PyCdlibException, ValueError, IndexError, KeyError) as error:
            raise PermanentError("not-an-image", f"{self._path.name}: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._image.close()

    def names(self, tree: str = "iso") -> Iterator[str]:
        """Every file as ``A/B/C``, without version numbers; ``tree`` is iso, joliet or udf."""
        for folder, _, names in self._image.walk(**{f"{tree}_path": "/"}):
            for name in names:
                yield f"{folder.strip('/')}/{_plain(name)}".lstrip("/")

    def has(self, tree: str) -> bool:
        """Whether the image has this tree of names."""
        return bool(self._image.has_joliet() if tree == "joliet" else self._image.has_udf())

    def read(self, name: str) -> bytes:
        """The content of one file."""
        buffer = io.BytesIO()
        self.copy(name, buffer)
        return buffer.getvalue()

    def copy(self, name: str, target: BinaryIO) -> None:
        """Copy one file's content.

        Raises: PermanentError("unreadable-file").
        """
        try:
            self._image.get_file_from_iso_fp(target, iso_path=self._exact(name), blocksize=_BLOCK)
        except PyCdlibException as error:
            raise PermanentError("unreadable-file", f"{name}: {error}") from error

    def sha256(self, name: str) -> str:
        """SHA-256 of one file's content, hexadecimal."""
        with self._image.open_file_from_iso(iso_path=self._exact(name)) as stream:
            return digest_of(stream.read)

    def _exact(self, name: str) -> str:
        if not hasattr(self, "_paths"):
            self._paths = {
                f"{folder.strip('/')}/{_plain(entry)}".lstrip("/"): f"{folder.rstrip('/')}/{entry}"
                for folder, _, entries in self._image.walk(iso_path="/")
                for entry in entries
            }
        if name not in self._paths:
            raise PermanentError("unreadable-file", f"{name} is not on the image")
        return self._paths[name]


def digest_of(read: Callable[[int], bytes]) -> str:
    """SHA-256 of everything ``read`` gives, hexadecimal."""
    digest = hashlib.sha256()
    while block := read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _iso_path(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    return f"/{name};1" if "." in last else f"/{name}.;1"


def _plain(name: str) -> str:
    return name.split(";")[0].rstrip(".")
