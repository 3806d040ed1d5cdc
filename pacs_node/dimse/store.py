"""C-STORE: what was answered with success is durable and findable."""

import structlog
from pydicom.dataset import Dataset
from pynetdicom import evt

from pacs_node.dimse.admission import peer_of
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.statuses import SUCCESS, refusal, status_dataset
from pacs_node.storage.filesystem import storage
from pacs_node.study_index.actions import Source, ingest_incoming
from standards.errors import RegisError

log = structlog.get_logger(__name__)


def on_store(event: evt.Event) -> Dataset:
    """Take the received file in, or say why not. An exception beyond RegisError becomes 0xC211 and is logged."""
    healthy_connection()
    sop_class, sop_instance = str(event.request.AffectedSOPClassUID), str(event.request.AffectedSOPInstanceUID)
    try:
        peer = peer_of(event.assoc)
        peer.require("store")
        storage().check_space()
        taken = ingest_incoming(
            event.dataset_path,
            Source(peer.ae_title, peer.address, peer.character_set, peer.issuer_of_patient_id),
            expected_sop_class=sop_class,
            expected_sop_instance=sop_instance,
        )
    except RegisError as error:
        log.warning(
            "instance-refused",
            code=error.code,
            detail=error.detail,
            calling_ae_title=event.assoc.requestor.ae_title,
            sop_instance_uid=sop_instance,
        )
        return refusal(error)
    if taken.outcome != "stored":
        log.info(f"instance-{taken.outcome}", sop_instance_uid=sop_instance, calling_ae_title=peer.ae_title)
    return status_dataset(SUCCESS)
