"""Where ``pacs_node`` plugs itself in, in its ``AppConfig.ready()``: the store, command handlers, periodic jobs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from django.conf import settings

from gateway.protocols import Carrier, InstanceStore, NodeFacts

CommandHandler = Callable[[Any], None]


@dataclass(frozen=True)
class PeriodicJob:
    """``run`` is called in the gateway process, ``seconds`` after it last ended."""

    seconds: float
    run: Callable[[], None]


_store: InstanceStore | None = None
_handlers: dict[str, list[CommandHandler]] = {}
_jobs: list[PeriodicJob] = []
_told: list[Callable[[], dict[str, Any]]] = []
_carriers: dict[str, Carrier] = {}


def register_store(store: InstanceStore) -> None:
    """Make ``store`` the storage and index the gateway works on."""
    global _store
    _store = store


def store() -> InstanceStore:
    """The registered store. Raises LookupError before ``register_store``."""
    if _store is None:
        raise LookupError("no InstanceStore is registered with the gateway")
    return _store


def register_carrier(kind: str, carrier: Carrier) -> None:
    """Have ``carrier`` bring instances to outside destinations of this ``OutsideDestination.kind``."""
    _carriers[kind] = carrier


def carrier_of(kind: str) -> Carrier | None:
    """Who brings instances to outside destinations of this kind."""
    return _carriers.get(kind)


def on_command(command_type: str, handler: CommandHandler) -> None:
    """Have ``handler(body)`` called for each command of this type (``body`` is the envelope's model of it).

    Commands come in order, at least once: applying one twice must change nothing.
    """
    _handlers.setdefault(command_type, []).append(handler)


def handlers_of(command_type: str) -> list[CommandHandler]:
    """Handlers of this type of command, in the order of registration."""
    return list(_handlers.get(command_type, []))


def every(seconds: float, run: Callable[[], None]) -> None:
    """Have ``run()`` called periodically in the gateway process, ``seconds`` after its last end."""
    _jobs.append(PeriodicJob(seconds, run))


def jobs() -> list[PeriodicJob]:
    """All periodic jobs."""
    return list(_jobs)


def tell_with_status(facts: Callable[[], dict[str, Any]]) -> None:
    """Have every heartbeat carry what ``facts()`` gives: fields of ``envelope.NodeStatus``. It must be cheap."""
    _told.append(facts)


def told_with_status() -> dict[str, Any]:
    """What all registered say now."""
    return {name: value for facts in _told for name, value in facts().items()}


def node() -> NodeFacts:
    """The node this process belongs to."""
    return cast(NodeFacts, getattr(settings, "CONFIG"))  # noqa: B009  a setting of the project, unknown to its stubs
