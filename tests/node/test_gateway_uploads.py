"""Large instances in chunks and encoded bodies, as the receiving node's own views take and refuse them."""

import hashlib
import io
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.test import Client

from gateway import actions, encoding, registry, uploads
from gateway.envelope import Directory, JoinAnswer, Peer, Receipt
from gateway.keys import public_text
from gateway.models import IssuedReceipt
from pacs_node.storage.stores import storage
from pacs_node.storage.watermarks import Space, Watermarks
from pacs_node.study_index.models import Instance
from standards import http_signatures
from standards.digests import digests
from tests.contract.region import make_instance

pytestmark = pytest.mark.django_db(transaction=True)

CLINIC = Ed25519PrivateKey.generate()
CHUNK = 100_000


@pytest.fixture(autouse=True)
def _an_empty_spool() -> None:
    shutil.rmtree(uploads.folder(), ignore_errors=True)


@pytest.fixture(autouse=True)
def _archive_that_knows_the_clinic() -> None:
    clinic = Peer(name="clinic", kind="clinic", ae_title="CLINIC", url="https://x", public_key=public_text(CLINIC))
    actions.record_join(
        JoinAnswer(name="archive", directory=Directory(peers=[clinic], token_keys={}, mirror_to=[])), "https://centre"
    )


class Sent:
    """One instance on its way in chunks, of which a test may spoil any part."""

    def __init__(self, folder: Path, *, size: int = 400, text: str = "") -> None:
        image = make_instance(size=size, text=text)
        self.uid = str(image.SOPInstanceUID)
        self.path = folder / f"{self.uid}.dcm"
        image.save_as(self.path, enforce_file_format=True)
        self.raw = self.path.read_bytes()
        self.ledger = digests(self.path)
        self.pixels = encoding.pixels_of(io.BytesIO(self.raw))
        self.count = -(-len(self.raw) // CHUNK)
        self.to = "archive"

    def ask(self, what: str, body: bytes = b"", *, signed: bytes | None = None, rest: str = "", **query: Any) -> Any:
        said = {
            "to": self.to,
            "dataset": self.ledger.dataset,
            "pixel": self.ledger.pixels or "",
            "frames": self.ledger.frames or "",
            **query,
        }
        path = f"/gateway/v1/{what}/{self.uid}{rest}?{urlencode(said)}"
        digest = hashlib.sha256(body if signed is None else signed).digest()
        headers = http_signatures.sign("PUT", path, digest, CLINIC, "clinic", int(time.time()))
        return Client().put(path, body, content_type="application/octet-stream", headers=headers)

    def begin(self) -> Any:
        return self.ask("uploads", size=len(self.raw), chunk=CHUNK)

    def stretch(self, index: int) -> bytes:
        return self.raw[index * CHUNK : (index + 1) * CHUNK]

    def chunk(self, index: int, **spoiled: Any) -> Any:
        raw = self.stretch(index)
        body = spoiled.get("body", encoding.encode(raw, index * CHUNK, self.pixels))
        return self.ask(
            "uploads",
            body,
            rest=f"/{spoiled.get('at', index)}",
            size=len(self.raw),
            chunk=CHUNK,
            raw=spoiled.get("raw", hashlib.sha256(raw).hexdigest()),
            encoding=spoiled.get("encoding", encoding.NAME),
            **({"signed": spoiled["signed"]} if "signed" in spoiled else {}),
        )

    def finish(self) -> Any:
        return self.ask("instances", size=len(self.raw), chunk=CHUNK)

    def all_chunks(self) -> None:
        assert self.begin().json() == {"missing": [[0, self.count]]}
        for index in reversed(range(self.count)):
            assert self.chunk(index).status_code == 204

    def assert_kept(self, answer: Any) -> None:
        assert answer.status_code == 200, answer.content
        receipt = Receipt.model_validate_json(answer.content)
        assert receipt.checked == ["dataset", "pixel", "frames"]
        assert receipt.dataset_sha256 == self.ledger.dataset
        with registry.store().open(Instance.objects.get(sop_instance_uid=self.uid).pk) as file:
            assert file.read() == self.raw
        assert in_the_spool() == []


def in_the_spool() -> list[Path]:
    return sorted(uploads.folder().iterdir()) if uploads.folder().is_dir() else []


def refused(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert Instance.objects.count() == 0
    assert IssuedReceipt.objects.count() == 0


@pytest.fixture
def sent(tmp_path: Path) -> Sent:
    return Sent(tmp_path)


def test_an_encoded_instance_is_kept_as_the_bytes_it_was(sent: Sent) -> None:
    body = encoding.encode(sent.raw, 0, sent.pixels)
    assert len(body) < len(sent.raw) / 2
    sent.assert_kept(sent.ask("instances", body, encoding=encoding.NAME))


def test_an_encoding_that_does_not_give_the_bytes_back_is_named_so_and_leaves_nothing(sent: Sent) -> None:
    other = bytearray(sent.raw)
    other[-1] ^= 1
    body = encoding.encode(bytes(other), 0, sent.pixels)
    refused(sent.ask("instances", body, encoding=encoding.NAME), 409, "not-restored")


def test_an_encoding_that_nobody_knows_is_refused(sent: Sent) -> None:
    refused(sent.ask("instances", sent.raw, encoding="regis-99"), 415, "unknown-encoding")


def test_chunks_in_any_order_become_the_instance(sent: Sent) -> None:
    sent.all_chunks()
    sent.assert_kept(sent.finish())


def test_a_chunk_again_and_the_end_again_change_nothing(sent: Sent) -> None:
    sent.all_chunks()
    assert sent.chunk(1).status_code == 204
    first = sent.finish()
    assert sent.finish().content == first.content
    sent.assert_kept(first)
    assert Instance.objects.count() == 1


def test_who_begins_again_is_told_what_is_missing(sent: Sent) -> None:
    sent.begin()
    for index in (0, 2):
        assert sent.chunk(index).status_code == 204
    assert sent.begin().json() == {"missing": [[1, 2], [3, sent.count]]}
    refused(sent.finish(), 409, "chunks-missing")


def test_what_is_receipted_already_is_begun_for_nothing(sent: Sent) -> None:
    sent.all_chunks()
    sent.finish()
    assert sent.begin().json() == {"missing": []}
    assert in_the_spool() == []


def test_a_late_chunk_of_what_is_there_makes_no_new_upload(sent: Sent) -> None:
    sent.all_chunks()
    sent.finish()
    answer = sent.chunk(0)
    assert (answer.status_code, answer.json()["code"]) == (404, "no-upload")
    assert in_the_spool() == []


def test_a_flipped_bit_in_a_chunk_is_refused_and_the_chunk_stays_missing(sent: Sent) -> None:
    sent.begin()
    good = encoding.encode(sent.stretch(0), 0, sent.pixels)
    bad = bytes([*good[:-1], good[-1] ^ 1])
    refused(sent.chunk(0, body=bad, signed=good), 409, "body-damaged")
    refused(sent.chunk(0, body=encoding.plain(sent.stretch(1))), 409, "not-restored")
    assert sent.begin().json() == {"missing": [[0, sent.count]]}


@pytest.mark.parametrize(
    ("spoiled", "status", "code"),
    [
        ({"at": 999}, 400, "bad-upload"),
        ({"raw": "xyz"}, 400, "bad-upload"),
        ({"encoding": ""}, 415, "unknown-encoding"),
        ({"body": b"no segments"}, 409, "not-restored"),
    ],
)
def test_a_chunk_that_makes_no_sense_is_refused_by_name(
    sent: Sent, spoiled: dict[str, Any], status: int, code: str
) -> None:
    sent.begin()
    refused(sent.chunk(0, **spoiled), status, code)


@pytest.mark.parametrize(("size", "chunk"), [("0", "5"), ("9", "0"), ("9", str(64 << 20)), ("x", "5"), ("-1", "5")])
def test_an_upload_that_makes_no_sense_is_refused_by_name(sent: Sent, size: str, chunk: str) -> None:
    refused(sent.ask("uploads", size=size, chunk=chunk), 400, "bad-upload")


def test_a_chunk_without_its_upload_is_refused(sent: Sent) -> None:
    refused(sent.chunk(0), 404, "no-upload")


def test_what_was_signed_for_another_receiver_is_refused(sent: Sent) -> None:
    sent.to = "second-archive"
    refused(sent.begin(), 421, "other-receiver")
    refused(sent.chunk(0), 421, "other-receiver")


def test_a_ledger_that_disagrees_with_the_bytes_ends_the_upload(sent: Sent) -> None:
    sent.ledger = type(sent.ledger)(sent.ledger.dataset, "0" * 64, sent.ledger.frames)
    sent.all_chunks()
    refused(sent.finish(), 409, "digest-mismatch")
    assert in_the_spool() == []


def test_a_chunk_that_the_disk_lost_is_found_and_comes_again(sent: Sent) -> None:
    sent.all_chunks()
    data = in_the_spool()[0] / "data"
    with data.open("r+b") as file:
        file.seek(CHUNK)
        file.write(bytes(CHUNK))
    refused(sent.finish(), 409, "chunks-missing")
    assert sent.begin().json() == {"missing": [[1, 2]]}
    sent.chunk(1)
    sent.assert_kept(sent.finish())


def test_an_upload_that_would_fill_the_disk_is_507_before_anything_is_sent(
    sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(storage().root)  # as it was: other programs fill and free the same disk
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        patch.setattr(storage(), "watermarks", Watermarks(Space(usage.free - len(sent.raw))))
        refused(sent.begin(), 507, "storage-full")
    assert in_the_spool() == []
    sent.all_chunks()
    sent.assert_kept(sent.finish())


def test_an_upload_takes_its_room_when_it_begins(sent: Sent) -> None:
    sent.begin()
    assert (in_the_spool()[0] / "data").stat().st_blocks * 512 >= len(sent.raw)


def test_two_that_ask_for_the_end_at_once_get_one_instance_and_one_receipt(sent: Sent) -> None:
    sent.all_chunks()
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda: answers.append(sent.finish())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = {answer.status_code for answer in answers}
    assert 200 in codes
    assert codes <= {200, 404, 503}
    assert len({answer.content for answer in answers if answer.status_code == 200}) == 1
    assert Instance.objects.count() == 1


def test_an_upload_that_nobody_goes_on_with_is_forgotten(sent: Sent) -> None:
    sent.begin()
    sent.chunk(0)
    assert uploads.clean(24) == 0
    a_day_ago = time.time() - 25 * 3600
    for path in (in_the_spool()[0], in_the_spool()[0] / "chunks"):
        os.utime(path, (a_day_ago, a_day_ago))
    assert uploads.clean(24) == 1
    assert in_the_spool() == []
    sent.all_chunks()
    sent.assert_kept(sent.finish())
