"""Everything at once between a clinic and the archive, and the question whether the ledger ever lied.

The clinic's line goes up and down every few seconds (:class:`deploy.link.Link`), somebody meddles with what passes
(:class:`tests.contract.meddling.Meddler`), every process is killed at random, the archive's disk fills up, and the
clinic's clock is wrong by a day for a while. Meanwhile images come in. All along, whatever the clinic's ledger calls
receipted must be at the archive at that moment with equal digests; at the end nothing may be lost, doubled or altered.
"""

import contextlib
import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from deploy.processes import wait_until
from standards.digests import digests
from tests.contract.meddling import Meddler
from tests.contract.outages import Account, Disk, Line, wrong_clock
from tests.contract.parts import Part
from tests.contract.region import NodeUnderTest, Region, make_series

DAY: Final = 86_400
REFUSE_BELOW: Final = "6MB"
_PER_STUDY: Final = 50
_REST: Final = 0.3
"""Seconds between two looks at whether the storm has settled."""


@dataclass(frozen=True)
class Weather:
    """How bad it gets, in seconds; 0 or None turns a thing off."""

    seconds: float
    count: int
    flap: float = 5.0
    kills: tuple[float, float] = (3.0, 9.0)
    """The shortest and the longest pause between two kills."""
    full_disks: int = 2
    full_seconds: float = 20.0
    clock: bool = True
    seed: int = 1


