"""Storage commitment on the wire: requests and reports over any association, and the thread that owes the answers.

Source: PS3.4 J.3.2 (N-ACTION), J.3.3 (N-EVENT-REPORT); PS3.7 10.1
"""

from typing import Any, Final

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.dsutils import encode

from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import config
from pacs_node.dimse import commitment
from pacs_node.dimse.admission import Peer
from pacs_node.dimse.calling import associate
from pacs_node.dimse.channel import Channel, Context, Message
from pacs_node.dimse.destination import address_of
from pacs_node.dimse.models import Commitment
from pacs_node.dimse.statuses import NOT_AUTHORISED, SUCCESS, comment_text
from standards import upper_layer
from standards.errors import PermanentError, RegisError, TransientError
from standards.part10 import read_identifier, text
from standards.sop_classes import STORAGE_COMMITMENT_PUSH_MODEL, STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE
from standards.transfer_syntaxes import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from standards.uids import validated_uid

log = structlog.get_logger(__name__)

NO_SUCH_INSTANCE: Final = 0x0112
NO_SUCH_EVENT_TYPE: Final = 0x0113
INVALID_ARGUMENT: Final = 0x0115
NO_SUCH_ACTION: Final = 0x0123
_REQUEST: Final = 1
_ALL_COMMITTED: Final = 1
_SOME_FAILED: Final = 2
_IDLE_SECONDS: Final = 1.0
_LOOKS_FOR_REPORT: Final = 20
_LOOK_SECONDS: Final = 0.25


def serve(channel: Channel, peer: Peer, message: Message) -> None:
    """Answer an N-ACTION or an N-EVENT-REPORT of ``peer``. Raises: TransientError when the association is over."""
    if message.field == upper_layer.N_ACTION_RQ:
        _serve_action(channel, peer, message)
    else:
        _serve_report(channel, peer.ae_title, message)


# As SCP


def _serve_action(channel: Channel, peer: Peer, message: Message) -> None:
    status, comment, row = SUCCESS, "", None
    try:
        peer.require("commit")
        transaction_uid, instances = _request(channel, message)
        row = commitment.take(peer.ae_title, transaction_uid, instances)
    except PermanentError as error:
        status = _ACTION_STATUS.get(error.code, INVALID_ARGUMENT)
        comment = str(error)
        log.warning("commitment-refused", code=error.code, detail=error.detail, calling_ae_title=peer.ae_title)
    channel.send(
        message.context_id,
        {
            "CommandField": upper_layer.N_ACTION_RQ | upper_layer.RESPONSE,
            "MessageIDBeingRespondedTo": message.command.get("MessageID", 0),
            "AffectedSOPClassUID": STORAGE_COMMITMENT_PUSH_MODEL,
            "AffectedSOPInstanceUID": STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
            "ActionTypeID": message.command.get("ActionTypeID"),
            "Status": status,
            "ErrorComment": comment_text(comment) or None,
        },
    )
    if row is None:
        return
    if _wants_it_here(peer):
        _report_here(channel, peer, message.context_id)
    else:
        commitment.due.set()


_ACTION_STATUS: Final = {
    "not-authorised": NOT_AUTHORISED,
    "no-such-instance": NO_SUCH_INSTANCE,
    "no-such-action": NO_SUCH_ACTION,
}


def _request(channel: Channel, message: Message) -> tuple[str, list[commitment.Reference]]:
    if message.command.get("RequestedSOPInstanceUID") != STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE:
        raise PermanentError("no-such-instance", "commitment is asked of the well-known instance alone")
    if message.command.get("ActionTypeID") != _REQUEST:
        raise PermanentError("no-such-action", f"action {message.command.get('ActionTypeID')} is not known")
    information = _dataset(channel, message)
    instances = [
        (validated_uid(text(item, "ReferencedSOPClassUID")), validated_uid(text(item, "ReferencedSOPInstanceUID")))
        for item in information.get("ReferencedSOPSequence") or []
    ]
    if not instances:
        raise PermanentError("invalid-argument", "no instances are referenced")
    return validated_uid(text(information, "TransactionUID")), instances


def _dataset(channel: Channel, message: Message) -> Dataset:
    if message.data is None:
        raise PermanentError("invalid-argument", "the message has no data set")
    return read_identifier(message.data, _context(channel, message.context_id).transfer_syntax)


