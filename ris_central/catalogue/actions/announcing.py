"""Telling others that a study changed: listeners in the transaction, open pages after it."""

import threading
from collections.abc import Iterable, Mapping
from functools import partial

import structlog
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction
from redis.exceptions import RedisError

from ris_central.catalogue import listeners
from ris_central.catalogue.models import Study

WORKLIST_GROUP = "worklist"
GATHER_SECONDS = 0.3
log = structlog.get_logger()


def announce_changed(*studies: Study) -> None:
    """Tell the listeners now, and the open pages when the transaction has committed."""
    if studies:
        listeners.announce(studies)
        transaction.on_commit(partial(_changed_studies.add, [study.pk for study in studies]))


class _Gathered:
    """Keys of studies that changed; what changes within a moment is told by one message."""

    def __init__(self) -> None:
        self._keys: set[int] = set()
        self._lock = threading.Lock()

    def add(self, keys: Iterable[int]) -> None:
        """Have these told soon."""
        with self._lock:
            is_first = not self._keys
            self._keys.update(keys)
        if is_first:
            teller = threading.Timer(GATHER_SECONDS, self._tell)
            teller.daemon = True
            teller.start()

    def _tell(self) -> None:
        with self._lock:
            keys, self._keys = sorted(self._keys), set()
        tell_pages(WORKLIST_GROUP, {"type": "study.changed", "studies": keys})


_changed_studies = _Gathered()


def tell_pages(group: str, message: Mapping[str, object]) -> None:
    """Send to a Channels group. Losable: a page that misses it shows the change when it is next loaded."""
    layer = get_channel_layer()
    try:
        async_to_sync(layer.group_send)(group, dict(message))
    except (RedisError, OSError) as error:
        log.warning("pages-not-told", group=group, error=type(error).__name__)
