"""The one application entity of a node: all its DICOM services on one port."""

import logging
import os
import threading
from functools import partial
from ssl import SSLContext
from tempfile import NamedTemporaryFile

import pynetdicom._config
import pynetdicom.dimse_messages
from pynetdicom import AE, evt, register_uid
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import Verification, uid_to_service_class

from pacs_node.config import NodeConfig, config, storage_sop_classes
from pacs_node.dimse.acceptor import PeerHandler
from pacs_node.dimse.admission import on_requested
from pacs_node.dimse.find import on_extended, on_find
from pacs_node.dimse.services import on_established
from pacs_node.dimse.sharing import Duty, Helper
from pacs_node.dimse.store import on_store
from pacs_node.dimse.tls import DicomPort, server_context
from pacs_node.storage.stores import storage
from standards.part10 import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME


def prepare_pynetdicom() -> None:
    """Process-wide settings: received data sets go to the storage's own folder, no identifiers in logs."""
    pynetdicom._config.STORE_RECV_CHUNKED_DATASET = True
    pynetdicom._config.LOG_REQUEST_IDENTIFIERS = False
    pynetdicom._config.LOG_RESPONSE_IDENTIFIERS = False
    pynetdicom.dimse_messages.NamedTemporaryFile = partial(
        NamedTemporaryFile, dir=storage().incoming, prefix=f"{os.getpid()}-"
    )
    for uid in sorted(storage_sop_classes()):
        if uid_to_service_class(uid) is not StorageServiceClass:
            register_uid(uid, f"Storage_{uid.replace('.', '_')}", StorageServiceClass)
    logging.getLogger("pynetdicom").setLevel(logging.ERROR)
    # What peers do wrong ``connections`` logs in one line each; here it would come again with a trace.
    for name in ("pynetdicom.dul", "pynetdicom.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def entity(settings: NodeConfig) -> AE:
    """The AE with its limits."""
    node = AE(ae_title=settings.ae_title)
    node.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    node.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    node.maximum_associations = settings.maximum_associations
    node.maximum_pdu_size = settings.maximum_pdu_bytes
    node.network_timeout = settings.network_timeout_seconds
    node.acse_timeout = node.dimse_timeout = node.connection_timeout = min(settings.network_timeout_seconds, 30)
    node.add_supported_context(Verification)  # what else there is, ``negotiation.narrow`` says for each association
    return node


class HandedPort(DicomPort):
    """A port without a socket of its own: its connections are handed over by the process that listens."""

    def server_bind(self) -> None:
        """Nothing to bind."""

    def server_activate(self) -> None:
        """Nothing to listen on."""


class DimseServer:
    """The DICOM ports of the node, plain and TLS, served by threads from ``start`` to ``stop``.

    ``helper``: the process that takes over what comes while this one is busy.
    """

    def __init__(self, settings: NodeConfig | None = None, helper: Helper | None = None) -> None:
        self.settings = settings or config()
        self._helper = helper
        self._entity: AE | None = None

    def start(self) -> None:
        """Listen. Raises OSError when a port is in use, PermanentError("invalid-setting")."""
        prepare_pynetdicom()
        self._entity = entity(self.settings)
        if self.settings.dicom_tls_port:
            self._listen(self.settings.dicom_tls_port, server_context(self.settings))
        if self.settings.dicom_port:
            self._listen(self.settings.dicom_port, None)
        if self._helper is not None:
            self._helper.listen()

    def serve_handed(self, duty: Duty) -> None:
        """Serve what ``duty`` brings until it ends. Raises: PermanentError("invalid-setting")."""
        prepare_pynetdicom()
        self._entity = entity(self.settings)
        ports = {False: self._port(self.settings.dicom_port, None, HandedPort)}
        if self.settings.dicom_tls_port:
            ports[True] = self._port(self.settings.dicom_tls_port, server_context(self.settings), HandedPort)
        for port in ports.values():
            port.on_end = duty.ended
        for connection, address, tls in duty.connections():
            if ports[tls].verify_request(connection, address):
                ports[tls].process_request(connection, address)
            else:
                connection.close()
                duty.ended()
        for association in self._entity.active_associations:
            association.abort()

    def _listen(self, port: int, tls: SSLContext | None) -> None:
        assert self._entity is not None
        server = self._port(port, tls, DicomPort)
        server.helper, server.most = self._helper, self.settings.maximum_associations
        self._entity._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.1,), name=f"dicom-{port}", daemon=True).start()

    def _port(self, port: int, tls: SSLContext | None, kind: type[DicomPort]) -> DicomPort:
        assert self._entity is not None
        server: DicomPort = self._entity.make_server(
            (self.settings.dicom_host, port),
            ae_title=self.settings.ae_title,
            contexts=self._entity.supported_contexts,
            evt_handlers=[
                (evt.EVT_REQUESTED, on_requested),
                (evt.EVT_C_ECHO, lambda event: 0x0000),
                (evt.EVT_C_STORE, on_store),
                (evt.EVT_C_FIND, on_find),
                (evt.EVT_SOP_EXTENDED, on_extended),
                (evt.EVT_ESTABLISHED, on_established),
            ],
            server_class=kind,
            request_handler=PeerHandler,
        )
        server.tls = tls
        return server

    def stop(self) -> None:
        """Stop listening and end what is open."""
        if self._helper is not None:
            self._helper.close()
        if self._entity is not None:
            self._entity.shutdown()
            self._entity = None
