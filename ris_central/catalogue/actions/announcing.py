"""Telling others that a study changed: listeners in the transaction, open pages after it."""

from collections.abc import Mapping
from functools import partial

import structlog
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction
from redis.exceptions import RedisError

from ris_central.catalogue import listeners
from ris_central.catalogue.models import Study

WORKLIST_GROUP = "worklist"
log = structlog.get_logger()


def announce_changed(*studies: Study) -> None:
    """Tell the listeners now, and the open pages when the transaction has committed."""
    if studies:
        listeners.announce(studies)
        message = {"type": "study.changed", "studies": [study.pk for study in studies]}
        transaction.on_commit(partial(tell_pages, WORKLIST_GROUP, message))


def tell_pages(group: str, message: Mapping[str, object]) -> None:
    """Send to a Channels group. Losable: a page that misses it shows the change when it is next loaded."""
    layer = get_channel_layer()
    try:
        async_to_sync(layer.group_send)(group, dict(message))
    except (RedisError, OSError) as error:
        log.warning("pages-not-told", group=group, error=type(error).__name__)
