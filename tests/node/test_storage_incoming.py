"""Receiving files: past the page cache, without a name before the end, with the digest in their own meta group."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from pydicom.filereader import read_file_meta_info

from pacs_node.storage.filesystem import FilesystemStorage
from pacs_node.storage.incoming import Incoming
from standards.errors import PermanentError, TransientError
from standards.part10 import Provenance, write_file_meta

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
KEY = "studies/00/1.2.3/1.2.3.4/1.2.3.4.5.dcm"
SIZES = [0, 1, 3_700, 4_096, 250_000, 524_288, (1 << 20) - 500, 1 << 20, 3_500_001]


def meta(provenance: Provenance | None = None) -> bytes:
    return write_file_meta(CT, "1.2.3.4.5", EXPLICIT, provenance or Provenance("SCANNER", "REGIS"))


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStorage:
    return FilesystemStorage(tmp_path / "storage")


@pytest.mark.parametrize("size", SIZES)
def test_what_is_received_is_what_lies_there_and_the_file_tells_its_own_digest(
    store: FilesystemStorage, size: int
) -> None:
    data = os.urandom(size)
    head = meta()
    with store.receive(head) as received:
        for start in range(0, size, 77_777):
            received.write(data[start : start + 77_777])
        assert store.place(received, KEY)
    stored = (store.root / KEY).read_bytes()
    assert stored[len(head) :] == data
    said = Provenance.of(read_file_meta_info(store.root / KEY))
    assert said.dataset_sha256 == hashlib.sha256(data).hexdigest()
    assert said.sending_ae_title == "SCANNER"


@pytest.mark.parametrize("size", SIZES)
def test_a_file_is_read_back_before_it_is_whole_and_after(store: FilesystemStorage, size: int) -> None:
    data = os.urandom(size)
    head = meta()
    with store.receive(head) as received:
        received.write(data)
        for whole in (False, True):
            if whole:
                received.sync()
            reader = received.reader()
            assert reader.seek(0, os.SEEK_END) == len(head) + size
            reader.seek(len(head))
            assert reader.read() == data
            reader.seek(len(head) + size // 2)
            assert reader.read(5_000) == data[size // 2 : size // 2 + 5_000]


def test_pieces_may_be_received_straight_into_the_memory_that_is_written(store: FilesystemStorage) -> None:
    data = os.urandom(2_500_000)
    left = memoryview(data)
    with store.receive(meta()) as received:
        while left:
            room = received.room()
            count = min(len(room), len(left), 131_000)
            room[:count] = left[:count]
            received.filled(count)
            left = left[count:]
        assert received.dataset_sha256() == hashlib.sha256(data).hexdigest()
        assert store.place(received, KEY)
    assert (store.root / KEY).read_bytes().endswith(data)


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_what_breaks_off_leaves_nothing_behind(store: FilesystemStorage, size: int) -> None:
    with store.receive(meta()) as received:
        received.write(os.urandom(size))
    assert list(store.incoming.iterdir()) == []
    assert not store.exists(KEY)


@pytest.mark.parametrize("missing", ["nameless", "direct", "both"])
def test_filesystems_that_can_do_less_store_the_same(
    store: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    plain = os.open

    def poorer(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if missing in ("nameless", "both") and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no nameless files")
        if missing in ("direct", "both") and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct I/O")
        return plain(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", poorer)
    data = os.urandom(1_300_000)
    with store.receive(meta()) as received:
        received.write(data)
        assert store.place(received, KEY)
    assert (store.root / KEY).read_bytes().endswith(data)
    assert list(store.incoming.iterdir()) == []


def test_a_full_disk_is_named(store: FilesystemStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with store.receive(meta()) as received:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(TransientError, match="storage-full"):
            received.write(os.urandom(2_000_000))


def test_a_meta_group_without_measure_is_refused(store: FilesystemStorage) -> None:
    with pytest.raises(PermanentError, match="length-out-of-bounds"):
        store.receive(bytes(400_000))


def test_a_file_that_was_prepared_is_used_next(store: FilesystemStorage) -> None:
    store.prepare()
    with store.receive(meta()) as received:
        received.write(b"data")
        assert store.place(received, KEY)
    assert (store.root / KEY).read_bytes().endswith(b"data")


def test_memory_is_used_again(tmp_path: Path) -> None:
    with Incoming(tmp_path) as first:
        memory = first._buffer
    with Incoming(tmp_path) as second:
        assert second._buffer is memory
