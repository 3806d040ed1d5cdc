"""What a node takes from its peers, and what it refuses; every answer is that of the real view."""

import contextlib
import hashlib
import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.db import connection
from django.test import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import actions, rates, registry, sending
from gateway.envelope import Configuration, Directory, InstanceDescription, JoinAnswer, Peer, Receipt
from gateway.keys import is_signed, node_key, public_text, sign
from gateway.models import IssuedReceipt
from pacs_node.config import config
from pacs_node.storage.stores import storage
from pacs_node.storage.watermarks import Space, Watermarks
from pacs_node.study_index.models import Instance
from standards import http_signatures
from standards.digests import Digests, digests
from standards.errors import TransientError
from tests.contract.region import make_instance

pytestmark = pytest.mark.django_db(transaction=True)

CLINIC = Ed25519PrivateKey.generate()


@pytest.fixture(autouse=True)
def _archive_that_knows_the_clinic() -> None:
    clinic = Peer(name="clinic", kind="clinic", ae_title="CLINIC", url="https://x", public_key=public_text(CLINIC))
    actions.record_join(
        JoinAnswer(name="archive", directory=Directory(peers=[clinic], token_keys={}, mirror_to=[])), "https://centre"
    )


class Sent:
    """One instance on its way, of which a test may spoil any part."""

    def __init__(self, tmp_path: Path, **attributes: Any) -> None:
        image = make_instance(**attributes)
        self.uid = str(image.SOPInstanceUID)
        buffer = io.BytesIO()
        image.save_as(buffer, enforce_file_format=True)
        self.body = buffer.getvalue()
        path = tmp_path / f"{self.uid}-{hashlib.sha256(self.body).hexdigest()[:8]}.dcm"
        path.write_bytes(self.body)
        self.ledger = digests(path)
        self.key, self.keyid, self.created, self.to = CLINIC, "clinic", int(time.time()), "archive"
        self.signed_body = self.body

    def put(self) -> Any:
        query = urlencode(
            {
                "to": self.to,
                "dataset": self.ledger.dataset,
                "pixel": self.ledger.pixels or "",
                "frames": self.ledger.frames or "",
            }
        )
        path = f"/gateway/v1/instances/{self.uid}?{query}"
        digest = hashlib.sha256(self.signed_body).digest()
        headers = http_signatures.sign("PUT", path, digest, self.key, self.keyid, self.created)
        return Client().put(path, self.body, content_type="application/dicom", headers=headers)


