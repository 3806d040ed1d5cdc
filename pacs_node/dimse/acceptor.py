"""What the DICOM port accepts: each association cleans up after itself, and one that only stores is served quickly."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from django.db import connection
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import AssociationSocket, RequestHandler

from pacs_node.config import storage_sop_classes
from pacs_node.dimse.connections import PeerSocket
from pacs_node.dimse.receiver import take_over_when_only_storing
from pacs_node.dimse.statuses import DOES_NOT_MATCH_SOP_CLASS, SOP_CLASS_NOT_SUPPORTED
from standards.uids import named

log = structlog.get_logger(__name__)


class PeerHandler(RequestHandler):
    """Sets an association up so that its thread cleans up after itself."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.settimeout(association.network_timeout)
        association.dul.socket = _as_peer_socket(association.dul.socket)
        association.run = _cleaning_up(association, association.run, self.server.on_end)
        association.dul.run = _telling_its_end(association, association.dul.run)
        association._serve_request = _refusing_other_classes(association, association._serve_request)
        take_over_when_only_storing(association)
        return association


def _as_peer_socket(plain: AssociationSocket) -> PeerSocket:
    # A second constructor call would announce the connection twice, so the object changes its class instead.
    plain.__class__ = PeerSocket
    peer: PeerSocket = plain
    return peer


def _refusing_other_classes(association: Association, serve: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
    """pynetdicom aborts on a C-STORE of a class that is none; one broken object must not stop the rest of its study."""

    def wrapped(message: Any, context_id: int) -> None:
        if not isinstance(message, C_STORE) or not message.is_valid_request:
            serve(message, context_id)
            return
        sop_class = str(message.AffectedSOPClassUID)
        agreed = {str(one.abstract_syntax) for one in association.accepted_contexts if one.context_id == context_id}
        if sop_class not in storage_sop_classes():
            code, status = "sop-class-not-supported", SOP_CLASS_NOT_SUPPORTED
        elif sop_class not in agreed:
            code, status = "sop-class-mismatch", DOES_NOT_MATCH_SOP_CLASS
        else:
            serve(message, context_id)
            return
        log.warning(
            "instance-refused",
            code=code,
            calling_ae_title=association.requestor.ae_title,
            sop_instance_uid=named(str(message.AffectedSOPInstanceUID)),
        )
        answer = C_STORE()
        answer.MessageIDBeingRespondedTo = message.MessageID
        answer.AffectedSOPClassUID = message.AffectedSOPClassUID
        answer.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        answer.Status = status
        if message._dataset_file is not None:
            message._dataset_file.close()
            message._dataset_path.unlink(missing_ok=True)
        association.dimse.send_msg(answer, context_id)

    return wrapped


def _telling_its_end(association: Association, run: Callable[[], Any]) -> Callable[[], None]:
    """pynetdicom waits half a minute for the request of a peer that has gone; None in its queue ends the waiting."""

    def wrapped() -> None:
        try:
            run()
        finally:
            association.dul.to_user_queue.put(None)

    return wrapped


def _cleaning_up(association: Association, run: Callable[[], Any], ended: Callable[[], None]) -> Callable[[], None]:
    def wrapped() -> None:
        try:
            run()
        except Exception:  # the boundary of the association: it ends, the node goes on
            log.exception("association-broke", calling_ae_title=association.requestor.ae_title)
            association.abort()
        finally:
            connection.close()
            _forget_half_received(association)
            ended()

    return wrapped


def _forget_half_received(association: Association) -> None:
    """pynetdicom leaves the file of a data set that never became complete."""
    message = association.dimse.message
    path = getattr(message, "_data_set_path", None)
    if isinstance(path, Path):
        file = getattr(message, "_data_set_file", None)
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
        path.unlink(missing_ok=True)