class Storm:
    """A centre, an archive and a clinic in bad weather. Make it, :meth:`start`, :meth:`rage`, :meth:`settle`."""

    def __init__(self, region: Region, weather: Weather) -> None:
        self.region, self.weather, self.account = region, weather, Account()
        self._dice = random.Random(weather.seed)
        self._over = threading.Event()
        self._line = Line()
        self._disk = Disk(region.directory / "archive", self.account)
        self._clock = wrong_clock(region.directory, self.account) if weather.clock else None
        self.archive = region.add_node("archive", "archive", refuse_below=REFUSE_BELOW)
        self.clinic = region.add_node("clinic", "clinic", proxy_url=self._line.url)
        self.meddler = Meddler(region.directory / "tls", self.archive.https_port, weather.seed)
        self.archive.environment["REGIS_NODE_FEDERATION_URL"] = f"https://127.0.0.1:{self.meddler.port}"
        self._uids: list[str] = []
        self._trouble: list[BaseException] = []

    def start(self) -> None:
        """Everything runs, and the sky is blue."""
        codes = self.region.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        self.region.start_centre()
        self.region.join(self.archive, codes["archive"])
        self.region.join(self.clinic, codes["clinic"])
        self.region.start_pacs(self.archive)
        self.archive.gateway.start()
        self.clinic.gateway.start()

    def rage(self, tell: Callable[[str], None] = lambda text: None) -> None:
        """Have images come and everything else happen, for the time of the weather."""
        beside = [threading.Thread(target=self._until_over, args=(deed,)) for deed in (self._look, self._take_in)]
        for thread in beside:
            thread.start()
        begun = time.monotonic()
        # In this thread, because the kernel ends a process together with the thread that started it.
        deeds = [self._flap(), self._kill(), self._fill(), self._turn_the_clock(), self._report(begun, tell)]
        due = dict.fromkeys(deeds, begun)
        while due and not self._over.is_set():
            deed = min(due, key=lambda one: due[one])
            if self._over.wait(max(0.0, min(due[deed], begun + self.weather.seconds) - time.monotonic())):
                break
            if time.monotonic() >= begun + self.weather.seconds:
                self._over.set()
            elif (rest := next(deed, None)) is None:
                del due[deed]
            else:
                due[deed] = time.monotonic() + rest
        for thread in beside:
            thread.join()
        if self._trouble:
            raise self._trouble[0]

    def _report(self, begun: float, tell: Callable[[str], None]) -> Iterator[float]:
        while True:
            yield 15.0
            tell(f"{time.monotonic() - begun:5.0f} s: {self.account.looks} looks, {self._so_far()}")

    def settle(self, seconds: float) -> None:
        """The storm is over: wait until all is receipted and told, then compare everything.

        Raises: AssertionError with what is wrong; TimeoutError when it does not come to rest.
        """
        begun = time.monotonic()
        self._line.mend()
        self.meddler.rest()
        self._disk.clear()
        for part in self._parts:
            self._revive(part)
        try:
            wait_until(self._settled, seconds, "all is receipted")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self._why_not()}") from error
        self.account.settled_after = time.monotonic() - begun
        try:
            wait_until(self._centre_knows, seconds, "the centre knows all")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: studies, instances, safe: {self._centre_says()}") from error
        self._compare()
        assert not self.account.lies, self.account.lies[:5]
        self._assert_end()

    def stop(self) -> None:
        """Clear up."""
        self._over.set()
        self.meddler.stop()
        self._line.stop()
        self.region.stop()
        self._disk.remove()

    @property
    def _parts(self) -> list[Part]:
        return [self.clinic.gateway, self.archive.pacs, self.archive.gateway, self.region.centre]

    def _until_over(self, deed: Callable[[], Iterator[float]]) -> None:
        try:
            for rest in deed():
                if self._over.wait(rest) and not self._trouble and deed != self._take_in:
                    return  # the storm passes, but all images come
        except BaseException as error:
            self._trouble.append(error)
            self._over.set()

    def _flap(self) -> Iterator[float]:
        while self.weather.flap:
            yield self.weather.flap
            self._line.cut()
            self.account.happened["line cut"] += 1
            yield self.weather.flap
            self._line.mend()

    def _kill(self) -> Iterator[float]:
        while True:
            yield self._dice.uniform(*self.weather.kills)
            victim = self._dice.choice(self._parts)
            victim.kill()
            self.account.happened[f"killed {victim.name}"] += 1
            yield self._dice.uniform(0.0, 0.5)
            for part in self._parts:  # also what could not live on a full disk
                self._revive(part)

    def _revive(self, part: Part) -> None:
        if part.process is None or part.process.poll() is not None:
            part.kill()
            part.start()

    def _fill(self) -> Iterator[float]:
        if not self._disk.is_own:
            return
        share = self.weather.seconds / (self.weather.full_disks + 1)
        for _ in range(self.weather.full_disks):
            yield max(1.0, share - self.weather.full_seconds)
            self._disk.fill()
            self.account.happened["disk full"] += 1
            yield min(self.weather.full_seconds, share)
            self._disk.clear()

    def _turn_the_clock(self) -> Iterator[float]:
        if self._clock is None:
            return
        yield self.weather.seconds * 0.2
        for off_by in (DAY, -DAY, 0):
            self.clinic.gateway.environment = {**self.clinic.environment, **self._clock(off_by)}
            self.clinic.gateway.kill()
            self._revive(self.clinic.gateway)
            self.account.happened[f"clock off by {off_by // DAY} days"] += 1
            yield self.weather.seconds * 0.2

    def _take_in(self) -> Iterator[float]:
        lots = max(1, min(20, self.weather.count // _PER_STUDY))
        sizes = [self.weather.count // lots + (number < self.weather.count % lots) for number in range(lots)]
        for number, size in enumerate(sizes):
            begun, folder = time.monotonic(), self.region.directory / f"lot-{number}"
            left = size
            while left:
                _, uids = make_series(min(left, _PER_STUDY), folder, text=f"lot {number}")
                self._uids += uids
                left -= len(uids)
            self.region.take_in(self.clinic, folder)
            shutil.rmtree(folder)
            yield max(0.0, self.weather.seconds * 0.8 / lots - (time.monotonic() - begun))

    def _look(self) -> Iterator[float]:
        while True:
            yield 1.0
            self._compare()

    def _compare(self) -> None:
        """What the ledger calls receipted is read before what the archive holds: only the truth passes."""
        try:
            told = dict(
                _read(
                    self.clinic,
                    "SELECT sop_instance_uid, dataset_sha256 FROM gateway_delivery WHERE status = 'receipted'",
                )
            )
            held = _read(
                self.archive,
                "SELECT sop_instance_uid, dataset_sha256 FROM study_index_instance WHERE released_at IS NULL",
            )
        except sqlite3.OperationalError:  # a full disk has no room for a reader either
            self.account.skipped += 1
            return
        there = dict(held)
        if len(there) != len(held):
            self.account.lies.append("an instance is at the archive twice")
        self.account.lies += [uid for uid, digest in told.items() if there.get(uid) != digest]
        self.account.looks += 1
        self.account.proved = len(told)

    def _settled(self) -> bool:
        time.sleep(_REST)
        for part in self._parts:
            self._revive(part)
        with contextlib.suppress(sqlite3.OperationalError):
            return self.clinic.receipted() == len(self._uids) == self.weather.count
        return False

    def _so_far(self) -> str:
        return f"{self.account.proved} of {len(self._uids)} receipted, {len(self.account.lies)} untrue"

    def _why_not(self) -> str:
        rows = self.clinic.query(
            "SELECT status, last_error, count(*), min(next_attempt_at), max(next_attempt_at) FROM gateway_delivery"
            " WHERE status <> 'receipted' GROUP BY 1, 2"
        )
        return f"{self.clinic.receipted()} of {len(self._uids)} are; {rows[:8]}"

    def _centre_says(self) -> tuple[object, ...]:
        return self.region.ask(
            "SELECT count(*), coalesce(sum(instances_known), 0), coalesce(sum(instances_safe), 0) FROM catalogue_study"
        )[0]

    def _centre_knows(self) -> bool:
        time.sleep(_REST)
        return self._centre_says()[1:] == (self.weather.count, self.weather.count)

    def _assert_end(self) -> None:
        """Nothing lost, nothing doubled, nothing altered; and the files themselves say so too."""
        at_clinic, at_archive = self.clinic.held(), self.archive.held()
        assert set(at_clinic) == set(self._uids)
        assert at_archive == at_clinic
        files = list((self.archive.directory / "storage").rglob("*.dcm"))
        assert len(files) == self.weather.count, "a file for each instance and no more"
        found = Counter(digests(path).dataset for path in files)
        assert found == Counter(dataset for dataset, _ in at_clinic.values())
        assert self.region.ask("SELECT count(*) FROM federation_inboxevent WHERE error <> ''") == [(0,)]
        assert self.region.ask("SELECT count(*) FROM catalogue_studyconflict") == [(0,)]
        for _, seqs in self.region.ask(
            "SELECT node_id, array_agg(seq ORDER BY seq) FROM federation_inboxevent GROUP BY node_id, epoch"
        ):
            assert seqs == list(range(1, len(seqs) + 1)), "events have no gaps"  # type: ignore[arg-type]


def _read(node: NodeUnderTest, statement: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(node.directory / "node.sqlite3", timeout=20)) as connection:
        return connection.execute(statement).fetchall()