def refused(answer: Any, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer["Content-Type"] == "application/problem+json"
    assert Instance.objects.count() == 0
    assert IssuedReceipt.objects.count() == 0


def test_an_instance_is_kept_and_answered_with_a_receipt_that_names_what_was_checked(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    answer = sent.put()
    assert answer.status_code == 200
    receipt = Receipt.model_validate_json(answer.content)
    assert receipt.checked == ["dataset", "pixel", "frames"]
    assert (receipt.receiver, receipt.sender, receipt.outcome) == ("archive", "clinic", "stored")
    assert (receipt.dataset_sha256, receipt.pixel_sha256, receipt.frames_sha256) == (
        sent.ledger.dataset,
        sent.ledger.pixels,
        sent.ledger.frames,
    )
    assert is_signed(public_text(node_key(config().data_dir)), receipt.signature, receipt.signed_text())
    kept = Instance.objects.get()
    with registry.store().open(kept.pk) as file:
        assert file.read() == sent.body


def fetched(sent: Sent) -> Any:
    path = f"/gateway/v1/instances/{sent.uid}?{urlencode({'to': sent.to, 'dataset': sent.ledger.dataset})}"
    digest = hashlib.sha256(b"").digest()
    return Client().get(path, headers=http_signatures.sign("GET", path, digest, sent.key, sent.keyid, sent.created))


@pytest.mark.parametrize(("kilobits", "seconds"), [(800, 1.3), (0, 0.0), (None, 0.0)])
def test_what_a_peer_fetches_back_keeps_the_cap_of_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kilobits: int | None, seconds: float
) -> None:
    """A cap of 0 lets only that go which somebody waits for; this is."""
    waited: list[float] = []
    closed: list[bool] = []
    now = [1000.0]

    def sleep(for_seconds: float) -> None:
        assert closed, "no connection to the database is held while it waits"
        waited.append(for_seconds)
        now[0] += for_seconds

    throttle = rates.Throttle(lambda: now[0], sleep)
    monkeypatch.setattr("gateway.ledger.throttle", throttle)
    monkeypatch.setattr("gateway.views.throttle", throttle)
    windows = [] if kilobits is None else [{"since": "00:00", "until": "00:00", "kilobits_per_second": kilobits}]
    actions.apply_configuration(Configuration.model_validate({"version": 1, "mirror": {"rates": windows}}))
    sent = Sent(tmp_path, size=256)
    assert sent.put().status_code == 200
    monkeypatch.setattr(connection, "close", lambda: closed.append(True))
    answer = fetched(sent)
    assert answer.status_code == 200
    assert b"".join(answer.streaming_content) == sent.body
    assert seconds <= sum(waited) <= seconds * 1.2, f"{len(sent.body)} bytes"


def test_the_same_instance_again_is_kept_once_and_gets_the_same_receipt(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    assert sent.put().content == sent.put().content
    assert Instance.objects.count() == 1


def test_a_receipt_that_was_lost_before_it_was_kept_is_issued_for_the_duplicate(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.put()
    IssuedReceipt.objects.all().delete()
    assert Receipt.model_validate_json(sent.put().content).outcome == "duplicate"


def test_other_content_under_a_used_uid_is_kept_aside_with_a_receipt_of_its_own(tmp_path: Path) -> None:
    first, second = Sent(tmp_path, sop="1.2.3.4", number=1), Sent(tmp_path, sop="1.2.3.4", number=2)
    assert Receipt.model_validate_json(first.put().content).outcome == "stored"
    assert Receipt.model_validate_json(second.put().content).outcome == "conflict"
    assert set(Instance.objects.values_list("dataset_sha256", "is_variant")) == {
        (first.ledger.dataset, False),
        (second.ledger.dataset, True),
    }


@settings(deadline=None, max_examples=25)
@given(position=st.integers(min_value=0), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_refused_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    sent = Sent(tmp_path_factory.mktemp("flip"), size=8)
    at = position % len(sent.body)
    sent.body = sent.body[:at] + bytes([sent.body[at] ^ 1 << bit]) + sent.body[at + 1 :]
    refused(sent.put(), 409, "body-damaged")


@pytest.mark.parametrize("which", ["dataset", "pixels", "frames"])
def test_a_ledger_that_disagrees_with_the_bytes_is_refused_and_leaves_nothing(tmp_path: Path, which: str) -> None:
    sent = Sent(tmp_path)
    wrong = {"dataset": sent.ledger.dataset, "pixels": sent.ledger.pixels, "frames": sent.ledger.frames}
    sent.ledger = Digests(**{**wrong, which: "0" * 64})  # type: ignore[arg-type]
    refused(sent.put(), 409, "digest-mismatch")


def test_a_body_cut_short_is_refused(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.body = sent.body[:-10]
    refused(sent.put(), 409, "body-damaged")


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.keyid = "nobody"
    refused(sent.put(), 401, "unknown-key")


def test_another_key_under_a_known_name_is_refused(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.key = Ed25519PrivateKey.generate()
    refused(sent.put(), 401, "signature-invalid")


def test_no_signature_is_refused() -> None:
    refused(Client().put("/gateway/v1/instances/1.2.3?to=archive", b"x"), 401, "signature-missing")


@pytest.mark.parametrize(("seconds", "status"), [(-290, 200), (290, 200), (-320, 401), (320, 401), (86_400, 401)])
def test_clocks_may_differ_by_five_minutes_and_no_more(tmp_path: Path, seconds: int, status: int) -> None:
    sent = Sent(tmp_path)
    sent.created += seconds
    assert sent.put().status_code == status


def test_what_was_signed_for_another_receiver_is_refused(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.to = "second-archive"
    refused(sent.put(), 421, "other-receiver")


def test_what_is_not_dicom_is_refused_by_name(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.body = sent.signed_body = b"%PDF-1.7 this is no image" * 20
    refused(sent.put(), 422, "not-dicom")


def test_an_instance_under_another_uid_is_refused(tmp_path: Path) -> None:
    sent = Sent(tmp_path)
    sent.uid = "1.2.3.4.5"
    refused(sent.put(), 422, "sop-instance-mismatch")


@pytest.mark.parametrize("uid", ["..", "%2e%2e", "1.2.3a", "1" * 65])
def test_a_uid_that_is_none_is_refused(tmp_path: Path, uid: str) -> None:
    sent = Sent(tmp_path)
    sent.uid = uid
    answer = sent.put()
    assert answer.status_code in (401, 404, 422)
    assert Instance.objects.count() == 0


def test_a_full_disk_is_507_and_the_sender_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = Sent(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(storage(), "watermarks", Watermarks(Space(1 << 62)))
        refused(sent.put(), 507, "storage-full")
    assert sent.put().status_code == 200


def test_the_private_key_is_for_its_owner_alone() -> None:
    node_key(config().data_dir)
    path = config().data_dir / "secrets" / "federation.pem"
    assert path.stat().st_mode & 0o777 == 0o600


ARCHIVE = Ed25519PrivateKey.generate()
PEER = Peer(name="archive", kind="archive", ae_title="ARCHIVE", url="https://x", public_key=public_text(ARCHIVE))
INSTANCE = InstanceDescription(
    sop_instance_uid="1.2.3",
    sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    dataset_sha256="a" * 64,
    pixel_sha256="b" * 64,
    frames_sha256="c" * 64,
    size=1,
)


def receipt(**changes: Any) -> Receipt:
    honest = {
        "receiver": "archive",
        "sender": "clinic",
        "sop_instance_uid": "1.2.3",
        "dataset_sha256": "a" * 64,
        "pixel_sha256": "b" * 64,
        "frames_sha256": "c" * 64,
        "checked": ["dataset", "pixel", "frames"],
        "received_at": "2026-01-02T03:04:05Z",
    }
    unsigned = Receipt.model_validate(honest | changes)
    return unsigned.model_copy(update={"signature": sign(ARCHIVE, unsigned.signed_text())})


def test_an_honest_receipt_is_believed() -> None:
    sending.verify_receipt(receipt(), INSTANCE, "clinic", PEER)


@pytest.mark.parametrize(
    "changes",
    [
        {"receiver": "second"},
        {"sender": "other-clinic"},
        {"sop_instance_uid": "1.2.4"},
        {"dataset_sha256": "d" * 64},
        {"pixel_sha256": None},
        {"frames_sha256": "d" * 64},
        {"checked": ["dataset"]},
        {"checked": []},
    ],
)
def test_a_well_signed_receipt_of_something_else_is_not_believed(changes: dict[str, Any]) -> None:
    with pytest.raises(TransientError, match="receipt-mismatch"):
        sending.verify_receipt(receipt(**changes), INSTANCE, "clinic", PEER)


@contextlib.contextmanager
def no_free_pages() -> Iterator[None]:
    """The file of the index may not grow, and has no pages left that former tests emptied."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")
        cursor.execute("PRAGMA page_count")
        cursor.execute(f"PRAGMA max_page_count = {cursor.fetchone()[0]}")
        try:
            yield
        finally:
            cursor.execute("PRAGMA max_page_count = 1073741823")


def test_a_database_without_room_refuses_by_name_and_takes_the_rest_later(tmp_path: Path) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("only the size of a SQLite file can be bounded by a test")
    sent = [Sent(tmp_path) for _ in range(60)]
    with no_free_pages():
        answers = [one.put() for one in sent]
    refused = [one for one, answer in zip(sent, answers, strict=True) if answer.status_code != 200]
    assert refused, "sixty instances need more pages"
    assert {(answer.status_code, answer.json().get("code")) for answer in answers if answer.status_code != 200} == {
        (507, "storage-full")
    }
    assert [one.put().status_code for one in refused] == [200] * len(refused)


@pytest.mark.parametrize("field", ["sop_instance_uid", "dataset_sha256", "checked", "outcome", "received_at", "sender"])
def test_a_receipt_changed_after_it_was_signed_is_not_believed(field: str) -> None:
    changed = {
        "sop_instance_uid": "9.9",
        "dataset_sha256": "e" * 64,
        "checked": ["dataset"],
        "outcome": "duplicate",
        "received_at": receipt(received_at="2027-01-01T00:00:00Z").received_at,
        "sender": "eve",
    }
    with pytest.raises(TransientError, match="receipt-forged"):
        sending.verify_receipt(receipt().model_copy(update={field: changed[field]}), INSTANCE, "clinic", PEER)


def test_a_receipt_signed_by_another_key_is_not_believed() -> None:
    forged = receipt()
    forged = forged.model_copy(update={"signature": sign(CLINIC, forged.signed_text())})
    with pytest.raises(TransientError, match="receipt-forged"):
        sending.verify_receipt(forged, INSTANCE, "clinic", PEER)
