"""Bringing back what the main storage let go of or lost, when somebody asks for it."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass

import structlog
from django.db import transaction
from django.utils import timezone

from gateway.actions import record_stored
from pacs_node.storage.incoming import Incoming
from pacs_node.storage.models import Holding, Recompression, StudyRetention
from pacs_node.storage.stores import storage
from pacs_node.study_index.copies import as_received, fetch_received, holding_of, received_key
from pacs_node.study_index.counts import recount
from pacs_node.study_index.models import Instance
from standards.digests import dataset_sha256
from standards.errors import PermanentError, RegisError

log = structlog.get_logger(__name__)

_lock = threading.Lock()
_under_way: dict[str, Future[bool]] = {}


def recall(key: str) -> bool:
    """Put the file back at ``key``, from wherever a good copy lies; False when there is none to be had.

    All who ask for one file at once share one fetch and its outcome.

    Raises: TransientError("recall-failed") when the copy cannot be reached now, "storage-full".
    """
    with _lock:
        shared = _under_way.get(key)
        mine = Future[bool]() if shared is None else None
        if mine is not None:
            _under_way[key] = mine
    if mine is None:
        assert shared is not None
        return shared.result()
    try:
        mine.set_result(_recall(key))
    except BaseException as error:
        mine.set_exception(error)
    finally:
        with _lock:
            del _under_way[key]
    return mine.result()


def _recall(key: str) -> bool:
    instance = (
        Instance.objects.filter(path=key, released_at__isnull=True)
        .select_related("series__study", "holding", "recompression")
        .first()
    )
    if instance is None:
        return False
    if storage().exists(key):
        return True
    try:
        put_back(instance)
    except PermanentError as error:
        log.error("instance-lost", key=key, error=str(error))
        return False
    return storage().exists(key)


@dataclass(frozen=True)
class PutBack:
    """Where good bytes came from, and where the damaged file lies now that was in their place."""

    place: str
    aside: str = ""


def put_back(instance: Instance, *, damaged: str = "") -> PutBack:
    """Fetch the received bytes and put them where they belong; only then the ``damaged`` file there is moved aside.

    Raises: as ``copies.fetch_received``; PermanentError("storage-damaged") when other content lies there.
    """
    key, aside = received_key(instance), ""
    if damaged != key and _is_whole(key, instance):
        place = "here"
        if damaged:
            aside = storage().set_aside(damaged)
    else:
        path, place = fetch_received(instance)
        try:
            if damaged:
                aside = storage().set_aside(damaged)
            if not storage().place(path, key):
                raise PermanentError("storage-damaged", f"{key} lies on the storage with other content")
        finally:
            path.unlink(missing_ok=True)
    study, kind = instance.series.study.study_instance_uid, "healed" if damaged else "recalled"
    storage().append_journal(
        study, {"type": kind, "at": timezone.now().isoformat(), "path": key, "from": place, "aside": aside}
    )
    with transaction.atomic():
        as_received([instance])
        Recompression.objects.filter(pk=instance.pk).delete()  # why it was left alone may hold no more
        mark_here(instance)
    log.info(kind, sop_instance_uid=instance.sop_instance_uid, source=place)
    return PutBack(place, aside)


def take_back(instance: Instance, incoming: Incoming) -> None:
    """The received bytes came once more: they stay if the storage let go of them, or lost them outside of Regis.

    Raises: TransientError("storage-full", "storage-unreachable").
    """
    holding = holding_of(instance)
    left = instance.released_at is not None or (holding is not None and holding.away_at is not None)
    if not left and storage().exists(instance.path):
        return
    key = received_key(instance)
    storage().place(incoming, key)  # a file that is there already is what a release has not removed yet
    line = {"type": "recalled", "at": timezone.now().isoformat(), "path": key, "from": "sender"}
    storage().append_journal(instance.series.study.study_instance_uid, line)
    with transaction.atomic():
        as_received([instance])
        mark_here(instance)


def _is_whole(key: str, instance: Instance) -> bool:
    """Whether the received bytes lie there already: a recompression or a release was cut short."""
    if not storage().exists(key):
        return False
    try:
        with storage().open_stored(key) as file:
            return dataset_sha256(file) == instance.dataset_sha256
    except PermanentError:
        return False


def mark_here(instance: Instance) -> None:
    """Have the index, and the centre if it was told otherwise, know that the file is on the main storage."""
    study = instance.series.study.study_instance_uid
    holding = holding_of(instance)
    gone = instance.released_at is not None
    if gone:
        Instance.objects.filter(pk=instance.pk).update(released_at=None)
        recount([instance.series_id])
    elif holding is None or holding.away_at is None:
        return
    Holding.objects.filter(pk=instance.pk).update(away_at=None)
    StudyRetention.objects.update_or_create(study_instance_uid=study, defaults={"recalled_at": timezone.now()})
    if gone or holding is None or holding.institution_verified_at is None:  # then the centre heard of a release
        record_stored(
            instance_key=instance.pk,
            series_key=instance.series_id,
            study_instance_uid=study,
            sop_instance_uid=instance.sop_instance_uid,
            dataset_sha256=instance.dataset_sha256,
        )


def recall_study(study_instance_uid: str, *, released: bool = False) -> tuple[int, list[str]]:
    """Bring back all that is away of a study, with ``released`` also the pixels that were removed.

    How many came back, and a sentence about each that did not: one that fails never stops the rest.

    Raises: TransientError("storage-full").
    """
    chosen = Instance.objects.filter(series__study__study_instance_uid=study_instance_uid)
    chosen = chosen.filter(released_at__isnull=False) if released else chosen.filter(holding__away_at__isnull=False)
    back, failed = 0, list[str]()
    for instance in chosen.select_related("series__study", "holding", "recompression").order_by("pk"):
        try:
            if not storage().exists(received_key(instance)):
                put_back(instance)
            else:
                with transaction.atomic():
                    mark_here(instance)
            back += 1
        except RegisError as error:
            if error.code == "storage-full":
                raise
            failed.append(f"{instance.sop_instance_uid}: {error}")
    return back, failed
