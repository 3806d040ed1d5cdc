"""What the in-line proxy tapped enters the node here: by the gateway process, once each, whatever is killed when."""

from itertools import islice
from pathlib import Path
from typing import Final

import structlog

from gateway import registry
from gateway.proxy.rules import NODE
from gateway.proxy.spool import Spool, head_of
from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import config
from pacs_node.dimse.admission import writes
from pacs_node.proxying import folder
from pacs_node.study_index.actions import ingest
from standards import part10
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 0.5
_AT_ONCE: Final = 200


def register() -> None:
    """Have the gateway process look for what was tapped."""
    registry.every(_LOOK_SECONDS, take_in_tapped)


def take_in_tapped() -> None:
    """Take in what waits for the node, oldest first.

    A file goes when its instance is in the index. A kill between the two brings it again, and a duplicate is no second
    copy. Raises: TransientError "storage-full", "database-busy": the rest waits.
    """
    base = folder() / "spool"
    if not (base / "to" / NODE).is_dir():
        return
    spool = Spool(base)
    for path in islice(spool.waiting(NODE), _AT_ONCE):
        _take_in(spool, path)


def _take_in(spool: Spool, path: Path) -> None:
    sop_instance = ""
    try:
        head = head_of(path)
        meta = part10.read_meta(head)
        sop_instance = part10.text(meta, "MediaStorageSOPInstanceUID")
        title = part10.text(meta, "SendingApplicationEntityTitle")
        entity = ApplicationEntity.objects.filter(ae_title=title).first()
        with path.open("rb") as file:
            file.seek(part10.dataset_offset(head))
            taken = ingest(
                file,
                source_ae_title=title,
                address=spool.address_of(path),
                expected_sop_class=part10.text(meta, "MediaStorageSOPClassUID"),
                expected_sop_instance=sop_instance,
                transfer_syntax=part10.text(meta, "TransferSyntaxUID"),
                default_character_set=(
                    writes(entity.character_set, entity.quirks) if entity else config().default_character_set
                ),
                default_issuer=entity.issuer_of_patient_id if entity else "",
            )
    except PermanentError as error:
        # The old PACS has it; here it is kept aside, for a person.
        spool.give_up(path, NODE)
        log.warning("tapped-refused", code=error.code, detail=error.detail, sop_instance_uid=sop_instance)
        return
    path.unlink()
    if taken.outcome != "stored":
        log.info(f"tapped-{taken.outcome}", sop_instance_uid=sop_instance)
