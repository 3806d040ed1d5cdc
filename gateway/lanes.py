"""Lanes: one for each destination, with threads, connections, pauses and progress of its own.

A lane carries what is most urgent next, be it a small instance or one chunk of a large one; so what is urgent overtakes
a large one between its chunks, and a destination that is away slows no other.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import httpx
import structlog

from gateway import client, deliveries, ledger, registry, rules
from gateway.envelope import MirrorPolicy, OutsideDestination, Peer
from gateway.loops import Loop
from gateway.models import Delivery, JoinState
from gateway.protocols import Proof
from gateway.rates import throttle, traffic
from gateway.sending import CHUNK, Large, Line
from standards.errors import PermanentError, RegisError, TransientError

log = structlog.get_logger(__name__)

IN_FLIGHT: Final = 12
IDLE_SECONDS: Final = 0.3
LOOK_SECONDS: Final = 1.0
_FOR_LARGE: Final = IN_FLIGHT * 3 // 4
"""So many threads one large instance may have while smaller ones wait."""
_TOLD_SECONDS: Final = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.3, 5.0
_BEGIN_ANEW: Final = {"no-upload", "chunks-missing"}

Place = Peer | OutsideDestination | None


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


class Lane:
    """Deliveries to one destination. :meth:`step` is called by each of its threads, over and over."""

    def __init__(self, name: str, connections: Connections) -> None:
        self.name = name
        self.stopping = threading.Event()
        self.loops: list[Loop] = []
        self._connections = connections
        self._flow = traffic.of(name)
        self._lock = threading.RLock()
        self._place: Place = None
        self._line: Line | None = None
        self._busy: set[int] = set()
        self._large: dict[int, Large] = {}
        self._to_digest: deque[Large] = deque()
        self._is_digesting = False
        self._probes = self._failures = 0
        self._idle_until = self._paused_until = 0.0

    def update(self, state: JoinState, place: Place, policy: MirrorPolicy) -> None:
        """How the destination is reached now; more threads if it bears more."""
        with self._lock:
            self._place = place
            if isinstance(place, Peer):
                if self._line is None or self._line.peer.url != place.url:
                    self._line = Line(state, place, self._connections.to(place.url))
                self._line.state, self._line.peer, self._line.setting = state, place, policy.encoding
        for number in range(len(self.loops), self._threads()):
            loop = Loop(f"{self.name}-{number}", self.step, self.stopping)
            self.loops.append(loop)
            loop.start()

    def _threads(self) -> int:
        if isinstance(self._place, OutsideDestination):
            carrier = registry.carrier_of(self._place.kind)
            return carrier.in_flight if carrier else 1
        return IN_FLIGHT

    def step(self) -> float:
        """Carry what is next; seconds until the next look."""
        if self._digest():
            return 0.0
        with self._lock:
            now = time.monotonic()
            rest = max(self._idle_until, self._paused_until) - now
            if rest > 0:
                return min(rest, IDLE_SECONDS)
            is_probe = self._failures > 0
            if is_probe and self._probes:
                return IDLE_SECONDS  # another thread tries whether the destination is back
            task = self._next()
            if task is None:
                self._idle_until = now + IDLE_SECONDS
                return IDLE_SECONDS
            self._probes += is_probe
        try:
            task()
        finally:
            with self._lock:
                self._probes -= is_probe
        return 0.0

    def _next(self) -> Callable[[], None] | None:
        given_out = {pk for pk, large in self._large.items() if large.in_flight and not large.missing}
        saturated = {pk for pk, large in self._large.items() if large.in_flight >= _FOR_LARGE}
        excluded = self._busy | given_out
        row = deliveries.next_waiting(self.name, busy=excluded | saturated)
        if row is None and saturated - excluded:
            row = deliveries.next_waiting(self.name, busy=excluded)
        if row is None:
            return None
        throttle.carry(urgent=row.priority < rules.ROUTINE)  # it is this thread that does what is given back
        line = self._line
        if isinstance(self._place, Peer) and line is not None and row.size > CHUNK:
            return self._next_of_large(row, line)
        self._busy.add(row.pk)
        return lambda: self._carry(row)

    def _next_of_large(self, row: Delivery, line: Line) -> Callable[[], None]:
        large = self._large.get(row.pk)
        if large is not None and large.missing:
            index = large.missing.popleft()
            large.in_flight += 1
            return lambda: self._chunk(line, large, index)
        self._busy.add(row.pk)
        if large is not None:
            return lambda: self._finish(line, large)
        return lambda: self._prepare(line, row)

    def _carry(self, row: Delivery) -> None:
        try:
            deliveries.record_proof(row, self._carried(row))
            self._well()
        except RegisError as error:
            self._failed(row, error)
        finally:
            self._free(row)

    def _carried(self, row: Delivery) -> Proof:
        place = self._place
        if isinstance(place, OutsideDestination):
            carrier = registry.carrier_of(place.kind)
            if carrier is None:
                raise TransientError("unknown-destination", f"this node cannot speak {place.kind}")
            proof = carrier.carry(row, place)
            self._flow.went(row.size, proof.wire_bytes or row.size)
            return proof
        if self._line is None or place is None:
            raise TransientError("unknown-destination", self.name)
        return self._line.whole(row)

    def _prepare(self, line: Line, row: Delivery) -> None:
        try:
            if not line.understands():
                deliveries.record_proof(row, line.whole(row))
                self._well()
                return
            large = line.prepare(row)
            with self._lock:
                self._large[row.pk] = large
                self._to_digest.append(large)
            self._flow.set_part(row.pk, row.study_instance_uid, large.arrived)
            self._well()
        except RegisError as error:
            self._failed(row, error)
        finally:
            self._free(row)

    def _digest(self) -> bool:
        """Let one thread work out what the end of a large one needs, while the others carry its chunks."""
        with self._lock:
            if self._is_digesting or not self._to_digest:
                return False
            large, self._is_digesting = self._to_digest.popleft(), True
        try:
            Line.digest(large)
        except PermanentError as error:  # no need to send the rest of it
            self._failed(large.delivery, error)
        except TransientError as error:
            log.warning("digests-not-computed", delivery=large.delivery.pk, error=str(error))
        finally:
            with self._lock:
                self._is_digesting = False
        return True

    def _chunk(self, line: Line, large: Large, index: int) -> None:
        row, went = large.delivery, None
        try:
            went = line.chunk(large, index)
        except RegisError as error:
            self._failed(row, error)
        finally:
            with self._lock:
                large.in_flight -= 1
                if went is None:
                    large.missing.append(index)
                self._idle_until = 0.0
        if went is None:
            return
        self._well()
        with self._lock:
            large.wire_bytes += went
            is_known = self._large.get(row.pk) is large
            tell = is_known and time.monotonic() - large.told_at > _TOLD_SECONDS
            if tell:
                large.told_at = time.monotonic()
        if is_known:
            self._flow.set_part(row.pk, row.study_instance_uid, large.arrived)
        if tell:
            deliveries.announce(row)

    def _finish(self, line: Line, large: Large) -> None:
        row = large.delivery
        try:
            deliveries.record_proof(row, line.finish(large))
            self._forget(row)
            self._well()
        except RegisError as error:
            self._failed(row, error)
        finally:
            self._free(row)

    def _free(self, row: Delivery) -> None:
        with self._lock:
            self._busy.discard(row.pk)
            self._idle_until = 0.0

    def _forget(self, row: Delivery) -> None:
        with self._lock:
            self._large.pop(row.pk, None)
        self._flow.set_part(row.pk, row.study_instance_uid, None)

    def _failed(self, row: Delivery, error: RegisError) -> None:
        if isinstance(error, PermanentError) or error.code in _BEGIN_ANEW:
            self._forget(row)
        deliveries.record_failure(row, error)
        log.warning("delivery-failed", delivery=row.pk, destination=self.name, error=str(error))
        if not isinstance(error, TransientError) or error.code in deliveries.SOON:
            return
        with self._lock:
            now = time.monotonic()
            if error.code in deliveries.UNREACHABLE and self._line is not None:
                self._line.forget()
            self._flow.set_trouble(str(error))
            if self._paused_until <= now:  # else others in flight failed for the same reason
                self._failures += 1
                self._paused_until = now + deliveries.pause(self._failures, first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)

    def _well(self) -> None:
        with self._lock:
            self._failures, self._paused_until = 0, 0.0
            self._flow.set_trouble("")

    def stop(self) -> None:
        """Carry no more; what is under way ends as it may."""
        self.stopping.set()


class Lanes:
    """All lanes of the node, and the rules that feed them. :meth:`step` is called every second."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._lanes: dict[str, Lane] = {}

    def step(self) -> float:
        """Have the rules decide again if they say otherwise than before, and a lane for each destination."""
        state = JoinState.objects.first()
        if state is None:
            return LOOK_SECONDS
        judge = ledger.Judge(state)
        cap = judge.keep_cap()
        if ledger.in_force.adopt(judge):
            try:
                changed = ledger.decide_again(judge)
            except Exception:
                ledger.in_force.forget()
                raise
            log.info("rules-applied", changed=changed, may_leave=judge.may_leave, cap=cap)
        for name, place in judge.destinations.items():
            self._lane(name).update(state, place, judge.policy)
        for name in set(self._lanes) - set(judge.destinations):
            self._lanes.pop(name).stop()
        return LOOK_SECONDS

    def _lane(self, name: str) -> Lane:
        if name not in self._lanes:
            self._lanes[name] = Lane(name, self._connections)
        return self._lanes[name]

    def stop(self) -> list[Loop]:
        """Carry no more; the threads that are to end."""
        for lane in self._lanes.values():
            lane.stop()
        return [loop for lane in self._lanes.values() for loop in lane.loops]
