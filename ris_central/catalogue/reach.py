"""Which nodes the centre can read from: a node that does not answer is left alone for a while, by every process.

Nodes dial out, so many clinics can never be reached from here; that is no fault, and no frame waits for it twice.
"""

import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from urllib.parse import urlsplit

from django.core.cache import cache
from django.utils import timezone

from ris_central.federation.models import Node

CONNECT_SECONDS = 1.5
DOWN_SECONDS = 20
UP_SECONDS = 10
IN_TOUCH = timedelta(seconds=90)
"""A node that told nothing for so long is taken to be away."""
_DOWN, _UP = "down", "up"


def _key(name: str) -> str:
    return f"catalogue:reach:{name}"


def note_down(name: str) -> None:
    """A node did not answer."""
    cache.set(_key(name), _DOWN, DOWN_SECONDS)


def note_up(name: str) -> None:
    """A node that did not answer does so again."""
    cache.set(_key(name), _UP, UP_SECONDS)


def known_down(names: Iterable[str]) -> set[str]:
    """Those of the nodes that did not answer a moment ago."""
    wanted = {_key(name): name for name in names}
    return {wanted[key] for key, state in cache.get_many(wanted).items() if state == _DOWN}


def reachable(nodes: Iterable[Node]) -> set[int]:
    """Keys of the nodes that answer at their address now, or did some seconds ago. All are tried at once."""
    wanted = {_key(node.name): node for node in nodes if node.url}
    known = cache.get_many(wanted)
    found = {wanted[key].pk for key, state in known.items() if state == _UP}
    unknown = [node for key, node in wanted.items() if key not in known]
    if unknown:
        with ThreadPoolExecutor(len(unknown)) as threads:
            answers = list(threads.map(_answers, [node.url for node in unknown]))
        for node, answers_now in zip(unknown, answers, strict=True):
            cache.set(_key(node.name), _UP if answers_now else _DOWN, UP_SECONDS if answers_now else DOWN_SECONDS)
            if answers_now:
                found.add(node.pk)
    return found


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection(
            (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)), CONNECT_SECONDS
        ):
            return True
    except OSError:
        return False  # that is the answer


def in_touch(node: Node) -> bool:
    """Whether the node was heard of lately, whoever can reach it."""
    return node.last_seen_at is not None and timezone.now() - node.last_seen_at < IN_TOUCH
