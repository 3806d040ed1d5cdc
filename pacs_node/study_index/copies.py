"""Other copies of an instance: who has one, since when it is proved, and how its bytes are had back."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from io import SEEK_END
from pathlib import Path
from typing import BinaryIO

import structlog
from django.db import transaction
from django.utils import timezone

from gateway import fetching
from pacs_node.storage.layout import instance_key, is_recompressed, variant_key
from pacs_node.storage.models import Holding, Recompression
from pacs_node.storage.stores import institution, storage
from pacs_node.study_index.models import Instance
from standards.digests import dataset_sha256
from standards.errors import PermanentError, RegisError
from standards.file_meta import read_file_meta
from standards.part10 import Header
from standards.recompression import received

log = structlog.get_logger(__name__)

INSTITUTION = "institution"
_AT_ONCE = 500


@dataclass(frozen=True)
class Copy:
    """A copy of the received bytes at ``place`` (``institution`` or a peer's name), proved at ``verified_at``."""

    place: str
    verified_at: datetime


def other_copies(instances: Iterable[Instance]) -> dict[int, list[Copy]]:
    """By instance key, every proved copy besides the main storage; ``holding`` should be selected with them."""
    chosen = list(instances)
    copies = {
        key: [Copy(name, at) for name, at in proved]
        for key, proved in fetching.proved_copies(instance.pk for instance in chosen).items()
    }
    if institution() is not None:
        for instance in chosen:
            holding = holding_of(instance)
            if holding is not None and holding.institution_verified_at is not None:
                copies.setdefault(instance.pk, []).append(Copy(INSTITUTION, holding.institution_verified_at))
    return copies


def holding_of(instance: Instance) -> Holding | None:
    """The row that says where the instance lies, if it is not simply on the main storage."""
    try:
        return instance.holding
    except Holding.DoesNotExist:
        return None


def recompression_of(instance: Instance) -> Recompression | None:
    """How the instance is recompressed, None when it lies as it was received."""
    try:
        recompressed = instance.recompression
    except Recompression.DoesNotExist:
        return None
    return recompressed if not recompressed.left_alone else None


def received_key(instance: Instance) -> str:
    """Where the received bytes of an instance lie, on every tier."""
    series = instance.series
    uids = series.study.study_instance_uid, series.series_instance_uid, instance.sop_instance_uid
    return variant_key(*uids, instance.dataset_sha256) if instance.is_variant else instance_key(*uids)


def former_paths(instances: Iterable[Instance]) -> list[str]:
    """Files of originals that still lie beside their recompressed form for readers that have just asked for them."""
    return [row.former_path for row in _recompressions(instances) if row.former_path]


def as_received(instances: Iterable[Instance]) -> None:
    """Have the index say that the received bytes lie on the storage, not another encoding of them."""
    chosen = {instance.pk: instance for instance in instances}
    for row in _recompressions(chosen.values()):
        instance = chosen[row.pk]
        instance.path = received_key(instance)
        instance.transfer_syntax_uid = row.original_transfer_syntax_uid
        instance.size = row.original_size
        instance.save(update_fields=["path", "transfer_syntax_uid", "size"])
        row.delete()


def _recompressions(instances: Iterable[Instance]) -> list[Recompression]:
    keys, found = [instance.pk for instance in instances], list[Recompression]()
    for start in range(0, len(keys), _AT_ONCE):
        found += Recompression.objects.filter(pk__in=keys[start : start + _AT_ONCE], left_alone="")
    return found


def note_recompressed(key: str, received_header: Header) -> None:
    """After the index was told of the received bytes: what lies at ``key`` is another encoding of them."""
    with storage().open_stored(key) as file:
        stored = read_file_meta(file)
        stored_sha256, size = dataset_sha256(file), file.seek(0, SEEK_END)
    instance = Instance.objects.get(path=key)
    Recompression.objects.create(
        instance=instance,
        stored_sha256=stored_sha256,
        original_transfer_syntax_uid=received_header.transfer_syntax,
        original_size=received_header.total_length,
        at=timezone.now(),
    )
    Instance.objects.filter(pk=instance.pk).update(transfer_syntax_uid=stored.transfer_syntax_uid, size=size)


def adopt(key: str, received_header: Header, digest: str) -> bool:
    """Have the index take the file at ``key`` for an instance whose own file is gone; whether it did.

    An index that is older than the storage, from a backup, knows nothing of recompression since, or of its undoing.
    """
    chosen = Instance.objects.filter(
        sop_instance_uid=received_header.sop_instance_uid, dataset_sha256=digest, released_at=None
    ).exclude(path=key)
    instance = chosen.select_related("holding").first()
    holding = holding_of(instance) if instance is not None else None
    if instance is None or (holding is not None and holding.away_at is not None) or storage().exists(instance.path):
        return False
    with transaction.atomic():
        Recompression.objects.filter(pk=instance.pk).delete()
        taken = Instance.objects.filter(pk=instance.pk, path=instance.path, released_at=None).update(
            path=key, transfer_syntax_uid=received_header.transfer_syntax, size=received_header.total_length
        )
        if taken and is_recompressed(key):
            note_recompressed(key, received_header)
    log.warning("file-adopted", sop_instance_uid=instance.sop_instance_uid, instead_of=instance.path, path=key)
    return bool(taken)


def open_received(instance: Instance) -> BinaryIO:
    """The received bytes of an instance from the main storage, whatever encoding lies there. Raises: as ``open``."""
    return received(storage().open(instance.path))


def fetch_received(instance: Instance) -> tuple[Path, str]:
    """The received bytes from another copy, checked: a file in the storage's ``incoming``, and where it came from.

    Raises: PermanentError("no-other-copy"), TransientError("recall-failed", "storage-full").
    """
    path = storage().new_incoming()
    try:
        place = _from_institution(instance, path) or _from_peer(instance, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path, place


def _from_institution(instance: Instance, target: Path) -> str:
    store, holding = institution(), holding_of(instance)
    if store is None or holding is None:
        return ""
    # A copy that was not to be had once, as when the share was not mounted, may be there again.
    if holding.institution_verified_at is None and not store.exists(received_key(instance)):
        return ""
    try:
        with store.open(received_key(instance)) as source, target.open("wb") as file:
            while chunk := source.read(1 << 20):
                file.write(chunk)
        if dataset_sha256(target) == instance.dataset_sha256:
            Holding.objects.filter(pk=instance.pk).update(institution_verified_at=timezone.now())
            return INSTITUTION
        error: RegisError = PermanentError("digest-mismatch", "the copy at the institution is damaged")
    except RegisError as caught:
        error = caught
    log.error("institution-copy-unusable", sop_instance_uid=instance.sop_instance_uid, error=str(error))
    if isinstance(error, PermanentError):
        Holding.objects.filter(pk=instance.pk).update(institution_verified_at=None)
    return ""


def _from_peer(instance: Instance, target: Path) -> str:
    with target.open("w+b") as file:
        return fetching.fetch(instance.pk, instance.sop_instance_uid, instance.dataset_sha256, file)
