"""C-MOVE and C-GET: stored files go out byte for byte; they are transcoded only for a peer that refuses them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import structlog
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
)

from pacs_node.clinic.models import ApplicationEntity
from pacs_node.dimse.admission import peer_of
from pacs_node.dimse.connections import healthy_connection
from pacs_node.dimse.find import identifier_of, keys_of, level_of
from pacs_node.dimse.statuses import CANCELLED, PENDING, refusal
from pacs_node.storage.filesystem import storage
from pacs_node.study_index.models import Instance
from pacs_node.study_index.queries import Level, instances
from standards import transfer_syntaxes
from standards.errors import PermanentError, RegisError

log = structlog.get_logger(__name__)

_MOST_CONTEXTS: Final = 128
_BATCH: Final = 200
_UNIQUE_KEY: Final = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}


class StoredFile(Dataset):
    """Stands for a stored file in pynetdicom's sub-operations; only its UIDs are in memory."""

    path: Path

    @classmethod
    def of(cls, instance: Instance) -> "StoredFile":
        """The stand-in for ``instance``. Raises: PermanentError("instance-gone")."""
        stand_in = cls()
        stand_in.SOPClassUID = instance.sop_class_uid
        stand_in.SOPInstanceUID = instance.sop_instance_uid
        object.__setattr__(stand_in, "path", storage().local_path(instance.path))
        object.__setattr__(stand_in, "transfer_syntax", instance.transfer_syntax_uid)
        return stand_in


def send_stored(association: Association) -> None:
    """Make ``send_c_store`` of this association take StoredFile."""
    plain: Callable[..., Dataset] = association.send_c_store

    def send_c_store(dataset: Any, *args: Any, **kwargs: Any) -> Dataset:
        if not isinstance(dataset, StoredFile):
            return plain(dataset, *args, **kwargs)
        if _accepted_as_stored(association, dataset):
            return plain(dataset.path, *args, **kwargs)
        return plain(_transcoded(dataset), *args, **kwargs)

    association.send_c_store = send_c_store


def _accepted_as_stored(association: Association, stored: StoredFile) -> bool:
    syntax = getattr(stored, "transfer_syntax", "")
    return any(
        context.abstract_syntax == stored.SOPClassUID and syntax in context.transfer_syntax
        for context in association.accepted_contexts
    )


def _transcoded(stored: StoredFile) -> Dataset:
    """The instance uncompressed, for a peer that does not take it as it is stored.

    Raises ValueError for lossless conversion that this machine cannot do; the sub-operation then counts as failed.
    """
    dataset = dcmread(stored.path)
    if transfer_syntaxes.is_encapsulated(str(dataset.file_meta.TransferSyntaxUID)):
        dataset.decompress(generate_instance_uid=False)
    return dataset


def on_move(event: evt.Event) -> Iterator[Any]:
    """Send what the identifier names to a registered AE, at the address that the registry has."""
    healthy_connection()
    # A RegisError raised here becomes 0xC514, "unable to process": pynetdicom knows no other refusal before it has sent
    # something to the destination.
    peer = peer_of(event.assoc)
    peer.require("retrieve")
    query = identifier_of(event, peer)
    level = level_of(query, str(event.request.AffectedSOPClassUID), PatientRootQueryRetrieveInformationModelMove)
    chosen = instances(level, _unique_keys(query, level))
    destination = ApplicationEntity.objects.filter(ae_title=str(event.move_destination).strip(), port__gt=0).first()
    if destination is None:
        log.warning("move-destination-unknown", destination=str(event.move_destination), calling_ae_title=peer.ae_title)
        yield None, None
        return
    yield destination.host, destination.port, {"contexts": _contexts(chosen)}
    yield chosen.count()
    yield from _sub_operations(event, chosen)


def on_get(event: evt.Event) -> Iterator[Any]:
    """Send what the identifier names over the same association, where the peer takes the role of a Storage SCP."""
    healthy_connection()
    try:
        peer = peer_of(event.assoc)
        peer.require("retrieve")
        query = identifier_of(event, peer)
        level = level_of(query, str(event.request.AffectedSOPClassUID), PatientRootQueryRetrieveInformationModelGet)
        chosen = instances(level, _unique_keys(query, level))
        count = chosen.count()
    except RegisError as error:
        yield 1
        yield refusal(error), None
        return
    if "send_c_store" not in vars(event.assoc):
        send_stored(event.assoc)
    yield count
    yield from _sub_operations(event, chosen)


def _sub_operations(event: evt.Event, chosen: Any) -> Iterator[Any]:
    for instance in chosen.iterator(chunk_size=_BATCH):
        if event.is_cancelled:
            yield CANCELLED, None
            return
        try:
            stored = StoredFile.of(instance)
        except PermanentError as error:
            log.error("instance-gone", sop_instance_uid=instance.sop_instance_uid, detail=error.detail)
            yield PENDING, _Gone.of(instance)
            continue
        yield PENDING, stored


class _Gone(Dataset):
    """An instance whose file is missing: its sub-operation fails by name, the others go on."""

    @classmethod
    def of(cls, instance: Instance) -> "_Gone":
        gone = cls()
        gone.SOPInstanceUID = instance.sop_instance_uid
        return gone


def _unique_keys(query: Dataset, level: Level) -> dict[str, str]:
    keys = keys_of(query)
    if not keys.get(_UNIQUE_KEY[level], "").strip("* "):
        raise PermanentError("invalid-key", f"{_UNIQUE_KEY[level]} is missing in a retrieve at {level} level")
    return keys


def _contexts(chosen: Any) -> list[PresentationContext]:
    """Each class as it is stored, and once more uncompressed for a peer that takes nothing else."""
    pairs = chosen.order_by().values_list("sop_class_uid", "transfer_syntax_uid").distinct()
    as_stored = sorted(set(pairs))
    contexts = [build_context(sop_class, [syntax]) for sop_class, syntax in as_stored]
    fallback = [transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN, transfer_syntaxes.IMPLICIT_VR_LITTLE_ENDIAN]
    for sop_class in sorted({sop_class for sop_class, _ in as_stored}):
        contexts.extend(
            build_context(sop_class, [syntax]) for syntax in fallback if (sop_class, syntax) not in as_stored
        )
    return contexts[:_MOST_CONTEXTS]
