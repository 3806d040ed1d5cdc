"""A region's day in minutes: 50 nodes that make 300 studies a day each, 50 times as fast, told to one real centre.

The centre is its processes as shipped (web, worker, PostgreSQL, the Redis-compatible server), the nodes are simulated
in this process (see ``_fleet``): a study is two series of 20 to 60 instances, described by the clinic and by the
archive. Reported are the lag from an event to the catalogue, processor time and memory of each process, the size of
the database a study, where it lies, and what is saturated first.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench._fleet import ARCHIVE, Node, Tally, Work, study, trusting
from tests.bench._peers import ROOT
from tests.bench._servers import Servers, database_bytes, reachable_region, servers
from tests.bench._usage import cpu_seconds, load, memory_mb
from tests.contract.parts import CENTRE, Part
from tests.contract.region import Region

DAY: Final = 86_400
LOOK_SECONDS: Final = 10.0
SETTLE_SECONDS: Final = 5.0
DRAIN_SECONDS: Final = 120.0


@dataclass(frozen=True)
class Plan:
    """How much comes, and for how long."""

    nodes: int
    studies_a_day: float
    speed: float
    seconds: float

    @property
    def studies_per_second(self) -> float:
        """Of the whole region, at its speed."""
        return self.nodes * self.studies_a_day * self.speed / DAY


@dataclass
class Sample:
    """What the processes had used at a moment."""

    at: float
    cpu: dict[str, float]
    taken: int
    told: int


class Run:
    """One measurement of one centre."""

    def __init__(self, region: Region, under: Servers, plan: Plan) -> None:
        self.region, self.plan, self.tally = region, plan, Tally()
        self.worker = Part("worker", [*CENTRE, "run", "worker"], region.centre.environment, region.directory / "worker")
        self._under = under
        self.nodes: list[Node] = []
        self.samples: list[Sample] = []
        self.empty_bytes = 0

    @property
    def pids(self) -> dict[str, int]:
        """Process id by what it is."""
        found = {"web": self.region.centre.process, "worker": self.worker.process}
        ours = {name: process.pid for name, process in found.items() if process is not None}
        return {**ours, "postgres": self._under.postgres_pid, "valkey": self._under.valkey_pid}

    def sample(self) -> None:
        """Look at the processes."""
        cpu = {name: cpu_seconds(pid) for name, pid in self.pids.items()}
        times = time.process_time()
        self.samples.append(
            Sample(time.monotonic(), {**cpu, "the simulated nodes": times}, self.tally.taken, self.tally.told)
        )

    async def go(self) -> None:
        """Join the nodes, let studies come for the time of the plan, then wait until the centre has all."""
        plan = self.plan
        names = [f"clinic-{number}" for number in range(1, plan.nodes + 1)]
        codes = await asyncio.to_thread(
            self.region.prepare, ("centre", ARCHIVE, ARCHIVE), *((name, "clinic", name) for name in names)
        )
        async with trusting(str(self.region.authority), self.region.centre_url, plan.nodes) as client:
            self.nodes = [Node(ARCHIVE, ARCHIVE, client, self.tally)]
            self.nodes += [Node(name, "clinic", client, self.tally) for name in names]
            for node in self.nodes:
                await node.join(codes[node.name])
            lives = [asyncio.create_task(node.live()) for node in self.nodes]
            await asyncio.sleep(SETTLE_SECONDS)
            self.empty_bytes = database_bytes(self.region.database_url)
            await self._let_come()
            for life in lives:
                if life.done():
                    life.result()
                life.cancel()
            await asyncio.gather(*lives, return_exceptions=True)

    async def _let_come(self) -> None:
        dice = random.Random(50)
        begun = time.monotonic()
        under_way: set[asyncio.Task[None]] = set()
        self.sample()
        looked, when = begun, begun
        print(
            f"{'second':>8}{'studies':>10}{'events told':>13}{'not taken':>11}{'p50 lag':>10}{'p95 lag':>10}",
            flush=True,
        )
        while (now := time.monotonic()) - begun < self.plan.seconds:
            if now >= when:
                when += dice.expovariate(self.plan.studies_per_second)
                clinic = dice.choice(self.nodes[1:])
                under_way.add(asyncio.create_task(study(clinic, self.nodes[0], Work(), dice, self.tally)))
                under_way = {task for task in under_way if not task.done() or task.result() is not None}
            if now - looked >= LOOK_SECONDS:
                looked = now
                self.sample()
                await self._tell_of(now - begun)
            await asyncio.sleep(max(0.0, min(when - time.monotonic(), 0.2)))
        await asyncio.gather(*under_way)
        self.sample()
        deadline = time.monotonic() + DRAIN_SECONDS
        while any(node.waiting for node in self.nodes) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        self.sample()

    async def _tell_of(self, seconds: float) -> None:
        rows = await asyncio.to_thread(self.region.ask, _LAG_OF_LATE, LOOK_SECONDS)
        p50, p95 = rows[0]
        waiting = sum(node.waiting for node in self.nodes)
        lags = "".join(f"{float(str(lag)):>9.2f}s" if lag is not None else f"{'-':>10}" for lag in (p50, p95))
        print(f"{seconds:>8.0f}{self.tally.studies:>10}{self.tally.told:>13}{waiting:>11}{lags}", flush=True)


_LAG_OF_LATE = (
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY lag), percentile_cont(0.95) WITHIN GROUP (ORDER BY lag)"
    " FROM (SELECT extract(epoch FROM received_at - occurred_at) AS lag FROM federation_inboxevent"
    " WHERE received_at > now() - make_interval(secs => %s)) AS late"
)
_LAG = (
    "SELECT type, count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY lag), percentile_cont(0.95) WITHIN GROUP"
    " (ORDER BY lag), max(lag), count(*) FILTER (WHERE error <> '') FROM (SELECT type, error,"
    " extract(epoch FROM received_at - occurred_at) AS lag FROM federation_inboxevent) AS all_of_them GROUP BY 1"
)
_TABLES = (
    "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r'"
    " AND relnamespace = 'public'::regnamespace ORDER BY 2 DESC LIMIT 8"
)


def report(run: Run, progress: Callable[[str], None] = print) -> bool:
    """Print what was found; whether the centre has every event and could apply it."""
    first, last, drained, tally = run.samples[0], run.samples[-2], run.samples[-1], run.tally
    seconds, studies = last.at - first.at, tally.studies
    waiting = sum(node.waiting for node in run.nodes)
    progress(
        f"\n{studies} studies of {tally.instances} instances in {seconds:.0f} s: {tally.told} events told, of them"
    )
    progress(
        f"{last.taken / seconds:.0f} a second taken; {waiting} not taken {drained.at - last.at:.0f} s later;"
        f" {tally.commands} commands heard"
    )
    if tally.refusals:
        progress(f"refused or away: {tally.refusals}")
    progress(f"\n{'event':<22}{'count':>9}{'p50 lag':>10}{'p95 lag':>10}{'longest':>10}{'errors':>9}")
    errors = 0
    for kind, count, p50, p95, longest, wrong in _numbers(run.region.ask(_LAG)):
        errors += int(wrong)
        progress(f"{kind:<22}{count:>9}{float(p50):>9.2f}s{float(p95):>9.2f}s{float(longest):>9.2f}s{wrong:>9}")
    progress(f"\n{'process':<22}{'processors':>12}{'memory':>12}{'ms a study':>13}")
    shares = {}
    for name in last.cpu:
        shares[name] = (last.cpu[name] - first.cpu[name]) / seconds
        used = drained.cpu[name] - first.cpu[name]  # of all studies, with what was taken after the last one came
        megabytes = memory_mb(run.pids[name]) if name in run.pids else 0.0
        progress(f"{name:<22}{shares[name]:>12.2f}{megabytes:>9.0f} MB{1000 * used / max(1, studies):>13.0f}")
    grown = database_bytes(run.region.database_url) - run.empty_bytes
    progress(f"\ndatabase: {grown / 1e6:.0f} MB, {grown / max(1, studies) / 1000:.1f} kB a study")
    for table, size in _numbers(run.region.ask(_TABLES)):
        progress(f"  {table:<40}{int(size) / 1e6:>9.1f} MB{int(size) / max(1, studies) / 1000:>9.1f} kB a study")
    rows = _numbers(run.region.ask("SELECT count(*), sum(instances_known), sum(instances_safe) FROM catalogue_study"))
    found, known, safe = rows[0]
    progress(f"\nthe catalogue has {found} studies, {known} instances, {safe} of them safe at the archive")
    busiest = max(shares, key=lambda name: shares[name])
    progress(
        f"busiest: {busiest} with {shares[busiest]:.2f} of a processor (one Python process cannot use more than 1)"
    )
    return waiting == 0 and errors == 0 and (found, known, safe) == (studies, run.tally.instances, run.tally.instances)


def _numbers(rows: list[tuple[object, ...]]) -> list[tuple[Any, ...]]:
    return rows


def measure(plan: Plan, scratch: Path) -> bool:
    """Start a centre, measure, report."""
    scratch.chmod(0o755)
    with servers(scratch) as under, reachable_region(scratch / "region", "127.0.0.1") as region:
        run = Run(region, under, plan)
        region.start_centre()
        run.worker.start()
        try:
            print(
                f"{plan.nodes} nodes of {plan.studies_a_day:g} studies a day at {plan.speed:g} times the speed: ",
                end="",
            )
            print(f"{plan.studies_per_second:.2f} studies a second for {plan.seconds:.0f} s; {load()}\n", flush=True)
            asyncio.run(run.go())
            return report(run)
        finally:
            run.worker.stop(60)  # killed, it would leave the processes of its pool behind


def main() -> None:
    """Parse, measure, clean up."""
    parser = argparse.ArgumentParser(prog="regis bench region", description=__doc__)
    parser.add_argument("--nodes", type=int, default=50)
    parser.add_argument("--studies", type=float, default=300, help="a node and day")
    parser.add_argument("--speed", type=float, default=50, help="how many days pass in one")
    parser.add_argument("--seconds", type=float, default=240, help="how long studies come")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="a folder on the disk to measure")
    chosen = parser.parse_args()
    chosen.dir.mkdir(parents=True, exist_ok=True)
    plan = Plan(chosen.nodes, chosen.studies, chosen.speed, chosen.seconds)
    with tempfile.TemporaryDirectory(prefix="region-", dir=chosen.dir) as folder:
        if not measure(plan, Path(folder)):
            sys.exit("The centre did not take, or could not apply, everything it was told.")


if __name__ == "__main__":
    main()
