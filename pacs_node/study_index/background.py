"""What the gateway process does to a node's storage in the background, besides verifying it."""

import time
from dataclasses import asdict
from typing import Final

import structlog

from gateway.registry import every
from pacs_node.config import config
from pacs_node.storage.stores import storage
from pacs_node.study_index import recompressing, tiering

log = structlog.get_logger(__name__)

_LOOK_SECONDS: Final = 10.0
_BY_AGE_SECONDS: Final = 3600.0
_WORK_SECONDS: Final = 5.0
_NOTHING_TO_DO_SECONDS: Final = 300.0
"""To look for what is not there means to look at all that is."""
_IN_VAIN_SECONDS: Final = 300.0


class Tiering:
    """Copies to the institution as images settle, lets studies go hourly by age, and at once when space is short."""

    def __init__(self) -> None:
        self._next_by_age = 0.0
        self._next_for_space = 0.0
        self._next_copies = 0.0

    def run(self) -> None:
        """One look."""
        now, store = time.monotonic(), storage()
        if now >= self._next_copies and not tiering.copy_to_institution():
            self._next_copies = now + _NOTHING_TO_DO_SECONDS
        wanted = store.watermarks.wanted(store.total_bytes(), store.free_bytes())
        for_age = bool(config().tier_after_days) and now >= self._next_by_age
        if not for_age and not (wanted and now >= self._next_for_space):
            return
        studies, freed = tiering.run(wanted=wanted)
        tiering.thin_institution()
        self._next_by_age = time.monotonic() + _BY_AGE_SECONDS
        if wanted and freed < wanted:
            log.warning("no-more-space-to-free", wanted=wanted, freed=freed)
            self._next_for_space = time.monotonic() + _IN_VAIN_SECONDS
        if studies:
            log.info("tiering-done", studies=studies, freed=freed, wanted=wanted)


class Recompressing:
    """Brings old native images into the encoding that the configuration names, for some seconds at a time."""

    def __init__(self) -> None:
        self._next = 0.0

    def run(self) -> None:
        """Some of them."""
        recompressing.remove_originals()
        encoding, ends = config().recompress, time.monotonic() + _WORK_SECONDS
        while encoding and self._next <= time.monotonic() < ends:
            chosen = recompressing.waiting(encoding, 20)
            for instance in chosen:
                outcome = recompressing.recompress_one(instance, encoding)
                log.info("recompressed", sop_instance_uid=instance.sop_instance_uid, **asdict(outcome))
                if time.monotonic() >= ends:
                    break
            if not chosen:
                self._next = time.monotonic() + _NOTHING_TO_DO_SECONDS


def register() -> None:
    """Called once, when the app is ready."""
    every(_LOOK_SECONDS, Recompressing().run)
    every(_LOOK_SECONDS, Tiering().run)
