"""The second process of a node: everything that moves between it, the centre and other nodes."""

import threading
import time
from collections.abc import Callable

import httpx
import structlog
from django.utils import timezone

from gateway import VERSION, client, commands, deliveries, heartbeat, queries, reconcile, registry, relay
from gateway.envelope import NodeStatus
from gateway.loops import Loop, join_all, set_on_signal
from gateway.models import Delivery, JoinState, OutboxEntry
from gateway.protocols import Proof
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

IDLE_SECONDS = 0.3
UNJOINED_SECONDS = 1.0
PROGRESS_SECONDS = 1.0
HEARTBEAT_SECONDS = 5.0
PRUNE_SECONDS = 3600.0
IN_FLIGHT = 4
STOP_SECONDS = 10.0


class Connections:
    """One keep-alive client per address, made when first needed. A client may be used by several threads at once."""

    def __init__(self) -> None:
        self._clients: dict[str, httpx.Client] = {}
        self._lock = threading.Lock()

    def to(self, url: str) -> httpx.Client:
        """The client for ``url``. Raises PermanentError as ``client.connect`` does."""
        with self._lock:
            if url not in self._clients:
                self._clients[url] = client.connect(url, registry.node().network_timeout_seconds)
            return self._clients[url]

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for one in self._clients.values():
                one.close()
            self._clients.clear()


class Courier:
    """Deliveries under way, one a calling thread. A destination that is away pauses as a whole."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lock = threading.Lock()
        self._busy: set[int] = set()
        self._idle_until = 0.0
        self._failures: dict[str, int] = {}
        self._paused_until: dict[str, float] = {}

    def step(self) -> float:
        """Carry the delivery whose turn it is; seconds until the next look."""
        with self._lock:  # two threads must not claim the same one
            now = time.monotonic()
            if (idle := self._idle_until - now) > 0:
                return idle  # another thread has just looked
            paused = {name for name, until in self._paused_until.items() if until > now}
            delivery = deliveries.next_waiting(busy=self._busy, paused=paused)
            state = JoinState.objects.first() if delivery else None
            if delivery is None or state is None:
                self._idle_until = now + IDLE_SECONDS
                return IDLE_SECONDS
            self._busy.add(delivery.pk)
        try:
            self._carry(delivery, state)
        finally:
            with self._lock:
                self._busy.discard(delivery.pk)
        return 0.0

    def _carry(self, delivery: Delivery, state: JoinState) -> None:
        try:
            peer = deliveries.peer_named(state, delivery.destination)
            receipt = deliveries.deliver(delivery, state, peer, self._connections.to(peer.url))
        except RegisError as error:
            deliveries.record_failure(delivery, error)
            self._note(delivery.destination, failed=isinstance(error, TransientError))
            log.warning("delivery-failed", delivery=delivery.pk, destination=delivery.destination, error=str(error))
            return
        deliveries.record_proof(delivery, Proof("receipt", receipt.model_dump(mode="json")))
        self._note(delivery.destination, failed=False)

    def _note(self, destination: str, *, failed: bool) -> None:
        with self._lock:
            now = time.monotonic()
            if not failed:
                self._failures.pop(destination, None)
                self._paused_until.pop(destination, None)
            elif self._paused_until.get(destination, 0.0) <= now:  # else others in flight failed for the same reason
                failures = self._failures[destination] = self._failures.get(destination, 0) + 1
                self._paused_until[destination] = now + deliveries.pause(failures, first=0.3, longest=5.0)


class Gateway:
    """The loops of a node's gateway."""

    def __init__(self) -> None:
        self.stopping = threading.Event()
        self._connections = Connections()
        self._courier = Courier(self._connections)
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
            *(Loop(f"delivery-{number}", self._courier.step, self.stopping) for number in range(IN_FLIGHT)),
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
        late = join_all([loop for loop in loops if loop.name != "commands"], STOP_SECONDS)
        log.info("gateway-stopped", late=late)

    def _number(self) -> float:
        with_progress = time.monotonic() - self._progress_at >= PROGRESS_SECONDS
        more = relay.catch_up()
        taken = relay.number(with_progress=with_progress)
        if with_progress:
            self._progress_at = time.monotonic()
        return 0.0 if more or taken >= relay.ENTRIES_AT_ONCE else IDLE_SECONDS

    def _push(self) -> float:
        state = JoinState.objects.first() if queries.anything_to_tell() else None
        if state is None:
            return IDLE_SECONDS
        return 0.0 if relay.push(self._connections.to(state.centre_url)) else IDLE_SECONDS

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
    )


def run() -> None:
    """Run the gateway of this node until SIGTERM or SIGINT. Django must be set up. Call it in the main thread."""
    gateway = Gateway()
    set_on_signal(gateway.stopping)
    gateway.run()
