"""`regis demo`: a whole region in the foreground, from nothing to links and logins, and gone without a process left."""

import asyncio
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TextIO

import httpx
import typer

from deploy import postgres
from deploy.certificates import ensure_authority, ensure_certificate
from deploy.link import Link
from deploy.people import Refused
from deploy.processes import as_child, port_is_free, write_private
from deploy.region import NODES, PEOPLE, SITES, Node, Ports, RegionInfo, Secrets, document, seed
from deploy.supervisor import PartError, Supervisor, base_environment
from deploy.wiring import Wiring
from standards.errors import RegisError

ROOT = Path(__file__).parent.parent
NEEDED_BYTES = 1_000_000_000

app = typer.Typer(add_completion=False)


class DemoError(Exception):
    """The demo cannot go on; the message is one sentence for a person."""


class Demo:
    """One region on this machine, in one directory, on one range of ports."""

    def __init__(self, directory: Path, base: int) -> None:
        self.directory = directory.resolve()
        self.ports = Ports(base)
        self._begun = time.monotonic()
        self._lock: TextIO | None = None
        self._two = asyncio.Semaphore(2)

    def prepare(self) -> None:
        """Refuse what cannot work, then take the directory, its secrets and its certificates.

        Raises:
            DemoError: another demo runs here, a port is taken, or the disk is nearly full.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = (self.directory / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"Another demo runs in {self.directory}: stop it, or choose another --dir.") from None
        free = shutil.disk_usage(self.directory).free
        if free < NEEDED_BYTES:
            raise DemoError(f"The disk of {self.directory} has {free / 1e9:.1f} GB left, and a region needs 1 GB.")
        for name, port in self.ports.all().items():
            if not 0 < port < 65536:
                raise DemoError(f"There is no port {port} ({name}): choose a lower --port-base.")
            if not port_is_free(port):
                raise DemoError(f"Port {port} ({name}) is in use: choose other ports with --port-base.")
        (self.directory / "region.json").unlink(missing_ok=True)
        self.secrets = Secrets.of(self.directory)
        tls = self.directory / "tls"
        authority = ensure_authority(tls)
        certificates = {name: ensure_certificate(tls, name) for name in ("centre", *(node.name for node in NODES))}
        self.supervisor = Supervisor(ROOT, self.directory / "log", self.tell)
        self.links = {node.name: Link(self.ports.node(node)["link"]) for node in NODES}
        self.wiring = Wiring(self.directory, self.ports, self.secrets, authority, certificates, self.links)

    def tell(self, text: str) -> None:
        """One line of progress, with the seconds since the start."""
        print(f"{time.monotonic() - self._begun:6.1f} s  {text}", flush=True)

    async def command(self, name: str, arguments: list[str], environment: dict[str, str]) -> None:
        """Run a command of a part to its end, two at a time.

        Raises:
            PartError: it failed.
        """
        log = self.supervisor.log_of(f"{name}-{arguments[1]}")
        async with self._two:
            with log.open("wb") as output:
                process = await asyncio.create_subprocess_exec(
                    *[sys.executable, "-P", "-m", "deploy", *arguments],
                    cwd=ROOT,
                    env={**base_environment(ROOT), **environment},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    preexec_fn=as_child(os.getpid()),
                )
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise
        if code:
            last = self.supervisor.last_words(f"{name}-{arguments[1]}")
            raise PartError(f"regis {' '.join(arguments[:2])} of {name} ended with code {code}: {last}")

    async def once(self, stamp: Path, state: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Do the work unless the stamp says it was done for this state; whether it was done now."""
        if stamp.is_file() and stamp.read_text(encoding="utf-8") == state:
            return False
        await work()
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(state, encoding="utf-8")
        return True

    async def migrate(self, name: str, project: str, environment: dict[str, str]) -> None:
        """Bring the database of a part to the code's schema."""
        apps = {"centre": "ris_central", "node": "pacs_node"}[project]
        files = [*ROOT.glob(f"{apps}/*/migrations/*.py"), *ROOT.glob("gateway/**/migrations/*.py")]
        state = _digest([*sorted(files), ROOT / "requirements.lock"])
        folder = self.directory / name

        async def work() -> None:
            await self.command(name, [project, "migrate"], environment)
            self.tell(f"{name}: database is up to date")

        await self.once(folder / "migrated", state, work)

    async def start(self) -> None:
        """Start the whole region and wait until every part is healthy."""
        for link in self.links.values():
            await link.start()
        infrastructure = self.wiring.infrastructure()
        await self.supervisor.start(*infrastructure)
        await self.supervisor.wait_healthy(infrastructure, 90)
        self.tell("postgres and valkey answer")
        await asyncio.to_thread(self._make_databases)
        await self._gather(
            self.migrate("centre", "centre", self.wiring.centre_environment()),
            *(self.migrate(node.name, "node", self.wiring.node_environment(node)) for node in NODES),
        )
        await self._seed()
        centre = self.wiring.centre_parts()
        joined = [node for node in NODES if (self.directory / node.name / "joined").exists()]
        parts = [part for node in joined for part in self.wiring.node_parts(node)]
        await self.supervisor.start(*centre)
        await self.supervisor.start(*parts)
        if len(joined) < len(NODES):
            await self.supervisor.wait_healthy(centre[:1], 300)
            self.tell("the centre answers")
            new = [node for node in NODES if node not in joined]
            await self._gather(*(self._join(node) for node in new))
            late = [part for node in new for part in self.wiring.node_parts(node)]
            await self.supervisor.start(*late)
            parts += late
        parts += centre
        await self.supervisor.wait_healthy(parts, 300)
        self.tell(f"all {len(parts) + len(infrastructure)} processes are healthy")

    def _make_databases(self) -> None:
        admin = self.wiring.superuser
        postgres.ensure_database(admin, "regis_centre", self.secrets.centre_database)
        postgres.ensure_database(admin, "regis_archive", self.secrets.archive_database)

    async def _gather(self, *work: Awaitable[None]) -> None:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(_as_coroutine(each))

    async def _seed(self) -> None:
        text = json.dumps(seed(self.secrets), ensure_ascii=False, indent=1)
        file = self.directory / "seed.json"

        async def work() -> None:
            write_private(file, text)
            await self.command("centre", ["centre", "seed-demo", "--file", str(file)], self.wiring.centre_environment())
            self.tell(f"centre: {len(SITES)} sites, {len(PEOPLE)} people and their devices are known")

        await self.once(self.directory / "centre" / "seeded", hashlib.sha256(text.encode()).hexdigest(), work)

    async def _join(self, node: Node) -> None:
        url = f"https://127.0.0.1:{self.ports.centre['centre https']}"
        code = self.secrets.join_codes[node.name]

        async def work() -> None:
            await self.command(node.name, ["node", "join", url, code], self.wiring.node_environment(node))
            self.tell(f"{node.name}: joined the region")

        await self.once(self.directory / node.name / "joined", url, work)

    def write_region(self) -> None:
        """Write region.json for those who drive the region from outside."""
        content = document(self.ports, self.secrets, self.wiring.authority, self.supervisor.pids)
        write_private(self.directory / "region.json", json.dumps(content, ensure_ascii=False, indent=1))

    def info(self) -> RegionInfo:
        """The running region for those who drive it from inside; its functions may be called from any thread."""
        loop = asyncio.get_running_loop()
        return RegionInfo(
            self.directory,
            json.loads((self.directory / "region.json").read_text(encoding="utf-8")),
            cut_link=lambda name: _from_thread(loop, self.links[name].cut),
            restore_link=lambda name: _from_thread(loop, self.links[name].restore),
        )

    def welcome(self) -> None:
        """Links and logins."""
        region = json.loads((self.directory / "region.json").read_text(encoding="utf-8"))
        print(f"\n  The region is ready. Begin at  {region['centre']['url']}/\n", flush=True)
        width = max(len(person.username) for person in PEOPLE) + 2
        print(f"  Everybody's password: {self.secrets.password}")
        sites = {site["code"]: site["name"] for site in SITES}
        for person in PEOPLE:
            print(f"    {person.username:<{width}}{person.role:<15}{sites[person.site]}")
        print("\n  Nodes")
        for node in region["nodes"]:
            print(
                f"    {node['name']:<{width}}{node['url'] + '/':<25}DICOM {node['aet']}@127.0.0.1:{node['dicom_port']}"
            )
        hl7 = region["centre"]["hl7"]
        print(f"    {'HL7 v2 (MLLP)':<{width}} 127.0.0.1:{hl7['port']}")
        print(
            f"\n  Everything lies in {self.directory}; logs in {self.directory / 'log'}. Ctrl-C stops it all.\n",
            flush=True,
        )

    async def stop(self) -> None:
        """Stop every process and every link."""
        (self.directory / "region.json").unlink(missing_ok=True)
        await self.supervisor.stop()
        for link in self.links.values():
            await link.stop()
        self.tell("everything has stopped")


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work


