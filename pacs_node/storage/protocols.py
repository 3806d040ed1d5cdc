"""What the node asks of a store of instances. Keys are relative POSIX paths of validated UIDs, on S3 too."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from pacs_node.storage.incoming import Incoming


class Storage(Protocol):
    """Durable files by key. A key, once placed, never changes its content."""

    def new_incoming(self) -> Path:
        """A fresh path on the storage's own filesystem to write an instance to before it has a place.

        Raises: TransientError("storage-full").
        """

    def receive(self, meta: bytes) -> Incoming:
        """A file to receive an instance into, beginning with ``meta``. Raises: TransientError("storage-full")."""

    def prepare(self) -> None:
        """Get ready for the next :meth:`receive`, while nobody waits."""

    def place(self, incoming: Incoming | Path, key: str) -> bool:
        """Bring the file to ``key``, durably with all its parents; False when the key is taken (the file stays).

        Raises: TransientError("storage-full").
        """

    def open(self, key: str) -> BinaryIO:
        """The file at ``key``, seekable, fetched back from another tier if need be.

        Raises: PermanentError("instance-gone"), TransientError("recall-failed", "storage-unreachable").
        """

    def open_stored(self, key: str) -> BinaryIO:
        """The file itself, whatever a cache may hold. Raises: as ``open``."""

    def local_path(self, key: str) -> Path:
        """The file at ``key`` as a path of this machine, fetched back from another tier if need be.

        It may go from there after some minutes: open it soon. Raises: as ``open``.
        """

    def exists(self, key: str) -> bool:
        """Whether a file lies at ``key`` now, without fetching it back."""

    def set_aside(self, key: str) -> str:
        """Move the file at ``key`` out of the way for a person to look at, durably; where it lies now."""

    def remove(self, key: str) -> None:
        """Let go of the file at ``key``, durably; nothing happens when it is gone."""

    def append_journal(self, study_instance_uid: str, *lines: dict[str, Any]) -> None:
        """Add lines to the study's journal, durably."""

    def journal(self, study_instance_uid: str) -> Iterator[dict[str, Any]]:
        """The lines of the study's journal, oldest first; a line torn by a crash is left out."""

    def study_instance_uids(self, after: str = "") -> Iterator[str]:
        """Every study that has a folder, in the order of ``layout.study_key``; those behind the key ``after`` only."""

    def keys_of_study(self, study_instance_uid: str) -> Iterator[str]:
        """The keys of all instances in the study's folder, variants included."""

    def has_study(self, study_instance_uid: str) -> bool:
        """Whether the study has a folder."""

    def modified(self, key: str) -> float:
        """When the file at ``key`` was written, in seconds since 1970; 0 when there is none."""

    def foreign(self, study_instance_uid: str) -> Iterator[str]:
        """Whatever lies in the study's folder and is neither an instance nor the journal."""

    def strays(self) -> Iterator[str]:
        """What lies among the studies' folders and is none of them."""

    def half_received(self) -> Iterator[tuple[str, bool]]:
        """``(name, whether its process lives)`` of each file that is being received, or was when a process ended."""

    def check_space(self) -> None:
        """Raises: TransientError("storage-full") below the watermark."""

    def total_bytes(self) -> int:
        """The size of the disk that instances lie on, or are received on."""

    def free_bytes(self) -> int:
        """How many bytes can still be written."""

    def clean_incoming(self) -> int:
        """Remove what an earlier process left half-written; how many files that were."""
