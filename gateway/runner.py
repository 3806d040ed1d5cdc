"""The second process of a node: everything that moves between it, the centre and other nodes."""

import threading
import time
from collections.abc import Callable

import structlog
from django.utils import timezone

from gateway import (
    VERSION,
    commands,
    deliveries,
    heartbeat,
    ledger,
    queries,
    receiving,
    reconcile,
    registry,
    relay,
)
from gateway.envelope import NodeStatus
from gateway.lanes import Connections, Lanes
from gateway.loops import Loop, join_all, set_on_signal
from gateway.models import Delivery, JoinState, OutboxEntry
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

IDLE_SECONDS = 0.3
UNJOINED_SECONDS = 1.0
PROGRESS_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
PRUNE_SECONDS = 3600.0
STOP_SECONDS = 10.0


class Gateway:
    """The loops of a node's gateway."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._connections = Connections()
        self._lanes = Lanes(self._connections)
        self._progress_at = 0.0
        self._parked_tried = False
        self._rounds = reconcile.Rounds()

    def run(self) -> None:
        """Run until ``stopping`` is set."""
        loops = [
            Loop("numbering", self._number, self.stopping),
            Loop("events", self._push, self.stopping, self._centre_trouble),
            Loop("commands", self._commands, self.stopping),
            Loop("heartbeat", self._heartbeat, self.stopping),
            Loop("lanes", self._lanes.step, self.stopping),
            Loop("pruning", self._prune, self.stopping),
            Loop("reconciliation", self._reconcile, self.stopping),
        ]
        if registry.node().kind == "gateway":
            loops.append(Loop("releases", self._release, self.stopping))
        loops += [
            Loop(f"job-{number}", self._periodic(job), self.stopping) for number, job in enumerate(registry.jobs())
        ]
        for loop in loops:
            loop.start()
        log.info("gateway-started", loops=[loop.name for loop in loops])
        while not self.stopping.wait(1.0):
            pass
        # The command loop may be parked at the centre; it holds nothing, so nobody waits for it. What is late ends with
        # the process, as by kill -9: every step is one transaction.
        carrying = self._lanes.stop()
        late = join_all([*(loop for loop in loops if loop.name != "commands"), *carrying], STOP_SECONDS)
        log.info("gateway-stopped", late=late)

    def _number(self) -> float:
        with_progress = time.monotonic() - self._progress_at >= PROGRESS_SECONDS
        more = relay.catch_up() | relay.catch_up_ledger()
        taken = relay.number(with_progress=with_progress)
        if with_progress:
            self._progress_at = time.monotonic()
        return 0.0 if more or taken >= relay.ENTRIES_AT_ONCE else IDLE_SECONDS

    def _push(self) -> float:
        state = JoinState.objects.first() if queries.anything_to_tell() else None
        if state is None:
            return IDLE_SECONDS
        pause = relay.push(self._connections.to(state.centre_url))
        return IDLE_SECONDS if pause is None else pause

    def _commands(self) -> float:
        state = JoinState.objects.first()
        if state is None:
            return UNJOINED_SECONDS
        if not self._parked_tried:
            commands.retry_parked()
            self._parked_tried = True
        commands.poll(self._connections.to(state.centre_url))
        return 0.0

    def _heartbeat(self) -> float:
        state = JoinState.objects.first()
        if state is None:
            return UNJOINED_SECONDS
        heartbeat.beat(self._connections.to(state.centre_url), state, status_of(state))
        return HEARTBEAT_SECONDS

    def _release(self) -> float:
        return 0.0 if deliveries.release_delivered() else PROGRESS_SECONDS

    def _reconcile(self) -> float:
        state = JoinState.objects.first()
        if state is None:
            return UNJOINED_SECONDS
        return self._rounds.step(self._connections.to(state.centre_url), state)

    def _prune(self) -> float:
        relay.prune()
        receiving.clean_spool()
        return PRUNE_SECONDS

    @staticmethod
    def _periodic(job: registry.PeriodicJob) -> Callable[[], float]:
        def step() -> float:
            job.run()
            return job.seconds

        return step

    @staticmethod
    def _centre_trouble(error: Exception) -> None:
        JoinState.objects.update(last_error=str(error)[:255])
        if isinstance(error, PermanentError):
            log.error("centre-refuses-events", error=str(error))


def status_of(state: JoinState) -> NodeStatus:
    """What the node tells the centre of itself now."""
    held, free = registry.store().held()
    waiting = Delivery.objects.filter(status=Delivery.Status.WAITING)
    queues = ledger.queues(state)
    oldest = waiting.order_by("created_at").values_list("created_at", flat=True).first()
    return NodeStatus(
        version=VERSION,
        epoch=state.epoch,
        clock=timezone.now(),
        free_bytes=free,
        stored_instances=held,
        events_waiting=relay.waiting_events(state) + OutboxEntry.objects.count(),
        deliveries_waiting=waiting.count(),
        oldest_waiting_seconds=int((timezone.now() - oldest).total_seconds()) if oldest else 0,
        configuration_version=state.configuration.get("version", 0),
        bytes_waiting=sum(queue.size for queue in queues),
        queues=queues,
    )


def run() -> None:
    """Run the gateway of this node until SIGTERM or SIGINT. Django must be set up. Call it in the main thread."""
    gateway = Gateway()
    set_on_signal(gateway.stopping)
    gateway.run()
