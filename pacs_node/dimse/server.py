"""The one application entity of a node: all its DICOM services on one port."""

import logging
import os
import threading
from functools import partial
from tempfile import NamedTemporaryFile

import pynetdicom._config
import pynetdicom.dimse_messages
from pynetdicom import AE, evt, register_uid
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import Verification, uid_to_service_class
from pynetdicom.transport import ThreadedAssociationServer

from pacs_node.config import NodeConfig, config, storage_sop_classes
from pacs_node.dimse.acceptor import PeerHandler
from pacs_node.dimse.admission import on_requested
from pacs_node.dimse.find import on_extended, on_find
from pacs_node.dimse.services import on_established
from pacs_node.dimse.store import on_store
from pacs_node.storage.filesystem import storage
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


class DimseServer:
    """The DICOM port of the node, served by threads from ``start`` to ``stop``."""

    def __init__(self, settings: NodeConfig | None = None) -> None:
        self.settings = settings or config()
        self._server: ThreadedAssociationServer | None = None

    def start(self) -> None:
        """Listen. Raises OSError when the port is in use."""
        prepare_pynetdicom()
        node = entity(self.settings)
        self._server = node.make_server(
            (self.settings.dicom_host, self.settings.dicom_port),
            ae_title=self.settings.ae_title,
            contexts=node.supported_contexts,
            evt_handlers=[
                (evt.EVT_REQUESTED, on_requested),
                (evt.EVT_C_ECHO, lambda event: 0x0000),
                (evt.EVT_C_STORE, on_store),
                (evt.EVT_C_FIND, on_find),
                (evt.EVT_SOP_EXTENDED, on_extended),
                (evt.EVT_ESTABLISHED, on_established),
            ],
            server_class=ThreadedAssociationServer,
            request_handler=PeerHandler,
        )
        node._servers.append(self._server)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="dicom-port", daemon=True).start()

    def stop(self) -> None:
        """Stop listening and end what is open."""
        if self._server is not None:
            self._server.ae.shutdown()
            self._server = None
