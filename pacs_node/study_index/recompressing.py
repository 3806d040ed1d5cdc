"""Lossless recompression in the background: encoded, decoded, compared, and only then in the place of the original.

The received bytes can always be made again from what is stored; an image for which that is not so is left alone.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO, Final, cast

import structlog
from django.db import transaction
from django.utils import timezone

from pacs_node.config import config
from pacs_node.storage.layout import recompressed_key
from pacs_node.storage.models import Recompression
from pacs_node.storage.stores import storage
from pacs_node.study_index.actions import ensure_digests
from pacs_node.study_index.attributes import index_rows
from pacs_node.study_index.models import Instance
from pacs_node.study_index.tiering import HERE
from standards.digests import dataset_sha256, frames_sha256
from standards.errors import PermanentError
from standards.lossless import ENCODINGS
from standards.part10 import Provenance, read_header
from standards.recompression import received, recompress
from standards.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
)

log = structlog.get_logger(__name__)

GRACE: Final = timedelta(minutes=10)
"""Readers that were told the path of the original just before have so long to open it."""
_WORTH: Final = 0.95
_TO_BE_MENDED: Final = ("instance-gone", "digest-mismatch", "storage-damaged")
_NATIVE: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)


@dataclass(frozen=True)
class Outcome:
    """What became of one instance: its sizes, or why it is left alone."""

    before: int
    after: int
    left_alone: str = ""


def waiting(encoding: str, limit: int, *, study_instance_uid: str = "") -> list[Instance]:
    """Native images that came long enough ago and were neither recompressed nor left alone yet, oldest first."""
    chosen = Instance.objects.filter(
        HERE, recompression=None, rows__isnull=False, is_variant=False, transfer_syntax_uid__in=_NATIVE
    )
    if study_instance_uid:
        chosen = chosen.filter(series__study__study_instance_uid=study_instance_uid)
    else:
        chosen = chosen.filter(created_at__lt=timezone.now() - timedelta(days=config().recompress_after_days))
    return list(chosen.select_related("series__study").order_by("pk")[:limit]) if encoding in ENCODINGS else []


def recompress_one(instance: Instance, encoding: str) -> Outcome:
    """Store an instance in another encoding if all of it survives; else write down why not.

    Raises: TransientError("storage-full", "storage-unreachable").
    """
    path = storage().new_incoming()
    try:
        stored_sha256 = _encode_and_compare(instance, ENCODINGS[encoding], path)
        size = path.stat().st_size
        if size > instance.size * _WORTH:
            raise PermanentError("cannot-recompress", f"it would take {size} bytes instead of {instance.size}")
        came = storage().modified(instance.path)
        os.utime(path, (came, came))  # a reindex takes the age of an instance from its file
        key = recompressed_key(instance.path, encoding)
        _place(path, key, stored_sha256)
    except PermanentError as error:
        # A file that is gone or damaged is verify's to mend; then its row goes and its turn comes again.
        reason = f"{error.code}: run verify" if error.code in _TO_BE_MENDED else str(error)[:255]
        Recompression.objects.update_or_create(instance=instance, defaults={"left_alone": reason, "at": timezone.now()})
        return Outcome(instance.size, instance.size, reason)
    finally:
        path.unlink(missing_ok=True)
    before = instance.size
    if not _switch(instance, key, ENCODINGS[encoding], size, stored_sha256):
        storage().remove(key)
        return Outcome(before, before, "it changed meanwhile")
    return Outcome(before, size)


def _encode_and_compare(instance: Instance, transfer_syntax: str, target: Path) -> str:
    """Write the recompressed file; the digest of its data set. Raises: PermanentError when anything differs."""
    known = ensure_digests(instance.pk)
    with storage().open_stored(instance.path) as source:
        if dataset_sha256(source) != instance.dataset_sha256:
            raise PermanentError("digest-mismatch", "the stored file is not what was received")
        with target.open("w+b") as file:
            recompress(source, cast(BinaryIO, file), transfer_syntax)
            file.flush()
            os.fsync(file.fileno())
        with received(target.open("rb")) as again:
            if dataset_sha256(again) != instance.dataset_sha256:
                raise PermanentError("cannot-recompress", "the received bytes cannot be made again from it")
        if known.frames_sha256 is None or frames_sha256(target) != known.frames_sha256:
            raise PermanentError("cannot-recompress", "its frames are not the same decoded")
        with target.open("rb") as file:
            _compare_headers(source, file)
    return dataset_sha256(target)


def _compare_headers(source: BinaryIO, recompressed: BinaryIO) -> None:
    before, after = read_header(source), read_header(recompressed)
    default = Provenance.of(before.file_meta).default_character_set
    if default:
        before = read_header(source, default_charset=default)
        after = read_header(recompressed, default_charset=default)
    was, now = index_rows(before), index_rows(after)
    differs = was.study != now.study or was.series != now.series
    own = {name for name in was.instance if name not in ("transfer_syntax_uid", "size")}
    if differs or any(was.instance[name] != now.instance[name] for name in own):
        raise PermanentError("cannot-recompress", "its header would not say the same")


def _place(path: Path, key: str, stored_sha256: str) -> None:
    """What a crash left at ``key`` before it was in the index is the same file, or is set aside."""
    if storage().place(path, key):
        return
    with storage().open_stored(key) as there:
        same = dataset_sha256(there) == stored_sha256
    if not same:
        storage().set_aside(key)
        if not storage().place(path, key):
            raise PermanentError("storage-damaged", f"{key} is taken")


def _switch(instance: Instance, key: str, transfer_syntax: str, size: int, stored_sha256: str) -> bool:
    """Have the index point to the recompressed file, if the instance is still what was read."""
    former, now = instance.path, timezone.now()
    line = {
        "type": "recompressed",
        "at": now.isoformat(),
        "path": key,
        "sop_instance_uid": instance.sop_instance_uid,
        "former_path": former,
        "transfer_syntax_uid": transfer_syntax,
        "stored_sha256": stored_sha256,
    }
    storage().append_journal(instance.series.study.study_instance_uid, line)
    with transaction.atomic():
        changed = Instance.objects.filter(HERE, pk=instance.pk, path=former).update(
            path=key, transfer_syntax_uid=transfer_syntax, size=size
        )
        if changed:
            Recompression.objects.create(
                instance=instance,
                stored_sha256=stored_sha256,
                original_transfer_syntax_uid=instance.transfer_syntax_uid,
                original_size=instance.size,
                former_path=former,
                at=now,
            )
    return bool(changed)


def remove_originals(limit: int = 1000, *, grace: timedelta = GRACE) -> int:
    """Remove the files of originals whose recompressed form has served for a while; how many."""
    done = Recompression.objects.exclude(former_path="").filter(at__lt=timezone.now() - grace)
    rows = list(done.select_related("instance")[:limit])
    for row in list(rows):
        if row.instance.path == row.former_path:
            continue
        if storage().exists(row.instance.path):
            storage().remove(row.former_path)
        else:
            rows.remove(row)  # the original is all there is: verify puts it back in its place
    Recompression.objects.filter(pk__in=[row.pk for row in rows]).update(former_path="")
    return len(rows)
