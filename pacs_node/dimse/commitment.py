"""Storage commitment: what is asked and promised. "Committed" means: the file was read again and its digest is right.

Source: PS3.4 J.3; failure reasons PS3.3 C.14.1.1
"""

import hashlib
import threading
from datetime import timedelta
from typing import Any, Final

import structlog
from django.db import transaction
from django.utils import timezone

from gateway.deliveries import pause
from gateway.models import Delivery
from pacs_node.clinic import audit
from pacs_node.dimse.models import Commitment
from pacs_node.storage.models import Recompression
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards.digests import dataset_sha256
from standards.errors import PermanentError, RegisError
from standards.uids import new_uid

log = structlog.get_logger(__name__)

PROCESSING_FAILURE: Final = 0x0110
NO_SUCH_INSTANCE: Final = 0x0112
CLASS_CONFLICT: Final = 0x0119
DUPLICATE_TRANSACTION: Final = 0x0131

LEASE: Final = timedelta(minutes=10)
"""How long a row is left to the thread that took it up."""

_GIVEN_UP_AFTER: Final = timedelta(days=7)
_LONGEST_PAUSE_SECONDS: Final = 3600.0
_REPORT_EXPECTED_WITHIN: Final = timedelta(hours=1)

Reference = tuple[str, str]
"""SOP Class UID, SOP Instance UID."""

due = threading.Event()
"""Set when there may be something to do at once."""


def digest_of(instances: list[Reference]) -> str:
    """What makes a repeated request the same one, whatever the order of its items."""
    lines = sorted(f"{sop_class} {sop_instance}\n" for sop_class, sop_instance in instances)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


@transaction.atomic
def take(ae_title: str, transaction_uid: str, instances: list[Reference]) -> Commitment:
    """Keep a request of a peer. The same again is the same row, reported once more; a Transaction UID that is used for
    other instances is a row whose every instance has failed for that reason."""
    now = timezone.now()
    others = Commitment.objects.filter(role=Commitment.Role.SCP, ae_title=ae_title, transaction_uid=transaction_uid)
    is_reused = others.exclude(instances_sha256=digest_of(instances)).exists()
    row, created = Commitment.objects.get_or_create(
        role=Commitment.Role.SCP,
        ae_title=ae_title,
        transaction_uid=transaction_uid,
        instances_sha256=digest_of(instances),
        defaults={"instances": instances, "next_attempt_at": now},
    )
    if created and is_reused:
        row.status = Commitment.Status.CHECKED
        row.result = {"committed": [], "failed": [[*instance, DUPLICATE_TRANSACTION] for instance in instances]}
        row.save()
    elif not created:
        if row.status in (Commitment.Status.DONE, Commitment.Status.FAILED):
            row.status, row.result, row.attempts = Commitment.Status.WAITING, None, 0
        row.next_attempt_at = now
        row.save()
    return row


@transaction.atomic
def ask(ae_title: str, instances: list[Reference]) -> Commitment:
    """Have the node ask ``ae_title`` for commitment of these instances; the row gets the answer.

    Raises: PermanentError("nothing-to-commit").
    """
    if not instances:
        raise PermanentError("nothing-to-commit", "no instances are named")
    row = Commitment.objects.create(
        role=Commitment.Role.SCU,
        ae_title=ae_title,
        transaction_uid=new_uid(),
        instances=instances,
        instances_sha256=digest_of(instances),
        next_attempt_at=timezone.now(),
    )
    transaction.on_commit(due.set)
    return row


def check(row: Commitment) -> None:
    """Read every file of the request again and keep what came of it."""
    result: dict[str, list[list[Any]]] = {"committed": [], "failed": []}
    for sop_class, sop_instance in row.instances:
        reason = failure_reason(sop_class, sop_instance)
        if reason is None:
            result["committed"].append([sop_class, sop_instance])
        else:
            result["failed"].append([sop_class, sop_instance, reason])
    row.result, row.status = result, Commitment.Status.CHECKED
    row.save(update_fields=["result", "status"])


