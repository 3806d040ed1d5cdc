"""Everything that writes the gateway's tables for others; each call joins the caller's transaction."""

import json
from datetime import datetime
from functools import cache
from typing import Any
from uuid import uuid4

from django.db import DEFAULT_DB_ALIAS, connection, connections, transaction
from django.utils import timezone

from gateway import ledger
from gateway.envelope import (
    AccessionState,
    AssociationRefused,
    Configuration,
    Directory,
    HoldDelivery,
    InstanceConflicted,
    JoinAnswer,
    OrderCancelled,
    OrderChanged,
    OrderRegistered,
    ReportDraft,
    RetryDelivery,
    SendStudy,
    SeriesKey,
)
from gateway.hot_path import run_many, statement
from gateway.models import Delivery, JoinState, NumberedEvent, OutboxEntry, StudyPriority
from gateway.protocols import HeldInstance

INSTANCE_STORED = "instance.stored"
SERIES_RELEASED = "series.released"
SERIES_HELD = "series.held"
DELIVERY_PROGRESS = ledger.DELIVERY_PROGRESS
ASSOCIATION_REFUSED = "association.refused"
INSTANCE_CONFLICTED = "instance.conflicted"
TOLD_ONCE = ("accession.state", "order.registered", "order.changed", "order.cancelled", "report.draft")
"""What people did at the node: nothing that is announced again repeats it."""


def _body_of(instance: HeldInstance) -> dict[str, str]:
    return {
        "study_instance_uid": instance.study_instance_uid,
        "sop_instance_uid": instance.sop_instance_uid,
        "dataset_sha256": instance.dataset_sha256,
    }


def record_stored(
    *, instance_key: int, series_key: int, study_instance_uid: str, sop_instance_uid: str, dataset_sha256: str
) -> None:
    """Put a stored instance on the outbox. Call it in the transaction that indexes the instance.

    The relay announces it to the centre and opens the ledger's rows, by the destinations that hold then: one place
    decides, so a directory that changes meanwhile loses nothing.
    """
    record_held([HeldInstance(instance_key, series_key, study_instance_uid, sop_instance_uid, dataset_sha256)])


def record_held(instances: list[HeldInstance]) -> None:
    """:func:`record_stored` for many at once, and for those that are held already. The node's hottest path is here."""
    here = connections[DEFAULT_DB_ALIAS]
    now = here.ops.adapt_datetimefield_value(timezone.now())
    rows = [
        (INSTANCE_STORED, instance.series_key, instance.instance_key, json.dumps(_body_of(instance)), now)
        for instance in instances
    ]
    run_many(here, _outbox_statement(), rows)


@cache
def _outbox_statement() -> str:
    quote, table = connection.ops.quote_name, OutboxEntry._meta.db_table
    columns = ", ".join(map(quote, ("kind", "series_key", "instance_key", "body", "occurred_at")))
    return statement(f"INSERT INTO {quote(table)} ({columns}) VALUES (%s, %s, %s, %s, %s)")  # noqa: S608


def record_conflict(
    *,
    study_instance_uid: str,
    sop_instance_uid: str,
    kept_sha256: str,
    variant_sha256: str,
    source_ae_title: str = "",
) -> None:
    """Tell the centre that a used SOP Instance UID came with other content and was kept aside."""
    body = InstanceConflicted(
        study_instance_uid=study_instance_uid,
        sop_instance_uid=sop_instance_uid,
        kept_sha256=kept_sha256,
        variant_sha256=variant_sha256,
        source_ae_title=source_ae_title,
    )
    OutboxEntry.objects.create(kind=INSTANCE_CONFLICTED, body=body.model_dump(mode="json"))


def record_refused(*, calling_ae_title: str, called_ae_title: str, address: str, reason: str) -> None:
    """Tell the centre that a peer was turned away at the DICOM port."""
    body = AssociationRefused(
        calling_ae_title=calling_ae_title, called_ae_title=called_ae_title, address=address, reason=reason
    )
    OutboxEntry.objects.create(kind=ASSOCIATION_REFUSED, body=body.model_dump(mode="json"))


def record_fact(body: AccessionState | OrderRegistered | OrderChanged | OrderCancelled | ReportDraft) -> None:
    """Tell the centre what a person did at this node; it is told in the order of these calls."""
    OutboxEntry.objects.create(kind=body.type, body=body.model_dump(mode="json"))


def record_released(series_key: int, released: list[tuple[str, str]]) -> None:
    """Tell the centre that this node no longer holds these ``(SOP Instance UID, data set digest)`` of a series."""
    OutboxEntry.objects.create(kind=SERIES_RELEASED, series_key=series_key, body={"released": sorted(set(released))})


def record_series_held(key: SeriesKey) -> None:
    """Tell the centre all that this node holds of a series, to replace what was told before."""
    OutboxEntry.objects.create(kind=SERIES_HELD, body=key._asdict())


def restore_receipt(
    *,
    instance_key: int,
    series_key: int,
    study_instance_uid: str,
    sop_instance_uid: str,
    dataset_sha256: str,
    destination: str,
    receipt: dict[str, Any],
    receipted_at: datetime,
) -> None:
    """Put a receipt that a journal kept back on the ledger, so that the copy it proves can be fetched."""
    Delivery.objects.get_or_create(
        instance_key=instance_key,
        destination=destination,
        defaults={
            "series_key": series_key,
            "study_instance_uid": study_instance_uid,
            "sop_instance_uid": sop_instance_uid,
            "dataset_sha256": dataset_sha256,
            "status": Delivery.Status.RECEIPTED,
            "proof": Delivery.Proof.RECEIPT,
            "receipt": receipt,
            "receipted_at": receipted_at,
            "next_attempt_at": receipted_at,
        },
    )


