"""The folder of what is tapped: ``passing/`` while it comes, ``answered/`` once the old PACS took it, ``to/NAME/`` for
each destination, ``failed/NAME/`` for what a destination refuses. A file goes on by renaming, so it is in one place.

A kill leaves files where they were. In ``answered/`` they are whole, which their name tells (``ID.SIZE``).
"""

import itertools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

from standards.dataset_editing import Data, chunks

_numbers = itertools.count()
_HEAD_BYTES: Final = 8192
_WRITE_AT_ONCE: Final = 1 << 20


class Spool:
    """The folders, and moving between them. All methods raise OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passing = folder / "passing"
        self.answered = folder / "answered"
        self._make()

    def _make(self) -> None:
        self.passing.mkdir(parents=True, exist_ok=True)
        self.answered.mkdir(exist_ok=True)

    def new(self, address: str) -> Path:
        """The path of a file that is about to come from ``address``; names sort by time."""
        return self.passing / f"{time.time_ns():019d}-{os.getpid()}-{next(_numbers)}-{address.encode().hex()}"

    @staticmethod
    def address_of(path: Path) -> str:
        """The address that a file came from."""
        return bytes.fromhex(path.name.partition(".")[0].rpartition("-")[2]).decode()

    def to(self, destination: str) -> Path:
        """The folder of what waits for a destination."""
        return self.folder / "to" / destination

    def failed(self, destination: str) -> Path:
        """The folder of what a destination refused."""
        return self.folder / "failed" / destination

    def answer(self, path: Path, size: int) -> Path:
        """The old PACS took it."""
        known = self.answered / f"{path.name}.{size}"
        path.rename(known)
        return known

    def whole(self) -> Iterator[tuple[Path, bool]]:
        """What is in ``answered``, and whether it is as long as it was."""
        for path in sorted(self.answered.iterdir()):
            size = path.name.rpartition(".")[2]
            yield path, size.isdigit() and path.stat().st_size == int(size)

    def hand(self, path: Path, destination: str) -> None:
        """Let a destination have it, unchanged and durable; the file itself stays until ``done``."""
        folder = self.to(destination)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{path.name.partition('.')[0]}.dcm"
        target.unlink(missing_ok=True)  # from before a kill
        os.link(path, target)
        sync_folder(folder)

    def hand_changed(self, name: str, destination: str, pieces: Iterable[Data]) -> None:
        """Let a destination have a file with this content."""
        folder = self.to(destination)
        folder.mkdir(parents=True, exist_ok=True)
        new = self.passing / f"{name.partition('.')[0]}.changed"
        try:
            with new.open("wb") as file:
                for chunk in chain.from_iterable(chunks(piece, _WRITE_AT_ONCE) for piece in pieces):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            new.replace(folder / f"{name.partition('.')[0]}.dcm")
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        sync_folder(folder)

    def waiting(self, destination: str) -> list[Path]:
        """What waits for a destination, oldest first."""
        folder = self.to(destination)
        return sorted(folder.glob("*.dcm")) if folder.is_dir() else []

    def destinations(self) -> list[str]:
        """For whom anything waits."""
        return [folder.name for folder in sorted((self.folder / "to").glob("*")) if any(folder.iterdir())]

    def give_up(self, path: Path, destination: str) -> None:
        """Keep it aside: trying again cannot help."""
        folder = self.failed(destination)
        folder.mkdir(parents=True, exist_ok=True)
        path.replace(folder / path.name)

    def free_bytes(self) -> int:
        """Free space of its disk. Folders that somebody deleted are there again."""
        self._make()
        return shutil.disk_usage(self.folder).free


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def head_of(path: Path) -> bytes:
    """The beginning of a file, its meta group in it."""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