def _context(channel: Channel, context_id: int) -> Context:
    for context in channel.contexts:
        if context.context_id == context_id:
            return context
    raise PermanentError("invalid-argument", f"presentation context {context_id} was not accepted")


def _wants_it_here(peer: Peer) -> bool:
    """Whether the report goes over the association of the request: the registry has no other way, or says so."""
    if ApplicationEntity.Quirk.COMMIT_ON_SAME_ASSOCIATION in peer.quirks:
        return True
    return not ApplicationEntity.objects.filter(ae_title=peer.ae_title, port__gt=0).exclude(host="").exists()


def _report_here(channel: Channel, peer: Peer, context_id: int) -> None:
    """Report all that is owed to this peer over its own association, as far as it stays."""
    while (row := commitment.next_due(peer.ae_title)) is not None:
        try:
            if row.result is None:
                commitment.check(row)
            _report(channel, _context(channel, context_id), row)
        except RegisError as error:
            commitment.put_off(row, error)
            if channel.ended:
                raise
            return
        commitment.reported(row, peer.ae_title)


def _report(channel: Channel, context: Context, row: Commitment) -> None:
    """N-EVENT-REPORT and its answer. Raises: TransientError."""
    result = row.result or {"committed": [], "failed": []}
    event_type = _SOME_FAILED if result["failed"] else _ALL_COMMITTED
    information = Dataset()
    information.TransactionUID = row.transaction_uid
    information.RetrieveAETitle = config().ae_title
    if result["committed"]:
        information.ReferencedSOPSequence = [_reference(*instance) for instance in result["committed"]]
    if result["failed"]:
        information.FailedSOPSequence = [_reference(*instance) for instance in result["failed"]]
    message_id = channel.next_message_id()
    channel.send(
        context.context_id,
        {
            "CommandField": upper_layer.N_EVENT_REPORT_RQ,
            "MessageID": message_id,
            "AffectedSOPClassUID": STORAGE_COMMITMENT_PUSH_MODEL,
            "AffectedSOPInstanceUID": STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
            "EventTypeID": event_type,
        },
        _encoded(information, context),
    )
    _expect(channel, upper_layer.N_EVENT_REPORT_RQ, message_id)


def _expect(channel: Channel, request: int, message_id: int) -> None:
    answer = channel.receive()
    if answer.field != request | upper_layer.RESPONSE or answer.command.get("MessageIDBeingRespondedTo") != message_id:
        channel.abort(upper_layer.UNEXPECTED_PDU)
        raise TransientError("protocol-error", f"message {answer.field:04X} instead of the answer")
    status = int(answer.command.get("Status", commitment.PROCESSING_FAILURE))
    if status != SUCCESS:
        raise TransientError("commitment-refused", f"{status:04X} {answer.command.get('ErrorComment', '')}".strip())


