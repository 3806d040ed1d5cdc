"""DICOM over TLS: both sides show a certificate of the site's authority.

TLS 1.2 and later with the cipher suites of OpenSSL's default, as BCP 195 asks. Source: PS3.15 B.9, B.12; RFC 9325
"""

import socket
import ssl
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import structlog
from pynetdicom.transport import ThreadedAssociationServer

from pacs_node.clinic.actions import record_refusal
from pacs_node.config import NodeConfig
from pacs_node.dimse.sharing import Helper
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

TLS_REFUSED: Final = "the TLS handshake failed"
_HANDSHAKE_SECONDS: Final = 15.0
_UNASSOCIATED: Final = 50
"""Connections beyond the associations allowed that may be about to ask, or to be told that there are too many."""


def _files(settings: NodeConfig) -> tuple[Path, Path, Path]:
    certificate = settings.dicom_tls_certificate or settings.tls_certificate
    key = settings.dicom_tls_key or settings.tls_key
    if certificate is None or key is None or settings.dicom_tls_ca is None:
        raise PermanentError("invalid-setting", "DICOM over TLS needs REGIS_NODE_DICOM_TLS_CERTIFICATE, …_KEY and …_CA")
    return certificate, key, settings.dicom_tls_ca


def _loaded(settings: NodeConfig, context: ssl.SSLContext) -> ssl.SSLContext:
    certificate, key, authority = _files(settings)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise PermanentError("invalid-setting", f"the files of DICOM over TLS cannot be used: {error}") from error
    return context


def server_context(settings: NodeConfig) -> ssl.SSLContext:
    """For peers that call; each must show a certificate. Raises: PermanentError("invalid-setting")."""
    context = _loaded(settings, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@cache
def client_context(settings: NodeConfig) -> ssl.SSLContext:
    """For peers that are called. Raises: PermanentError("invalid-setting")."""
    context = _loaded(settings, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = settings.dicom_tls_check_host
    return context


class DicomPort(ThreadedAssociationServer):
    """A listening port. The handshake of a peer takes place in its own thread, so nobody waits for a slow one."""

    request_queue_size = 128
    daemon_threads = True
    tls: ssl.SSLContext | None = None
    helper: Helper | None = None
    """Who takes over what comes while this process is busy."""
    most = 0
    """How many associations both may have together."""
    on_end: Callable[[], None] = staticmethod(lambda: None)
    """Called when a connection that came here is over."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection here, or have the helper serve it when it has less to do."""
        if self.helper is not None:
            own, its = len(self.ae.active_associations), self.helper.associations
            self.ae.maximum_associations = max(self.most - its, 1)
            may_hand_over = its < own and own + its < self.most
            if may_hand_over and self.helper.take(request, client_address, tls=self.tls is not None):
                request.close()
                return
        super().process_request(request, client_address)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to look at a connection at all: those that never ask for an association must not pile up."""
        if len(self.active_associations) < self.ae.maximum_associations + _UNASSOCIATED:
            return True
        log.warning("connection-refused", address=str(client_address[0]), reason="too many connections")
        return False

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Handshake, if this port asks for one, then serve."""
        started = False
        try:
            if self.tls is not None:
                request = self._secured(request, client_address)
            if request is not None:
                super().finish_request(request, client_address)
                started = True
        finally:
            if not started:
                self.on_end()

    def _secured(self, request: socket.socket, client_address: Any) -> ssl.SSLSocket | None:
        assert self.tls is not None
        address = str(client_address[0])
        try:
            request.settimeout(_HANDSHAKE_SECONDS)
            if not request.recv(1, socket.MSG_PEEK):  # who only looks whether the port answers
                request.close()
                return None
            return self.tls.wrap_socket(request, server_side=True)
        except OSError as error:  # what SSLError is, and the timeout
            log.warning("tls-refused", address=address, reason=str(error))
            record_refusal(calling_ae_title="", called_ae_title="", address=address, reason=TLS_REFUSED)
            request.close()
            return None
