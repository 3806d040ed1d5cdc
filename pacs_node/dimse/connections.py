"""Sockets and database connections of associations: nothing a peer does may hold either for ever."""

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
from django.db import connection
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.transport import AssociationSocket, RequestHandler

from pacs_node.config import storage_sop_classes
from pacs_node.dimse.statuses import SOP_CLASS_NOT_SUPPORTED

log = structlog.get_logger(__name__)

LARGEST_PDU_BYTES = 4 << 20
"""More than any sane peer sends whatever was negotiated; a PDU can announce 4 GiB."""


def healthy_connection() -> None:
    """Drop this thread's database connection when it broke or is too old; Django opens the next by itself."""
    connection.close_if_unusable_or_obsolete()


class PeerSocket(AssociationSocket):
    """Reads whole PDUs in large pieces, each of bounded size and within a deadline, against peers that dribble."""

    def recv(self, nr_bytes: int) -> bytearray:
        """``nr_bytes`` bytes, or fewer when the peer closed. Raises OSError, which ends the association."""
        if nr_bytes > LARGEST_PDU_BYTES:
            raise OSError(f"a PDU of {nr_bytes} bytes is announced")
        if self.socket is None:
            raise OSError("the connection is closed")
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        limit = self.assoc.network_timeout
        deadline = time.monotonic() + limit if limit else None
        received = 0
        while received < nr_bytes:
            if deadline is not None:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            count = self.socket.recv_into(view[received:])
            if not count:
                view.release()
                del buffer[received:]
                return buffer
            received += count
        self.socket.settimeout(limit)
        return buffer


class PeerHandler(RequestHandler):
    """Sets an association up so that its thread cleans up after itself."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request.settimeout(association.network_timeout)
        association.dul.socket = _as_peer_socket(association.dul.socket)
        association.run = _cleaning_up(association, association.run)
        association._serve_request = _refusing_other_classes(association, association._serve_request)
        return association


def _as_peer_socket(plain: AssociationSocket) -> PeerSocket:
    # A second constructor call would announce the connection twice, so the object changes its class instead.
    plain.__class__ = PeerSocket
    peer: PeerSocket = plain
    return peer


def _refusing_other_classes(association: Association, serve: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
    """pynetdicom aborts on a C-STORE of a class that is none; one broken object must not stop the rest of its study."""

    def wrapped(message: Any, context_id: int) -> None:
        if not isinstance(message, C_STORE) or str(message.AffectedSOPClassUID) in storage_sop_classes():
            serve(message, context_id)
            return
        log.warning("instance-refused", code="sop-class-not-supported", calling_ae_title=association.requestor.ae_title)
        answer = C_STORE()
        answer.MessageIDBeingRespondedTo = message.MessageID
        answer.AffectedSOPClassUID = message.AffectedSOPClassUID
        answer.AffectedSOPInstanceUID = message.AffectedSOPInstanceUID
        answer.Status = SOP_CLASS_NOT_SUPPORTED
        if message._dataset_file is not None:
            message._dataset_file.close()
            message._dataset_path.unlink(missing_ok=True)
        association.dimse.send_msg(answer, context_id)

    return wrapped


def _cleaning_up(association: Association, run: Callable[[], Any]) -> Callable[[], None]:
    def wrapped() -> None:
        try:
            run()
        finally:
            connection.close()
            _forget_half_received(association)

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
