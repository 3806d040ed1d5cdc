"""Which of the node's own services answers a request that came over an association of pynetdicom's."""

from collections.abc import Callable
from typing import Any

import structlog
from django.db import connection
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE, N_ACTION, N_EVENT_REPORT

from pacs_node.dimse import commitment_service
from pacs_node.dimse.admission import peer_of
from pacs_node.dimse.channel import Message, borrowed
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.find import STUDY_FINDS, serve_find
from pacs_node.dimse.retrieve import serve_retrieve
from standards import upper_layer
from standards.errors import TransientError
from standards.sop_classes import STORAGE_COMMITMENT_PUSH_MODEL

log = structlog.get_logger(__name__)


def on_established(event: evt.Event) -> None:
    """Answer the requests of this association that pynetdicom's service classes answer too slowly, or not right."""
    association = event.assoc
    plain = association._serve_request

    def serve(message: Any, context_id: int) -> None:
        own = _own_service(association, message, context_id)
        if own is None:
            plain(message, context_id)
            return
        try:
            own(association, message, context_id)
        except TransientError as error:
            log.warning("association-ended", code=error.code, detail=error.detail)
        except Exception:  # the boundary of the association: it ends, the node goes on
            log.exception("service-broke", service=type(message).__name__)
            association.abort()

    association._serve_request = serve


def _own_service(association: Association, message: Any, context_id: int) -> Callable[..., None] | None:
    context = association._accepted_cx.get(context_id)
    if context is None or message.MessageID is None:
        return None
    # Not only what pynetdicom finds valid: a request without an identifier wants an answer too.
    if isinstance(message, C_MOVE | C_GET) and message.AffectedSOPClassUID is not None:
        return serve_retrieve
    if isinstance(message, C_FIND) and message.AffectedSOPClassUID in STUDY_FINDS:
        return serve_find
    if isinstance(message, N_ACTION | N_EVENT_REPORT) and context.abstract_syntax == STORAGE_COMMITMENT_PUSH_MODEL:
        return _serve_commitment
    return None


def _serve_commitment(association: Association, message: Any, context_id: int) -> None:
    is_action = isinstance(message, N_ACTION)
    content = message.ActionInformation if is_action else message.EventInformation
    command = {
        "CommandField": upper_layer.N_ACTION_RQ if is_action else upper_layer.N_EVENT_REPORT_RQ,
        "MessageID": int(message.MessageID),
        "ActionTypeID": message.ActionTypeID if is_action else None,
        "EventTypeID": None if is_action else message.EventTypeID,
        "RequestedSOPInstanceUID": str(message.RequestedSOPInstanceUID) if is_action else None,
    }
    try:
        with borrowed(association) as channel:
            healthy_connection()
            request = Message(context_id, command, content.getvalue() if content is not None else None)
            commitment_service.serve(channel, peer_of(association), request)
    finally:
        if not is_action:
            connection.close()  # pynetdicom serves reports in a thread of their own
