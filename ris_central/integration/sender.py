"""The outbox of HL7 results: sent in order per receiver until the receiver answers AA."""

import random
import socket
import threading
from datetime import timedelta

import structlog
from django.db import DatabaseError, close_old_connections
from django.utils import timezone

from ris_central.integration.models import Hl7Outgoing, Hl7Receiver
from standards.errors import PermanentError, TransientError
from standards.hl7v2 import parse
from standards.mllp import MllpReader, frame

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 600
ANSWER_SECONDS = 30


def run_sender(stop: threading.Event) -> None:
    """Deliver what is due until ``stop``; a receiver that fails does not hold up the others."""
    while not stop.is_set():
        try:
            for receiver in Hl7Receiver.objects.filter(is_active=True):
                deliver_due(receiver, stop)
        except DatabaseError as error:
            log.error("hl7-sender-database", error=str(error))
        finally:
            close_old_connections()
        stop.wait(POLL_SECONDS)


def deliver_due(receiver: Hl7Receiver, stop: threading.Event | None = None) -> int:
    """Send the receiver's messages in order until it does not answer; how many were delivered."""
    delivered = 0
    for outgoing in receiver.outgoing.filter(delivered_at=None).order_by("id")[:100]:
        if outgoing.next_attempt_at > timezone.now() or (stop is not None and stop.is_set()):
            break
        try:
            transmit(outgoing)
        except TransientError as error:
            _postpone(outgoing, str(error))
            break
        except PermanentError as error:  # one that the receiver will not have must not hold up the rest
            _postpone(outgoing, str(error))
            continue
        outgoing.delivered_at, outgoing.last_error = timezone.now(), ""
        outgoing.attempts += 1
        outgoing.save(update_fields=["delivered_at", "last_error", "attempts"])
        delivered += 1
    return delivered


def transmit(outgoing: Hl7Outgoing) -> None:
    """Send one message and wait for its acknowledgement.

    Raises: TransientError("receiver-unreachable", "no-acknowledgement"), PermanentError("receiver-refused").
    """
    receiver = outgoing.receiver
    try:
        with socket.create_connection((receiver.host, receiver.port), timeout=ANSWER_SECONDS) as link:
            link.sendall(frame(bytes(outgoing.payload)))
            reader = MllpReader()
            while data := link.recv(1 << 16):
                for raw in reader.feed(data):
                    _check(raw, outgoing)
                    return
    except OSError as error:
        raise TransientError("receiver-unreachable", str(error)) from error
    raise TransientError("no-acknowledgement", "the receiver closed the connection")


def _check(raw: bytes, outgoing: Hl7Outgoing) -> None:
    answer = parse(raw)
    if answer.get("MSA-2") != outgoing.message_control_id:
        raise TransientError("no-acknowledgement", "the answer names another message")
    if answer.get("MSA-1") not in ("AA", "CA"):
        text = answer.get("MSA-3") or answer.get("ERR-8")
        raise PermanentError("receiver-refused", f"{answer.get('MSA-1')} {text}".strip())


def _postpone(outgoing: Hl7Outgoing, why: str) -> None:
    outgoing.attempts += 1
    pause = min(LONGEST_PAUSE_SECONDS, 2**outgoing.attempts) * random.uniform(0.7, 1.3)  # noqa: S311  not a secret
    outgoing.next_attempt_at = timezone.now() + timedelta(seconds=pause)
    outgoing.last_error = why[:255]
    outgoing.save(update_fields=["attempts", "next_attempt_at", "last_error"])
    log.warning("hl7-not-delivered", receiver=outgoing.receiver.name, attempts=outgoing.attempts, error=why)