def _reference(sop_class: str, sop_instance: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    if reason is not None:
        item.FailureReason = reason
    return item


def _encoded(dataset: Dataset, context: Context) -> bytes:
    syntax = UID(context.transfer_syntax)
    encoded: bytes | None = encode(dataset, syntax.is_implicit_VR, syntax.is_little_endian)
    if encoded is None:
        raise PermanentError("cannot-encode", "the message cannot be encoded")
    return encoded


# As SCU


def _serve_report(channel: Channel, ae_title: str, message: Message) -> None:
    """Keep what a peer reports of a request of ours."""
    status = SUCCESS
    event_type = message.command.get("EventTypeID")
    try:
        if event_type not in (_ALL_COMMITTED, _SOME_FAILED):
            raise PermanentError("no-such-event-type", f"event type {event_type}")
        information = _dataset(channel, message)
        transaction_uid = text(information, "TransactionUID")
        if not commitment.keep_result(ae_title, transaction_uid, _result(information)):
            raise PermanentError("invalid-argument", f"no transaction {transaction_uid[:64]} was asked of {ae_title}")
    except PermanentError as error:
        status = NO_SUCH_EVENT_TYPE if error.code == "no-such-event-type" else INVALID_ARGUMENT
        log.warning("commitment-report-refused", code=error.code, detail=error.detail, calling_ae_title=ae_title)
    channel.send(
        message.context_id,
        {
            "CommandField": upper_layer.N_EVENT_REPORT_RQ | upper_layer.RESPONSE,
            "MessageIDBeingRespondedTo": message.command.get("MessageID", 0),
            "AffectedSOPClassUID": STORAGE_COMMITMENT_PUSH_MODEL,
            "AffectedSOPInstanceUID": STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
            "EventTypeID": event_type,
            "Status": status,
        },
    )


def _result(information: Dataset) -> dict[str, list[list[Any]]]:
    committed = [
        [text(item, "ReferencedSOPClassUID"), text(item, "ReferencedSOPInstanceUID")]
        for item in information.get("ReferencedSOPSequence") or []
    ]
    failed: list[list[Any]] = [
        [
            text(item, "ReferencedSOPClassUID"),
            text(item, "ReferencedSOPInstanceUID"),
            int(text(item, "FailureReason") or commitment.PROCESSING_FAILURE),
        ]
        for item in information.get("FailedSOPSequence") or []
    ]
    return {"committed": committed, "failed": failed}


def _ask(channel: Channel, row: Commitment) -> None:
    """N-ACTION; a report that comes over the same association at once is taken in too. Raises: TransientError."""
    context = channel.accepts(STORAGE_COMMITMENT_PUSH_MODEL, channel.contexts[0].transfer_syntax)
    if context is None:
        raise TransientError("commitment-refused", "the peer is no Storage Commitment SCP")
    information = Dataset()
    information.TransactionUID = row.transaction_uid
    information.ReferencedSOPSequence = [_reference(*instance) for instance in row.instances]
    message_id = channel.next_message_id()
    channel.send(
        context.context_id,
        {
            "CommandField": upper_layer.N_ACTION_RQ,
            "MessageID": message_id,
            "RequestedSOPClassUID": STORAGE_COMMITMENT_PUSH_MODEL,
            "RequestedSOPInstanceUID": STORAGE_COMMITMENT_PUSH_MODEL_INSTANCE,
            "ActionTypeID": _REQUEST,
        },
        _encoded(information, context),
    )
    _expect(channel, upper_layer.N_ACTION_RQ, message_id)
    commitment.asked(row)
    for _ in range(_LOOKS_FOR_REPORT):
        if channel.waiting(_LOOK_SECONDS):
            message = channel.receive()
            if message.field == upper_layer.N_EVENT_REPORT_RQ:
                _serve_report(channel, row.ae_title, message)
            return
        if Commitment.objects.filter(pk=row.pk, status=Commitment.Status.DONE).exists():
            return  # it came over another association


# The thread that owes the answers


def step() -> float:
    """Do the next thing that is due; how many seconds to rest then. For ``gateway.loops.Loop``."""
    commitment.due.clear()
    row = commitment.next_due()
    if row is None:
        commitment.due.wait(_IDLE_SECONDS)
        return 0.0
    try:
        _work(row)
    except RegisError as error:
        log.warning("commitment-put-off", code=error.code, detail=error.detail, ae_title=row.ae_title)
        commitment.put_off(row, error)
    return 0.0


def _work(row: Commitment) -> None:
    is_scp = row.role == Commitment.Role.SCP
    if is_scp and row.result is None:
        commitment.check(row)
    entity = ApplicationEntity.objects.filter(ae_title=row.ae_title, port__gt=0).exclude(host="").first()
    if entity is None:
        raise TransientError("address-unknown", f"{row.ae_title} is not registered with host and port")
    channel = associate(
        address_of(entity),
        calling=config().ae_title,
        contexts=[(STORAGE_COMMITMENT_PUSH_MODEL, (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN))],
        as_scp=[STORAGE_COMMITMENT_PUSH_MODEL] if is_scp else [],
        timeout=config().network_timeout_seconds,
    )
    try:
        if not channel.contexts:
            raise TransientError("commitment-refused", f"{row.ae_title} does not take storage commitment")
        if is_scp:
            _report(channel, channel.contexts[0], row)
            commitment.reported(row, row.ae_title)
        else:
            _ask(channel, row)
    finally:
        if channel.ended:
            channel.close()
        else:
            channel.release()
