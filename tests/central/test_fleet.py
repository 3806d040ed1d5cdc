"""Keys, clocks, neighbours of other versions, and what is left behind and pruned: at the centre."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone
from pydantic import TypeAdapter

from gateway.envelope import (
    AuditRow,
    AuditSealed,
    Event,
    KeyChange,
    RawEvent,
    SendStudy,
)
from gateway.keys import public_text, sign
from ris_central.accounts.models import Role, User
from ris_central.federation import actions, configurations, intake, permissions, pruning, queries, trust
from ris_central.federation.models import Command, FormerKey, InboxEvent, Node, NodeAuditRow
from standards import http_signatures
from standards.errors import PermanentError
from tests.central.nodes import Key, joined, status
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


def change(node: str, old: Key, new: Key) -> KeyChange:
    told = KeyChange(node=node, old_key=public_text(old), new_key=public_text(new), made_at=timezone.now())
    text = told.signed_text()
    return told.model_copy(update={"signature": sign(old, text), "proof": sign(new, text)})


def request_of(name: str, key: Key, *, made: float | None = None) -> dict[str, str]:
    moment = int(made if made is not None else timezone.now().timestamp())
    return http_signatures.sign("GET", "/x", http_signatures.EMPTY_BODY_SHA256, key, name, moment)


def types_for(node: Node) -> list[str]:
    return [str(command.body["type"]) for command in actions.take_commands(node.pk, 0)]


def test_a_new_key_counts_at_once_and_the_old_one_for_a_while() -> None:
    node, old = joined()
    new = Key.generate()
    trust.change_key(change("clinic", old, new))
    for key in (old, new):
        assert permissions.node_of("GET", "/x", request_of("clinic", key)).pk == node.pk
    (peer,) = actions.directory_of(node).peers
    assert (peer.public_key, [one.public_key for one in peer.former_keys]) == (public_text(new), [public_text(old)])
    FormerKey.objects.update(until=timezone.now())
    with pytest.raises(PermanentError, match="signature-invalid"):
        permissions.node_of("GET", "/x", request_of("clinic", old))
    assert permissions.node_of("GET", "/x", request_of("clinic", new)).pk == node.pk


def test_a_change_said_again_changes_nothing_also_after_the_next_one() -> None:
    node, first = joined()
    second, third = Key.generate(), Key.generate()
    one, two = change("clinic", first, second), change("clinic", second, third)
    for said in (one, one, two, one, two):
        trust.change_key(said)
    node.refresh_from_db()
    assert node.public_key == public_text(third)
    assert FormerKey.objects.filter(node=node, rotated=True).count() == 2


def test_a_change_needs_both_keys_and_the_present_one() -> None:
    _, key = joined()
    new, stranger = Key.generate(), Key.generate()
    whole = change("clinic", key, new)
    for forged in (
        whole.model_copy(update={"proof": whole.signature}),
        whole.model_copy(update={"signature": sign(stranger, whole.signed_text())}),
        whole.model_copy(update={"node": "other"}),
    ):
        with pytest.raises(PermanentError, match=r"signature-invalid|unknown-key"):
            trust.change_key(forged)
    with pytest.raises(PermanentError, match="key-superseded"):
        trust.change_key(change("clinic", stranger, new))
    other, other_key = joined("other", centre.site("b"))
    with pytest.raises(PermanentError, match="key-taken"):
        trust.change_key(change("other", other_key, key))
    actions.revoke(other)
    with pytest.raises(PermanentError, match="node-revoked"):
        trust.change_key(change("other", other_key, Key.generate()))


def test_what_the_old_key_signed_stays_provable_and_what_it_signs_later_does_not() -> None:
    node, old = joined()
    before = timezone.now()
    trust.change_key(change("clinic", old, Key.generate()))
    node.refresh_from_db()
    proof = sign(old, b"receipt")
    assert trust.is_signed_by(node, proof, b"receipt", before)
    assert not trust.is_signed_by(node, proof, b"receipt", before + trust.OVERLAP + timedelta(minutes=1))


def test_joining_anew_with_another_key_ends_every_former_one() -> None:
    node, old = joined()
    new = Key.generate()
    trust.change_key(change("clinic", old, new))
    joined("clinic", node.site)
    for key in (old, new):
        with pytest.raises(PermanentError, match="signature-invalid"):
            permissions.node_of("GET", "/x", request_of("clinic", key))
    node.refresh_from_db()
    assert actions.directory_of(node).peers[0].former_keys == []


def test_a_revoked_node_gets_no_command_that_it_waits_for() -> None:
    node, _ = joined()
    actions.revoke(node)
    with pytest.raises(PermanentError, match="node-revoked"):
        actions.take_commands(node.pk, 0)


def test_a_node_whose_clock_is_off_by_a_day_is_refused_and_known() -> None:
    node, key = joined()
    yesterday = timezone.now().timestamp() - 86_400
    with pytest.raises(PermanentError, match="signature-expired"):
        permissions.node_of("GET", "/x", request_of("clinic", key, made=yesterday))
    node.refresh_from_db()
    assert node.clock_skew_seconds is not None
    assert abs(node.clock_skew_seconds + 86_400) < 60
    node.clock_skew_seconds = None
    node.save()
    with pytest.raises(PermanentError, match="signature-expired"):
        permissions.node_of("GET", "/x", request_of("clinic", Key.generate(), made=yesterday))
    node.refresh_from_db()
    assert node.clock_skew_seconds is None, "a stranger's signature tells nothing of the node's clock"


def test_a_command_that_a_node_does_not_understand_waits_until_it_does() -> None:
    node, _ = joined()
    Node.objects.filter(pk=node.pk).update(understands=[])  # a node of the version before says nothing
    types_for(node)
    before = set(types_for(node))
    trust.ask_rotation(node)
    actions.send_command(node, SendStudy(study_instance_uid="1.2"))
    assert queries.with_news([node.pk]) == [node.pk]
    assert set(types_for(node)) - before == {"study.send"}
    assert queries.with_news([node.pk]) == [], "nobody is woken for what it would not understand"
    actions.record_status(node, status(understands=["key.rotate", "directory", "study.send"]))
    assert queries.with_news([node.pk]) == [node.pk]
    assert types_for(node)[-1] == "key.rotate"


def raw(seq: int, body: dict[str, object], version: int = 1) -> RawEvent:
    return RawEvent(schema_version=version, epoch="e", seq=seq, occurred_at=timezone.now(), body=body)


def test_an_event_of_the_next_version_is_kept_and_applied_after_the_upgrade(monkeypatch: pytest.MonkeyPatch) -> None:
    node, _ = joined()
    row = AuditRow(
        sequence=1, occurred_at=timezone.now(), actor="a", action="x", outcome="success", previous_hash="", hash=""
    )
    known = AuditSealed(rows=[row.model_copy(update={"hash": row.digest()})]).model_dump(mode="json")
    with monkeypatch.context() as older:  # a program that does not know this event yet
        older.setattr(intake, "VOCABULARY", "older")
        older.setattr(Event, "model_validate", classmethod(_not_understood))
        assert intake.take(node, [raw(1, known), raw(2, {"type": "of.tomorrow"})]).cursor == 2
    assert InboxEvent.objects.filter(error__startswith="event-not-understood").count() == 2
    assert intake.apply_what_is_understood_now() == 1
    assert NodeAuditRow.objects.get().whole
    assert list(InboxEvent.objects.exclude(error="").values_list("type", flat=True)) == ["of.tomorrow"]
    assert intake.apply_what_is_understood_now() == 0, "tried once a vocabulary, not for ever"


def _not_understood(cls: type[Event], /, *args: object, **kwargs: object) -> Event:
    TypeAdapter(int).validate_python("no")
    raise AssertionError


def test_events_of_the_next_schema_version_are_taken() -> None:
    node, _ = joined()
    body = {"type": "delivery.progress", "study_instance_uid": "1.2", "destination": "a", "total": 1, "receipted": 1}
    assert intake.take(node, [raw(1, {**body, "failed": 0, "of_tomorrow": [1]}, version=2)]).cursor == 1
    assert InboxEvent.objects.get().error == ""
    with pytest.raises(PermanentError, match="schema-version"):
        intake.take(node, [raw(2, body, version=3)])


def test_a_restored_centre_says_everything_again_once() -> None:
    node, _ = joined()
    configurations.save(node, {"mirror": {"night_since": "21:00"}})
    actions.take_commands(node.pk, 0)
    ahead = 10**15
    told = actions.take_commands(node.pk, ahead)
    assert {"directory", "configuration", "devices", "roster", "schedule"} <= {str(one.body["type"]) for one in told}
    assert min(one.seq for one in told) > ahead
    node.refresh_from_db()
    assert node.restored_at is not None
    assert actions.take_commands(node.pk, told[-1].seq) == []


def test_revoking_asks_for_the_name_and_rotating_for_a_click(browser_of: Browser) -> None:
    node, _ = joined()
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    assert browser.post(f"/sites/nodes/{node.pk}/rotate/").status_code == 302
    assert Command.objects.filter(node=node, type="key.rotate").exists()
    assert browser.post(f"/sites/nodes/{node.pk}/revoke/", {"name": "clinik"}).status_code == 422
    assert Node.objects.get(pk=node.pk).revoked_at is None
    assert browser.post(f"/sites/nodes/{node.pk}/revoke/", {"name": "clinic"}).status_code == 302
    assert Node.objects.get(pk=node.pk).revoked_at is not None
    assert "Trusted no more" in browser.get(f"/sites/nodes/{node.pk}/").content.decode()


def chain(length: int) -> list[AuditRow]:
    """Rows as a node chains them."""
    rows: list[AuditRow] = []
    for sequence in range(1, length + 1):
        row = AuditRow(
            sequence=sequence,
            occurred_at=datetime(2026, 11, 20, 12, sequence, tzinfo=UTC),
            actor="engineer",
            action="login",
            outcome="success",
            previous_hash=rows[-1].hash if rows else "",
            hash="",
        )
        rows.append(row.model_copy(update={"hash": row.digest()}))
    return rows


def test_rows_of_a_trail_that_come_before_those_they_follow_fit_once_these_are_here() -> None:
    node, _ = joined()
    first, second = chain(2)
    intake.take(node, [raw(1, AuditSealed(rows=[second]).model_dump(mode="json"))])
    assert not NodeAuditRow.objects.get().whole
    intake.take(node, [raw(2, AuditSealed(rows=[first]).model_dump(mode="json"))])
    assert NodeAuditRow.objects.filter(whole=True).count() == 2


def test_a_row_that_was_changed_does_not_fit_when_those_it_follows_come_late() -> None:
    node, _ = joined()
    first, second = chain(2)
    intake.take(node, [raw(1, AuditSealed(rows=[second]).model_dump(mode="json"))])
    NodeAuditRow.objects.update(actor="somebody else")
    intake.take(node, [raw(2, AuditSealed(rows=[first]).model_dump(mode="json"))])
    assert not NodeAuditRow.objects.get(sequence=2).whole


def test_the_trail_of_a_node_is_kept_and_its_breaks_are_shown(browser_of: Browser) -> None:
    node, _ = joined()
    rows = chain(3)
    whole = AuditSealed(rows=rows).model_dump(mode="json")
    intake.take(node, [raw(1, whole), raw(2, whole)])
    assert list(NodeAuditRow.objects.order_by("sequence").values_list("sequence", "whole")) == [
        (1, True),
        (2, True),
        (3, True),
    ]
    forged = rows[2].model_copy(update={"sequence": 4, "actor": "nobody"})
    intake.take(node, [raw(3, AuditSealed(rows=[forged]).model_dump(mode="json"))])
    page = browser_of(centre.user(Role.ADMINISTRATOR)).get(f"/sites/nodes/{node.pk}/audit/").content.decode()
    assert "does not fit" in page


def test_what_was_taken_long_ago_is_forgotten_and_what_is_still_needed_is_not() -> None:
    node, _ = joined()
    progress = {
        "type": "delivery.progress",
        "study_instance_uid": "1.2",
        "destination": "a",
        "total": 1,
        "receipted": 1,
    }
    intake.take(
        node, [raw(1, {**progress, "failed": 0}), raw(2, {"type": "of.tomorrow"}), raw(3, {**progress, "failed": 0})]
    )
    actions.send_command(node, SendStudy(study_instance_uid="1.2"))
    taken = actions.take_commands(node.pk, 0)
    actions.send_command(node, SendStudy(study_instance_uid="1.3"))
    actions.take_commands(node.pk, taken[-1].seq)
    later = timezone.now() + timedelta(days=31)
    events, commands = pruning.prune(later)
    assert (events, commands) == (1, len(taken))
    assert list(InboxEvent.objects.order_by("seq").values_list("seq", flat=True)) == [2, 3]
    assert [one.body["study_instance_uid"] for one in Command.objects.filter(node=node, seq__isnull=False)] == ["1.3"]
    assert intake.take(node, [raw(1, {**progress, "failed": 0})]).cursor == 3, "an old event come again is passed over"
