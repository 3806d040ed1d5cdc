"""A node changes its key and is killed in between, signs by the centre's time, keeps aside what it does not know."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.test import Client
from django.utils import timezone
from pydantic import BaseModel

from gateway import actions, client, clock, commands, heartbeat, registry, rotation
from gateway.envelope import (
    Configuration,
    Directory,
    FormerKey,
    JoinAnswer,
    KeyChange,
    NodeStatus,
    Peer,
    RawCommand,
    Receipt,
    RotateKey,
)
from gateway.keys import is_receipt_of, is_signed, key_path, keys_of, node_key, public_text, sign
from gateway.models import Delivery, JoinState, KeyRotation, OutboxEntry, ParkedCommand
from pacs_node.clinic import audit
from pacs_node.clinic.models import AuditEntry
from pacs_node.clinic.telling import facts, row_of, upload_audit
from pacs_node.config import config
from standards.errors import PermanentError, TransientError

pytestmark = pytest.mark.django_db(transaction=True)

CENTRE = "https://centre.example"


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def _own_key() -> Iterator[None]:
    """Leave no key behind that other tests of this data folder would sign with."""
    node_key(config().data_dir)
    kept = key_path(config().data_dir).read_bytes()
    yield
    key_path(config().data_dir).with_name("federation.next.pem").unlink(missing_ok=True)
    key_path(config().data_dir).write_bytes(kept)


def directory(**keys: Any) -> Directory:
    peers = [
        Peer(name=name, kind="archive", ae_title="A", url="https://a", public_key=one[0], former_keys=one[1:])
        for name, one in keys.items()
    ]
    return Directory(peers=peers, token_keys={}, mirror_to=list(keys))


def join() -> JoinState:
    return actions.record_join(JoinAnswer(name="clinic", directory=directory()), CENTRE)


class Centre:
    """What a centre does with a change of key, over a transport that may lose the answer or be away."""

    def __init__(self) -> None:
        self.key = public_text(node_key(config().data_dir))
        self.lose_answers = 0
        self.status: list[NodeStatus] = []
        self.clock_ahead = 0

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=CENTRE, transport=httpx.MockTransport(self.answer))

    def answer(self, request: httpx.Request) -> httpx.Response:
        headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(seconds=self.clock_ahead), usegmt=True)}
        body = request.read()
        if request.url.path == rotation.KEYS_PATH:
            change = KeyChange.model_validate_json(body)
            assert is_signed(change.old_key, change.signature, change.signed_text())
            assert is_signed(change.new_key, change.proof, change.signed_text())
            if self.key != change.new_key:
                if self.key != change.old_key:
                    return httpx.Response(409, json={"code": "key-superseded"}, headers=headers)
                self.key = change.new_key
            if self.lose_answers:
                self.lose_answers -= 1
                raise httpx.ReadError("the line was cut")
            return httpx.Response(200, json={}, headers=headers)
        created = int(request.headers["Signature-Input"].split("created=")[1].split(";")[0])
        if abs(created - (datetime.now(UTC).timestamp() + self.clock_ahead)) > 300:
            return httpx.Response(401, json={"code": "signature-expired"}, headers=headers)
        status = NodeStatus.model_validate_json(body)
        self.status.append(status)
        return httpx.Response(200, json={"epoch": status.epoch, "cursor": 0}, headers=headers)


def status(state: JoinState) -> NodeStatus:
    return NodeStatus(
        version="1",
        epoch=state.epoch,
        clock=timezone.now(),
        free_bytes=1,
        stored_instances=0,
        events_waiting=0,
        deliveries_waiting=0,
    )


def test_a_key_is_changed_when_the_centre_asks_and_only_once() -> None:
    state, centre = join(), Centre()
    before = public_text(node_key(config().data_dir))
    assert not rotation.step(centre.client(), state)
    rotation.apply_rotate_key(RotateKey())
    state.refresh_from_db()
    assert rotation.step(centre.client(), state)
    after = public_text(node_key(config().data_dir))
    assert after != before
    assert centre.key == after
    assert not rotation.step(centre.client(), state), "asked once, changed once"
    assert KeyRotation.objects.get().announced_at is not None


def test_a_key_is_changed_when_it_is_too_old() -> None:
    state, centre = join(), Centre()
    JoinState.objects.update(joined_at=timezone.now() - timedelta(days=366))
    state.refresh_from_db()
    assert rotation.step(centre.client(), state)
    assert not rotation.step(centre.client(), state)
    actions.apply_configuration(Configuration(version=1, keys={"rotate_after_days": 0}))  # type: ignore[arg-type]
    KeyRotation.objects.update(made_at=timezone.now() - timedelta(days=3000))
    assert not rotation.step(centre.client(), state)


@pytest.mark.parametrize("where", ["key made", "stated", "taken by the centre", "answer lost", "file in place"])
def test_a_node_killed_anywhere_ends_the_change_when_it_comes_back(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state, centre = join(), Centre()
    rotation.apply_rotate_key(RotateKey())
    state.refresh_from_db()

    def dies(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as power_cut:
        match where:
            case "key made":
                power_cut.setattr(rotation, "_state", dies)
            case "stated":
                power_cut.setattr(rotation, "announce", dies)
            case "taken by the centre":
                power_cut.setattr(Path, "replace", dies)
            case "file in place":
                power_cut.setattr(rotation, "sync_folder", dies)
            case _:
                centre.lose_answers = 1
        with pytest.raises((Killed, TransientError)):
            rotation.step(centre.client(), state)
    for _ in range(3):
        rotation.step(centre.client(), JoinState.objects.get())
    assert centre.key == public_text(node_key(config().data_dir))
    assert KeyRotation.objects.count() == 1
    assert not key_path(config().data_dir).with_name("federation.next.pem").exists()


def test_a_centre_that_went_back_in_time_is_told_of_every_key_again() -> None:
    state, centre = join(), Centre()
    yesterday = centre.key
    for _ in range(2):
        rotation.apply_rotate_key(RotateKey())
        state.refresh_from_db()
        assert rotation.step(centre.client(), state)
    present, centre.key = centre.key, yesterday
    assert rotation.announce_all(centre.client()) == 2
    assert centre.key == present


def test_a_rotation_is_announced_again_by_the_heartbeat_that_is_refused() -> None:
    state, centre = join(), Centre()
    told: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        told.append(request.url.path)
        if request.url.path == rotation.KEYS_PATH:
            return httpx.Response(200, json={})
        return httpx.Response(401, json={"code": "signature-invalid"})

    rotation.apply_rotate_key(RotateKey())
    state.refresh_from_db()
    rotation.step(centre.client(), state)
    restored = httpx.Client(base_url=CENTRE, transport=httpx.MockTransport(refuse))
    with pytest.raises(TransientError, match="signature-invalid"):
        heartbeat.beat(restored, state, status(state))
    assert told == [heartbeat.STATUS_PATH, rotation.KEYS_PATH]


def receipt(by: Ed25519PrivateKey, at: datetime) -> Receipt:
    made = Receipt(
        receiver="archive",
        sender="clinic",
        sop_instance_uid="1.2",
        dataset_sha256="0" * 64,
        pixel_sha256=None,
        frames_sha256=None,
        checked=["dataset"],
        received_at=at,
    )
    return made.model_copy(update={"signature": sign(by, made.signed_text())})


def test_requests_and_receipts_of_a_former_key_count_as_far_as_it_did() -> None:
    now = datetime.now(UTC)
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    ended = FormerKey(public_key=public_text(old), until=now - timedelta(days=1))
    overlapping = FormerKey(public_key=public_text(old), until=now + timedelta(days=1))
    (after,) = directory(archive=[public_text(new), ended]).peers
    (during,) = directory(archive=[public_text(new), overlapping]).peers
    assert [len(keys_of(after, now)), len(keys_of(during, now))] == [1, 2]
    assert is_receipt_of(after, receipt(old, now - timedelta(days=2)))
    assert not is_receipt_of(after, receipt(old, now))
    assert is_receipt_of(during, receipt(old, now))
    assert is_receipt_of(after, receipt(new, now))


def test_an_archive_that_changed_its_key_itself_need_not_prove_everything_again() -> None:
    join()
    old, new, stranger = (public_text(Ed25519PrivateKey.generate()) for _ in range(3))
    actions.apply_directory(directory(archive=[old]))
    Delivery.objects.create(
        instance_key=1,
        series_key=1,
        study_instance_uid="1",
        sop_instance_uid="1.1",
        dataset_sha256="0" * 64,
        destination="archive",
        status=Delivery.Status.RECEIPTED,
        next_attempt_at=timezone.now(),
    )
    actions.apply_directory(directory(archive=[new, FormerKey(public_key=old, until=timezone.now())]))
    assert Delivery.objects.get().status == Delivery.Status.RECEIPTED
    actions.apply_directory(directory(archive=[stranger]))
    assert Delivery.objects.get().status == Delivery.Status.WAITING


@pytest.mark.parametrize("ahead", [86_400, -86_400, 400])
def test_a_node_with_a_wrong_clock_learns_the_time_from_the_refusal_and_goes_on(ahead: int) -> None:
    state, centre = join(), Centre()
    centre.clock_ahead = ahead
    with pytest.raises(TransientError, match="signature-expired"):
        heartbeat.beat(centre.client(), state, status(state))
    state = JoinState.objects.get()
    assert abs(state.clock_offset_seconds - ahead) <= 2
    heartbeat.beat(centre.client(), state, status(state))
    assert centre.status[-1].clock_offset_seconds == state.clock_offset_seconds
    centre.clock_ahead = 0  # somebody set the clock
    with pytest.raises(TransientError, match="signature-expired"):
        heartbeat.beat(centre.client(), state, status(state))
    assert JoinState.objects.get().clock_offset_seconds == 0


@pytest.mark.parametrize("address", ["http://centre.example", "https://archive.example", "https://centre.example:444"])
def test_nobody_but_the_centre_over_tls_sets_the_time(address: str) -> None:
    state = join()
    headers = {"Date": format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True)}
    transport = httpx.MockTransport(lambda request: httpx.Response(200, headers=headers))
    with httpx.Client(base_url=address, transport=transport) as peer:
        client.ask(peer, state, "GET", "/x")
    assert JoinState.objects.get().clock_offset_seconds == 0


@pytest.mark.parametrize("date", ["", "yesterday", "Sat, 99 Nov 2026 10:00:00 GMT", "Sat, 21 Nov 2026 10:00:00 -0000"])
def test_a_date_that_is_none_teaches_nothing(date: str) -> None:
    state = join()
    clock.learn(state, answer(date))
    assert state.clock_offset_seconds == 0


def test_an_answer_that_was_waited_for_teaches_nothing() -> None:
    state = join()
    an_hour_ahead = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    clock.learn(state, answer(an_hour_ahead), 25)
    assert state.clock_offset_seconds == 0
    clock.learn(state, answer(an_hour_ahead), 0.1)
    assert abs(state.clock_offset_seconds - 3600) <= 2


def answer(date: str) -> httpx.Response:
    return httpx.Response(200, headers={"Date": date}, request=httpx.Request("GET", CENTRE))


class Tomorrow(BaseModel):
    type: str = "of.tomorrow"


def test_what_is_not_understood_is_kept_told_and_applied_by_the_next_program(monkeypatch: pytest.MonkeyPatch) -> None:
    state = join()
    for seq, version, body in (
        (1, 1, {"type": "of.tomorrow", "what": 1}),
        (2, 9, {"type": "study.send", "study_instance_uid": "1.2"}),
        (3, 1, {"type": "study.send", "study_instance_uid": "1.3"}),
    ):
        commands.apply(state, RawCommand(schema_version=version, seq=seq, body=body))
    state.refresh_from_db()
    assert state.last_command_seq == 3, "what follows is not dammed up"
    assert list(ParkedCommand.objects.order_by("seq").values_list("seq", "type")) == [
        (1, "of.tomorrow"),
        (2, "study.send"),
    ]
    assert commands.retry_parked() == 0, "the same program understands no more"
    applied: list[object] = []
    known = commands._BODY.validate_python

    def understands_more(body: dict[str, Any]) -> object:
        return Tomorrow() if body["type"] == "of.tomorrow" else known(body)

    class Next:
        validate_python = staticmethod(understands_more)

    with monkeypatch.context() as upgraded:
        upgraded.setattr(commands, "_BODY", Next)
        upgraded.setattr(commands, "ACCEPTED_VERSIONS", (1, 9))
        upgraded.setitem(registry._handlers, "of.tomorrow", [applied.append])
        assert commands.retry_parked() == 2
    assert len(applied) == 1
    assert not ParkedCommand.objects.exists()


def test_an_older_directory_that_was_kept_aside_never_replaces_a_newer_one() -> None:
    state = join()
    strange = {"type": "directory", "peers": [{"kind": "of.tomorrow"}], "token_keys": {}, "mirror_to": []}
    commands.apply(state, RawCommand(schema_version=1, seq=1, body=strange))
    assert ParkedCommand.objects.count() == 1
    newer = directory(archive=["A" * 43]).model_dump(mode="json")
    commands.apply(state, RawCommand(schema_version=1, seq=2, body=newer))
    assert not ParkedCommand.objects.exists()


def test_a_node_names_the_commands_that_it_understands() -> None:
    understood = commands.understood()
    assert {"directory", "configuration", "key.rotate", "devices", "roster", "schedule", "study.send"} <= set(
        understood
    )


def test_the_audit_trail_goes_up_once_in_its_order() -> None:
    AuditEntry.objects.all().delete()
    audit.record("login", actor="engineer", detail={"why": "«тест»"})
    audit.seal_all()
    upload_audit()
    assert not OutboxEntry.objects.exists(), "nobody is to be told before the node is joined"
    join()
    for number in range(3):
        audit.record("look", actor=f"person-{number}")
    upload_audit()
    audit.seal_all()
    upload_audit()
    upload_audit()
    told = [
        row for entry in OutboxEntry.objects.filter(kind="audit.sealed").order_by("pk") for row in entry.body["rows"]
    ]
    assert [row["sequence"] for row in told] == [1, 2, 3, 4]
    assert all(row_of(entry).digest() == entry.hash for entry in AuditEntry.objects.all())


def test_a_heartbeat_says_how_the_node_is_kept(tmp_path: Path) -> None:
    state, centre = join(), Centre()
    heartbeat.beat(centre.client(), state, status(state))
    (told,) = centre.status
    assert told.stored_bytes is not None
    assert "key.rotate" in told.understands
    assert facts()["roster_until"] is None


def test_figures_are_given_to_this_machine_alone_or_for_the_token(
    client: Client, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    ask: Callable[..., Any] = client.get
    assert ask("/metrics").status_code == 200
    assert ask("/metrics", REMOTE_ADDR="10.0.0.9").status_code == 403
    with_token = config().model_copy(update={"metrics_token": "opensesame"})
    monkeypatch.setattr("pacs_node.clinic.permissions.config", lambda: with_token)
    assert ask("/metrics").status_code == 403
    assert ask("/metrics", REMOTE_ADDR="10.0.0.9", HTTP_AUTHORIZATION="Bearer opensesame").status_code == 200


def test_a_command_that_can_never_be_applied_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    state = join()

    def never(body: object) -> None:
        raise PermanentError("never", "for a reason")

    monkeypatch.setitem(registry._handlers, "schedule", [never])
    commands.apply(state, RawCommand(schema_version=1, seq=1, body={"type": "schedule"}))
    assert ParkedCommand.objects.get().reason == "never: for a reason"