@transaction.atomic
def new_epoch() -> None:
    """Begin another sequence of events, after a restore or a clone: all that is held is announced again.

    Facts of the old sequence that the centre never took and that no announcement repeats go to the outbox again.
    """
    state = JoinState.objects.select_for_update().first()
    if state is None:
        return
    _keep_untold(state)
    state.epoch = str(uuid4())
    state.acknowledged_seq = 0
    state.backfill_after = 0
    state.save(update_fields=["epoch", "acknowledged_seq", "backfill_after"])


def _keep_untold(state: JoinState) -> None:
    unsent = NumberedEvent.objects.filter(
        epoch=state.epoch,
        acknowledged_at=None,
        body__type__in=[INSTANCE_CONFLICTED, ASSOCIATION_REFUSED, *TOLD_ONCE],
    ).order_by("seq")
    OutboxEntry.objects.bulk_create([OutboxEntry(kind=event.body["type"], body=event.body) for event in unsent])


def _prove_again(former: dict[str, Any], directory: Directory) -> None:
    """A destination with another key is another machine: what the old one receipted and is still here goes again.

    A key that the peer itself rotated away from is its own still.
    """
    keys = {peer["name"]: peer["public_key"] for peer in former.get("peers", [])}
    changed = [
        peer.name
        for peer in directory.peers
        if keys.get(peer.name, peer.public_key) not in {peer.public_key, *(old.public_key for old in peer.former_keys)}
    ]
    Delivery.objects.filter(destination__in=changed, status=Delivery.Status.RECEIPTED, released_at__isnull=True).update(
        status=Delivery.Status.WAITING, proof="", receipt=None, receipted_at=None, next_attempt_at=timezone.now()
    )


@transaction.atomic
def record_join(answer: JoinAnswer, centre_url: str) -> JoinState:
    """Keep that this node is joined, under a new epoch; all it holds is announced from the start."""
    former = JoinState.objects.first()
    if former is not None:
        _keep_untold(former)
        _prove_again(former.directory, answer.directory)
        former.delete()
    return JoinState.objects.create(
        name=answer.name,
        centre_url=centre_url.rstrip("/"),
        epoch=str(uuid4()),
        directory=answer.directory.model_dump(mode="json"),
        backfill_after=0,
        centre_seen_at=timezone.now(),
    )


@transaction.atomic
def apply_directory(directory: Directory) -> None:
    """Take the new trust list; when there are new destinations, everything held goes on their ledger."""
    state = JoinState.objects.select_for_update().get()
    _prove_again(state.directory, directory)
    added = set(directory.mirror_to) - set(state.directory.get("mirror_to", []))
    state.directory = directory.model_dump(mode="json")
    if added:
        state.backfill_after = 0
    state.save(update_fields=["directory", "backfill_after"])


@transaction.atomic
def apply_configuration(configuration: Configuration) -> None:
    """Take what the region decided for this node, whatever its version: going back is one more version.

    Other rules of the mirror have everything held laid on the ledger again; the loop of the rules does the rest.
    """
    state = JoinState.objects.select_for_update().get()
    former = Configuration.model_validate(state.configuration or {}).mirror
    state.configuration = configuration.model_dump(mode="json")
    if (former.rules, former.outside) != (configuration.mirror.rules, configuration.mirror.outside):
        state.ledger_after = 0
    state.save(update_fields=["configuration", "ledger_after"])


@transaction.atomic
def apply_send_study(command: SendStudy) -> None:
    """Deliver this study before others, what is held of it and what is still to come; failed ones get another try."""
    StudyPriority.objects.update_or_create(
        study_instance_uid=command.study_instance_uid, defaults={"priority": command.priority, "is_held": False}
    )
    apply_retry(RetryDelivery(study_instance_uid=command.study_instance_uid))
    _decide_again(command.study_instance_uid)


@transaction.atomic
def apply_hold(command: HoldDelivery) -> None:
    """Have nothing more of a study leave, or forget what was asked for it."""
    study = command.study_instance_uid
    if command.action == "hold":
        StudyPriority.objects.update_or_create(
            study_instance_uid=study, defaults={"is_held": True}, create_defaults={"is_held": True, "priority": 50}
        )
    else:
        StudyPriority.objects.filter(study_instance_uid=study).delete()
    _decide_again(study)


def _decide_again(study_instance_uid: str) -> None:
    if state := JoinState.objects.first():
        ledger.decide_again(ledger.Judge(state), study_instance_uid)


@transaction.atomic
def apply_retry(command: RetryDelivery) -> None:
    """Give what failed another try, and what waits for its next try that try now; a receipt asked for again too."""
    rows = Delivery.objects.exclude(status__in=Delivery.CLOSED)
    if command.study_instance_uid:
        rows = rows.filter(study_instance_uid=command.study_instance_uid)
    if command.destination:
        rows = rows.filter(destination=command.destination)
    failed = rows.filter(status=Delivery.Status.FAILED)
    ledger.announce(set(failed.values_list("study_instance_uid", "destination").distinct()))
    failed.update(status=Delivery.Status.WAITING, attempts=0)
    rows.update(next_attempt_at=timezone.now())


def retry_failed(study_instance_uid: str, *, now: datetime | None = None) -> int:
    """Give the failed deliveries of a study another try; how many there were."""
    failed = Delivery.objects.filter(study_instance_uid=study_instance_uid, status=Delivery.Status.FAILED).count()
    apply_retry(RetryDelivery(study_instance_uid=study_instance_uid))
    return failed
