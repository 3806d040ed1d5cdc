"""Associations that this node opens: pynetdicom's PDUs negotiate, then the socket is used as it is."""

import contextlib
import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
)
from pynetdicom.presentation import build_context, negotiate_as_requestor

from pacs_node.dimse.channel import Channel, Context
from standards import upper_layer
from standards.errors import PermanentError, RegisError, TransientError
from standards.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

MOST_CONTEXTS: Final = 128
"""Odd numbers from 1 to 255. Source: PS3.8 9.3.2.2"""

_APPLICATION_CONTEXT: Final = UID("1.2.840.10008.3.1.1.1")
_LARGEST_ANSWER: Final = 1 << 20


@dataclass(frozen=True)
class Address:
    """Where a peer listens, what it is called, and by which TLS context it is spoken to (None: plainly)."""

    ae_title: str
    host: str
    port: int
    tls: ssl.SSLContext | None = None


def associate(
    peer: Address,
    *,
    calling: str,
    contexts: Sequence[tuple[str, Sequence[str]]],
    as_scp: Iterable[str] = (),
    timeout: float,
    largest_pdu: int = 131_072,
) -> Channel:
    """Open an association that proposes ``contexts`` (abstract syntax, transfer syntaxes); ``as_scp`` names the
    abstract syntaxes for which this node, though it calls, proposes to be the SCP alone (role selection).

    Raises: TransientError "connection-failed" (no connection, or TLS refused), "association-rejected" (for now),
        "aborted", "timed-out", "connection-lost"; PermanentError "association-rejected" (for good), "protocol-error".
    """
    connection = _connect(peer, timeout)
    try:
        return _negotiate(connection, peer, calling, contexts, set(as_scp), timeout, largest_pdu)
    except BaseException:
        with contextlib.suppress(OSError):
            connection.close()
        raise


def _connect(peer: Address, timeout: float) -> socket.socket:
    where = f"{peer.ae_title} at {peer.host}:{peer.port}"
    try:
        plain = socket.create_connection((peer.host, peer.port), timeout)
    except OSError as error:
        raise TransientError("connection-failed", f"{where}: {error.strerror or error}") from error
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if peer.tls is None:
        return plain
    try:
        return peer.tls.wrap_socket(plain, server_hostname=peer.host)
    except OSError as error:
        plain.close()
        raise TransientError("connection-failed", f"{where}, TLS: {error.strerror or error}") from error


def _negotiate(
    connection: socket.socket,
    peer: Address,
    calling: str,
    contexts: Sequence[tuple[str, Sequence[str]]],
    as_scp: set[str],
    timeout: float,
    largest_pdu: int,
) -> Channel:
    proposed = []
    for number, (abstract, syntaxes) in enumerate(contexts):
        context = build_context(abstract, list(syntaxes))
        context.context_id = 2 * number + 1
        if abstract in as_scp:
            context.scu_role, context.scp_role = False, True
        proposed.append(context)
    request = A_ASSOCIATE()
    request.application_context_name = _APPLICATION_CONTEXT
    request.calling_ae_title, request.called_ae_title = calling, peer.ae_title
    request.presentation_context_definition_list = proposed
    request.user_information = _user_information(as_scp, largest_pdu)
    try:
        connection.sendall(A_ASSOCIATE_RQ(request).encode())
        answer = upper_layer.read_pdu(connection, _LARGEST_ANSWER, time.monotonic() + timeout)
    except TimeoutError as error:
        raise TransientError("timed-out", f"{peer.ae_title} did not answer the association request") from error
    except OSError as error:
        raise TransientError("connection-lost", f"{peer.ae_title}: {error.strerror or error}") from error
    if answer is None:
        raise TransientError("connection-lost", f"{peer.ae_title} closed the connection")
    kind, payload = answer
    whole = upper_layer.pdu_header(kind, len(payload)) + payload
    if kind == upper_layer.ASSOCIATE_RJ:
        raise _rejection(peer, whole)
    if kind == upper_layer.ABORT:
        raise TransientError("aborted", f"{peer.ae_title} aborted the association request")
    if kind != upper_layer.ASSOCIATE_AC:
        raise PermanentError("protocol-error", f"{peer.ae_title} answered with a PDU of type {kind:02X}")
    accepted = _accepted(peer, whole)
    roles = {
        item.sop_class_uid: (item.scu_role, item.scp_role)
        for item in accepted.user_information
        if isinstance(item, SCP_SCU_RoleSelectionNegotiation)
    }
    agreed = negotiate_as_requestor(proposed, accepted.presentation_context_definition_results_list, roles)
    return Channel(
        connection,
        largest_pdu=accepted.maximum_length_received or 0,
        contexts=tuple(
            Context(
                context.context_id or 0,
                str(context.abstract_syntax),
                str(context.transfer_syntax[0]),
                bool(context.as_scu),
                bool(context.as_scp),
            )
            for context in agreed
            if context.result == 0 and context.transfer_syntax
        ),
        timeout=timeout,
    )


def _user_information(as_scp: set[str], largest_pdu: int) -> list[object]:
    length = MaximumLengthNotification()
    length.maximum_length_received = largest_pdu
    implementation = ImplementationClassUIDNotification()
    implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    items: list[object] = [length, implementation, version]
    for abstract in sorted(as_scp):
        role = SCP_SCU_RoleSelectionNegotiation()
        role.sop_class_uid = UID(abstract)
        role.scu_role, role.scp_role = False, True
        items.append(role)
    return items


def _rejection(peer: Address, whole: bytes) -> RegisError:
    rejection = A_ASSOCIATE_RJ()
    try:
        rejection.decode(whole)
        reason = f"{peer.ae_title}: {rejection.reason_str}"
        transient = rejection.result == 2
    except (ValueError, KeyError, IndexError, TypeError):
        reason, transient = f"{peer.ae_title} rejects without a readable reason", False
    return (TransientError if transient else PermanentError)("association-rejected", reason)


def _accepted(peer: Address, whole: bytes) -> A_ASSOCIATE:
    pdu = A_ASSOCIATE_AC()
    try:
        pdu.decode(whole)
        return pdu.to_primitive()
    except Exception as error:  # whatever a hostile answer breaks in pynetdicom's parser is one thing to the caller
        raise PermanentError("protocol-error", f"the answer of {peer.ae_title} cannot be read") from error