def failure_reason(sop_class: str, sop_instance: str) -> int | None:
    """Why an instance cannot be committed, None when it is safe.

    All copies that came under this UID must be whole: the request does not say which of them its sender means. One
    that this node has let go of is safe where another node gave a signed receipt for its digest.
    """
    rows = list(Instance.objects.filter(sop_instance_uid=sop_instance))
    if not rows:
        return NO_SUCH_INSTANCE
    if all(row.sop_class_uid != sop_class for row in rows):
        return CLASS_CONFLICT
    for row in rows:
        if row.released_at is not None:
            if not _is_receipted(row):
                return NO_SUCH_INSTANCE
        elif not _is_whole(row):
            return PROCESSING_FAILURE
    return None


def _is_receipted(row: Instance) -> bool:
    receipts = Delivery.objects.filter(instance_key=row.pk, dataset_sha256=row.dataset_sha256)
    return receipts.filter(status=Delivery.Status.RECEIPTED, receipt__isnull=False).exists()


def _is_whole(row: Instance) -> bool:
    recompressed = Recompression.objects.filter(instance_id=row.pk, left_alone="").first()
    expected = recompressed.stored_sha256 if recompressed is not None else row.dataset_sha256
    try:
        with storage().open(row.path) as file:
            found = dataset_sha256(file)
    except (RegisError, OSError) as error:
        log.error("not-committed", sop_instance_uid=row.sop_instance_uid, reason=str(error))
        return False
    if found != expected:
        log.error("not-committed", sop_instance_uid=row.sop_instance_uid, reason="the file has another digest")
    return found == expected


@transaction.atomic
def reported(row: Commitment, actor: str) -> None:
    """The peer has the report."""
    row.status, row.done_at, row.last_error = Commitment.Status.DONE, timezone.now(), ""
    row.save(update_fields=["status", "done_at", "last_error"])
    result = row.result or {"committed": [], "failed": []}
    audit.record(
        "commitment.reported" if row.role == Commitment.Role.SCP else "commitment.received",
        actor=actor,
        outcome="success" if not result["failed"] else "failed",
        entity=row.transaction_uid,
        detail={"committed": len(result["committed"]), "failed": len(result["failed"])},
    )


def asked(row: Commitment) -> None:
    """The peer has taken the request; if its report does not come, it is asked again."""
    row.status, row.next_attempt_at = Commitment.Status.ASKED, timezone.now() + _REPORT_EXPECTED_WITHIN
    row.last_error = ""
    row.save(update_fields=["status", "next_attempt_at", "last_error"])


def keep_result(ae_title: str, transaction_uid: str, result: dict[str, list[list[Any]]]) -> bool:
    """Keep what a peer reports of a request of this node; False when there is no such request."""
    row = Commitment.objects.filter(
        role=Commitment.Role.SCU, ae_title=ae_title, transaction_uid=transaction_uid
    ).first()
    if row is None:
        return False
    row.result = result
    row.save(update_fields=["result"])
    reported(row, ae_title)
    return True


def put_off(row: Commitment, error: RegisError) -> None:
    """Try again later, longer and longer, for a week; then give up, which a person can see."""
    row.attempts += 1
    row.last_error = str(error)[:255]
    row.next_attempt_at = timezone.now() + timedelta(seconds=pause(row.attempts, longest=_LONGEST_PAUSE_SECONDS))
    if timezone.now() - row.created_at > _GIVEN_UP_AFTER:
        row.status = Commitment.Status.FAILED
        log.error("commitment-given-up", transaction_uid=row.transaction_uid, ae_title=row.ae_title, reason=str(error))
    row.save(update_fields=["attempts", "last_error", "next_attempt_at", "status"])


def next_due(ae_title: str = "") -> Commitment | None:
    """The next row to work on (of this peer), left to the caller for a while."""
    rows = Commitment.objects.exclude(status__in=[Commitment.Status.DONE, Commitment.Status.FAILED])
    if ae_title:
        rows = rows.filter(ae_title=ae_title, role=Commitment.Role.SCP)
    else:
        rows = rows.filter(next_attempt_at__lte=timezone.now())
    rows = rows.order_by("next_attempt_at", "pk")
    if not rows.exists():  # an idle node takes no write lock
        return None
    with transaction.atomic():
        row = rows.select_for_update().first()
        if row is not None:
            Commitment.objects.filter(pk=row.pk).update(next_attempt_at=timezone.now() + LEASE)
        return row