def _from_thread(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    async def act() -> None:
        action()

    asyncio.run_coroutine_threadsafe(act(), loop).result(10)


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


async def _run(demo: Demo, data: Path | None, once: bool) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait())
    try:
        starting = asyncio.create_task(demo.start())
        if not await _first(starting, stopped):
            return 130
        demo.write_region()
        demo.supervisor.on_restart = demo.write_region
        if once:
            playing = _in_thread("deploy.story", "play", demo.info(), data)
            return int(playing.result()) if await _first(playing, stopped) else 130
        demo.welcome()
        filling = _in_thread("deploy.simulator.populate", "populate", demo.info(), data)
        try:
            if await _first(filling, stopped):
                demo.tell("a day's work is booked and acquired")
        except (RegisError, Refused, httpx.HTTPError, OSError) as error:
            demo.tell(f"a day's work could not be made: {error}")
        await stopped
        return 0
    finally:
        print(flush=True)
        await demo.stop()


def _in_thread(module: str, function: str, *arguments: object) -> "asyncio.Future[Any]":
    """Call a function of a module that only this needs, in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def settle(result: object, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)

    def act() -> None:
        result, failure = None, None
        try:
            result = getattr(importlib.import_module(module), function)(*arguments)
        except BaseException as error:  # whatever it is, it belongs to the one who awaits it
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=act, name=function, daemon=True).start()
    return outcome


async def _first(work: "asyncio.Future[Any]", stopped: "asyncio.Future[Any]") -> bool:
    """Wait for the work or the wish to stop; whether the work came first, its exception raised here."""
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()
        return True
    work.cancel()
    await asyncio.wait({work}, timeout=20)
    return False


def _sentences(error: BaseException) -> Iterable[str]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _sentences(each)
    else:
        yield str(error)


@app.command()
def demo(
    directory: Annotated[Path, typer.Option("--dir", help="Where the region lives.")] = Path("var/demo"),
    port_base: Annotated[int, typer.Option(help="First of the fifty ports that the region uses.")] = 8000,
    data: Annotated[
        Path | None, typer.Option(help="DICOM files that the modalities acquire.", exists=True, file_okay=False)
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Play the whole story without a person, then stop.")] = False,
) -> None:
    """Run a whole region on this machine: centre, archive, clinics, people, devices, images."""
    region = Demo(directory, port_base)
    try:
        region.prepare()
        code = asyncio.run(_run(region, data, once))
    except* (DemoError, PartError) as errors:
        for sentence in _sentences(errors):
            print(f"regis demo: {sentence}", file=sys.stderr, flush=True)
        code = 1
    raise typer.Exit(code)
