"""The S3 storage against a real S3 server: the same promises as on a filesystem."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pacs_node.storage import s3
from pacs_node.storage.layout import instance_key, study_key
from pacs_node.storage.s3 import S3Storage, open_s3
from standards.errors import PermanentError, TransientError
from standards.uids import new_uid
from tests.factories.dicom import Study, ct_series, write_all
from tests.node.conftest import NodeProcess, need
from tests.node.s3_server import ACCESS, SECRET, S3Server, s3_server

__all__ = ["s3_server"]
KEY = instance_key("1.2", "1.2.3", "1.2.3.4")


def keys_file(folder: Path) -> Path:
    path = folder / "s3.keys"
    path.write_text(f"{ACCESS}\n{SECRET}\n")
    return path


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def store(s3_server: S3Server, bucket: str, tmp_path: Path) -> S3Storage:
    url = f"s3://{bucket}/node-a?endpoint={s3_server.endpoint}"
    return open_s3(url, tmp_path / "local", keys_file(tmp_path), cache_bytes=1 << 20)


def incoming(store: S3Storage, content: bytes) -> Path:
    path = store.new_incoming()
    path.write_bytes(content)
    return path


def test_a_placed_file_lies_in_the_bucket_under_the_key_of_the_filesystem(
    store: S3Storage, s3_server: S3Server, bucket: str
) -> None:
    path = incoming(store, b"one")
    assert store.place(path, KEY)
    assert s3_server.keys(bucket) == [f"node-a/{KEY}"]
    assert store.exists(KEY)
    assert store.open(KEY).read() == store.open_stored(KEY).read() == store.local_path(KEY).read_bytes() == b"one"
    assert not path.exists()


def test_a_taken_place_is_never_overwritten(store: S3Storage) -> None:
    store.place(incoming(store, b"one"), KEY)
    second = incoming(store, b"two")
    assert not store.place(second, KEY)
    assert store.open_stored(KEY).read() == b"one"
    assert second.read_bytes() == b"two"


def test_an_incoming_without_a_name_is_uploaded(store: S3Storage) -> None:
    with store.receive(b"meta") as received:
        received.write(b"-dataset" * 300_000)
        assert store.place(received, KEY)
    assert store.open_stored(KEY).read() == b"meta" + b"-dataset" * 300_000


def test_a_large_object_goes_up_in_parts_and_is_read_by_ranges(
    store: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "_WHOLE", 1 << 20)
    monkeypatch.setattr(s3, "_PART", 5 << 20)
    content = os.urandom(1 << 20) * 12
    assert store.place(incoming(store, content), KEY)
    assert not store.place(incoming(store, content), KEY)
    with store.open_stored(KEY) as file:
        file.seek(7_000_001)
        assert file.read(100) == content[7_000_001:7_000_101]
        file.seek(-10, 2)
        assert file.read() == content[-10:]
        file.seek(0)
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    assert digest.digest() == hashlib.sha256(content).digest()


def test_journals_are_objects_and_come_back_in_order(store: S3Storage) -> None:
    uid = new_uid()
    assert list(store.journal(uid)) == []
    store.append_journal(uid, {"n": 1}, {"n": 2})
    store.append_journal(uid, {"n": 3, "имя": "Ё"})
    assert list(store.journal(uid)) == [{"n": 1}, {"n": 2}, {"n": 3, "имя": "Ё"}]


def test_studies_are_walked_in_the_order_of_their_keys_and_on_from_one(store: S3Storage) -> None:
    uids = [new_uid() for _ in range(5)]
    for uid in uids:
        store.append_journal(uid, {"n": 1})
    ordered = sorted(uids, key=study_key)
    assert list(store.study_instance_uids()) == ordered
    assert list(store.study_instance_uids(study_key(ordered[2]))) == ordered[3:]
    assert store.has_study(uids[0])
    assert not store.has_study("1.2.3")


def test_what_others_put_into_the_bucket_is_named_and_is_no_study(
    store: S3Storage, s3_server: S3Server, bucket: str
) -> None:
    uid = new_uid()
    store.append_journal(uid, {"n": 1})
    folder = study_key(uid)
    other = next(name for name in ("00", "01") if f"/{name}/" not in folder)
    for key in ("studies/readme.txt", f"{folder} (copy)/1.dcm", f"studies/{other}/{uid}/1.dcm", f"{folder}/снимок.dcm"):
        store._client.put_object(Bucket=bucket, Key=f"node-a/{key}", Body=b"by hand")
    store._client.put_object(Bucket=bucket, Key=f"node-a/{folder}/journal/9.jsonl", Body=b'{"torn\n{"n": 2}\n')
    assert list(store.study_instance_uids()) == [uid]
    assert set(store.strays()) == {"studies/readme.txt", f"{folder} (copy)", f"studies/{other}/{uid}"}
    assert list(store.keys_of_study(uid)) == []
    assert list(store.foreign(uid)) == [f"{folder}/снимок.dcm"]
    assert list(store.journal(uid)) == [{"n": 1}, {"n": 2}]


def test_what_is_set_aside_is_still_there(store: S3Storage, s3_server: S3Server, bucket: str) -> None:
    store.place(incoming(store, b"damaged"), KEY)
    aside = store.set_aside(KEY)
    assert not store.exists(KEY)
    assert s3_server.keys(bucket) == [f"node-a/{aside}"]
    assert store.open_stored(aside).read() == b"damaged"


def test_the_cache_stays_within_its_bound_and_the_bucket_keeps_everything(store: S3Storage) -> None:
    keys = [instance_key("1.2", "1.2.3", f"1.2.3.{number}") for number in range(1, 9)]
    for key in keys:
        store.place(incoming(store, os.urandom(300_000)), key)
        os.utime(store.root / key, (0, time.time() - 1000))
    cached = list((store.root / "studies").rglob("*.dcm"))
    assert sum(path.stat().st_size for path in cached) <= 1_200_000
    assert [store.local_path(key).stat().st_size for key in keys] == [300_000] * 8


def test_a_missing_object_is_named(store: S3Storage) -> None:
    for ask in (store.open, store.local_path, store.open_stored):
        with pytest.raises(PermanentError, match="instance-gone"):
            ask(KEY)


def test_a_store_that_is_away_is_named_and_the_file_stays(tmp_path: Path) -> None:
    url = "s3://bucket?endpoint=http://127.0.0.1:9"
    store = open_s3(url, tmp_path / "local", keys_file(tmp_path), cache_bytes=0)
    path = incoming(store, b"one")
    with pytest.raises(TransientError, match="storage-unreachable"):
        store.place(path, KEY)
    assert path.exists()


def test_a_node_on_s3_answers_only_for_what_the_store_has(
    make_node: Callable[..., NodeProcess], s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    need("storescu")
    node = make_node(
        REGIS_NODE_STORAGE_URL=f"s3://{bucket}?endpoint={s3_server.endpoint}",
        REGIS_NODE_STORAGE_KEYS=str(keys_file(tmp_path)),
    )
    study = Study()
    files = write_all(ct_series(3, study=study), tmp_path / "ct")
    assert node.dcmtk("storescu", *map(str, files)).returncode == 0
    stored = [key for key in s3_server.keys(bucket) if key.endswith(".dcm")]
    assert sorted(stored) == sorted(path for _, path, _ in node.held(study.study_instance_uid))
    before = sorted(node.held(study.study_instance_uid))
    for cached in node.files(study.study_instance_uid):
        cached.unlink()
    got = tmp_path / "got"
    got.mkdir()
    done = node.dcmtk(
        "getscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study.study_instance_uid}", "-od",
        str(got),
    )  # fmt: skip
    assert (done.returncode, len(list(got.iterdir()))) == (0, 3)
    node.python(
        "from pacs_node.study_index.models import Study\nfrom gateway.models import OutboxEntry\n"
        "Study.objects.all().delete(); OutboxEntry.objects.all().delete()"
    )
    assert "3 added to the index" in node.command("reindex").stdout
    assert sorted(node.held(study.study_instance_uid)) == before
    assert node.command("verify", "--once").returncode == 0
    s3_server.client().put_object(Bucket=bucket, Key=stored[0], Body=b"rotten")
    rotten = node.command("verify", "--once", check=False)
    assert rotten.returncode == 1
    assert stored[0] in rotten.stderr


def test_a_node_on_s3_is_backed_up_into_one_on_files_and_back(
    make_node: Callable[..., NodeProcess], s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    settings = {
        "REGIS_NODE_STORAGE_URL": f"s3://{bucket}/one?endpoint={s3_server.endpoint}",
        "REGIS_NODE_STORAGE_KEYS": str(keys_file(tmp_path)),
    }
    node, study = make_node(start=False, **settings), Study()
    series = ct_series(2, study=study)
    write_all(series, tmp_path / "in")
    series[0].StudyDescription = "other content under the same UID"
    write_all(series[:1], tmp_path / "conflict")
    node.command("import", str(tmp_path / "in"))
    node.command("import", str(tmp_path / "conflict"))
    node.command("backup", str(tmp_path / "one.tar"), "--with-instances")
    files = make_node(start=False)
    assert "0 of them are missing" in files.command("restore", str(tmp_path / "one.tar")).stdout
    assert len(files.files(study.study_instance_uid)) == 3
    assert files.command("verify", "--once").returncode == 0
    files.command("backup", str(tmp_path / "two.tar"), "--with-instances")
    back = make_node(
        start=False, **settings | {"REGIS_NODE_STORAGE_URL": f"s3://{bucket}/two?endpoint={s3_server.endpoint}"}
    )
    assert "0 of them are missing" in back.command("restore", str(tmp_path / "two.tar")).stdout
    assert len([key for key in s3_server.keys(bucket) if key.startswith("two/") and key.endswith(".dcm")]) == 3
    assert back.command("verify", "--once").returncode == 0
    assert "The storage can be written" in back.command("doctor", check=False).stdout
