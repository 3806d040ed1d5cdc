"""The filesystem storage: nothing is overwritten, nothing half-written is taken for whole."""

import json
from pathlib import Path

import pytest

from pacs_node.storage.filesystem import FilesystemStorage
from pacs_node.storage.layout import instance_key, is_variant, study_key, variant_key
from pacs_node.storage.watermarks import Space, Watermarks
from standards.errors import PermanentError, TransientError
from standards.uids import new_uid


@pytest.fixture
def store(tmp_path: Path) -> FilesystemStorage:
    return FilesystemStorage(tmp_path / "storage")


def incoming(store: FilesystemStorage, content: bytes) -> Path:
    path = store.new_incoming()
    path.write_bytes(content)
    return path


def test_a_placed_file_is_found_and_gone_from_incoming(store: FilesystemStorage) -> None:
    key = instance_key("1.2", "1.2.3", "1.2.3.4")
    path = incoming(store, b"one")
    assert store.place(path, key)
    assert store.open(key).read() == b"one"
    assert not path.exists()


def test_a_taken_place_is_never_overwritten(store: FilesystemStorage) -> None:
    key = instance_key("1.2", "1.2.3", "1.2.3.4")
    store.place(incoming(store, b"one"), key)
    second = incoming(store, b"two")
    assert not store.place(second, key)
    assert store.open(key).read() == b"one"
    assert second.read_bytes() == b"two"


@pytest.mark.parametrize("uid", ["../etc", "1.2/3", "", "1..2", "1.2\n", "a", "1" * 65, ".", "..", "1.2\0/x"])
def test_a_uid_that_is_none_makes_no_path(uid: str) -> None:
    with pytest.raises(PermanentError, match="invalid-uid"):
        instance_key(uid, "1.2", "1.3")


def test_a_variant_lies_in_a_folder_of_its_own() -> None:
    key = variant_key("1.2", "1.2.3", "1.2.3.4", "ab" * 32)
    assert is_variant(key)
    assert key.startswith(study_key("1.2"))
    assert not is_variant(instance_key("1.2", "1.2.3", "1.2.3.4"))


def test_a_journal_line_torn_by_a_crash_does_not_cost_the_others(store: FilesystemStorage) -> None:
    uid = new_uid()
    store.append_journal(uid, {"n": 1}, {"n": 2})
    journal = store.root / study_key(uid) / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"n": 3, "half')
    store.append_journal(uid, {"n": 4})
    assert [line["n"] for line in store.journal(uid)] == [1, 2, 4]
    assert json.loads(journal.read_text().splitlines()[-1]) == {"n": 4}


def test_below_the_watermark_nothing_more_is_taken(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match="storage-full"):
        FilesystemStorage(tmp_path, watermarks=Watermarks(Space(10**18))).new_incoming()


def test_what_a_dead_process_left_is_cleaned_and_what_a_living_one_writes_is_not(store: FilesystemStorage) -> None:
    (store.incoming / "999999999-x.dcm").write_bytes(b"dead")
    (store.incoming / "1-x.dcm").write_bytes(b"alive")
    assert store.clean_incoming() == 1
    assert [path.name for path in store.incoming.iterdir()] == ["1-x.dcm"]


def test_a_missing_file_is_named(store: FilesystemStorage) -> None:
    with pytest.raises(PermanentError, match="instance-gone"):
        store.open(instance_key("1.2", "1.2.3", "1.2.3.4"))
