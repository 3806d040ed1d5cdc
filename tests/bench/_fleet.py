"""Many nodes that exist only as what they say: real signed messages of the envelope over HTTPS, no images behind them.

Each joins by a code, beats its heart every 5 s, waits for commands in long polls, and tells its events in order, as the
gateway process of a node does: what arrived within 0.3 s of one series is one event, and how far the ledger is is told
once a second.
"""

import asyncio
import random
import secrets
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from uuid import uuid4

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from gateway.envelope import (
    SCHEMA_VERSION,
    DeliveryProgress,
    EventAnswer,
    InstanceDescription,
    JoinAnswer,
    JoinRequest,
    NodeStatus,
    PatientIdentity,
    RawCommandBatch,
    RawEvent,
    RawEventBatch,
    SeriesChanged,
    SeriesDescription,
    StudyDescription,
)
from standards import http_signatures
from standards.digests import root_hash
from standards.tokens import generate_key, public_key_to_text
from standards.uids import new_uid

ARCHIVE: Final = "archive"
IDLE_SECONDS, PROGRESS_SECONDS, HEARTBEAT_SECONDS = 0.3, 1.0, 5.0
"""As in ``gateway.runner``, which cannot be imported without a node's Django."""
EVENTS_PER_BATCH, BYTES_PER_BATCH, LONGEST_PAUSE_SECONDS = 500, 4_000_000, 10.0
"""As in ``gateway.relay``."""
_EVENT_BYTES: Final = 450
"""About what an instance takes in an event; bounds a batch as the relay does."""


@dataclass(frozen=True)
class Work:
    """What a study is: two series of 20 to 60 instances that come at so many a second."""

    series: int = 2
    fewest: int = 20
    most: int = 60
    instances_per_second: float = 40.0


@dataclass
class Tally:
    """What the nodes said and heard."""

    studies: int = 0
    instances: int = 0
    told: int = 0
    taken: int = 0
    commands: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


class Node:
    """One simulated node."""

    def __init__(self, name: str, kind: str, client: httpx.AsyncClient, tally: Tally) -> None:
        self.name, self.kind = name, kind
        self._client, self._tally = client, tally
        self._key: Ed25519PrivateKey = generate_key()
        self._epoch = str(uuid4())
        self._seq = self._acknowledged = self._command = 0
        self._waiting: list[RawEvent] = []
        self._stored = 0
        self._news = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Events that the centre has not taken."""
        return len(self._waiting)

    async def join(self, code: str) -> None:
        """Spend a one-time code."""
        request = JoinRequest(
            code=code,
            public_key=public_key_to_text(self._key.public_key()),
            ae_title=self.name.upper()[:16],
            kind=self.kind,  # type: ignore[arg-type]  # the region's own words
            url=f"https://{self.name}.example",
            browser_url=f"https://{self.name}.example",
            host="192.0.2.1",
            dicom_port=11112,
        )
        body = request.model_dump_json().encode()
        answer = await self._client.post(
            "/federation/v1/join", content=body, headers={"Content-Type": "application/json"}
        )
        answer.raise_for_status()
        JoinAnswer.model_validate_json(answer.content)

    def tell(self, body: SeriesChanged | DeliveryProgress) -> None:
        """Number an event; it goes with the next batch."""
        self._seq += 1
        if isinstance(body, SeriesChanged):
            self._stored += len(body.added)
        self._waiting.append(
            RawEvent(
                schema_version=SCHEMA_VERSION,
                epoch=self._epoch,
                seq=self._seq,
                occurred_at=datetime.now(UTC),
                body=body.model_dump(mode="json"),
            )
        )
        self._tally.told += 1
        self._news.set()

    async def live(self) -> None:
        """Beat, listen and tell until cancelled."""
        await asyncio.gather(self._beat(), self._listen(), self._push())

    async def _ask(self, method: str, path: str, body: bytes = b"", wait: float = 30.0) -> bytes | None:
        """One signed request; None when it was refused or the centre was away, which is counted."""
        headers = http_signatures.sign(method, path, sha256(body).digest(), self._key, self.name, int(time.time()))
        headers["Content-Type"] = "application/json"
        try:
            answer = await self._client.request(method, path, content=body, headers=headers, timeout=wait)
        except httpx.TransportError as error:
            self._refused(type(error).__name__)
            return None
        if not answer.is_success:
            self._refused(f"{path.partition('?')[0]} {answer.status_code}")
            return None
        return answer.content

    def _refused(self, why: str) -> None:
        self._tally.refusals[why] = self._tally.refusals.get(why, 0) + 1

    async def _beat(self) -> None:
        await asyncio.sleep(random.uniform(0, HEARTBEAT_SECONDS))
        while True:
            status = NodeStatus(
                version="bench",
                epoch=self._epoch,
                clock=datetime.now(UTC),
                free_bytes=10**12,
                stored_instances=self._stored,
                events_waiting=len(self._waiting),
                deliveries_waiting=0,
            )
            await self._ask("POST", "/federation/v1/status", status.model_dump_json().encode())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _listen(self) -> None:
        while True:
            path = f"/federation/v1/commands?after={self._command}&wait=25"
            answer = await self._ask("GET", path, wait=60.0)
            if answer is None:
                await asyncio.sleep(1)
                continue
            commands = RawCommandBatch.model_validate_json(answer).commands
            self._tally.commands += len(commands)
            self._command = max([self._command, *(command.seq for command in commands)])

    async def _push(self) -> None:
        while True:
            if not self._waiting:
                self._news.clear()
                await self._news.wait()
            batch = list(self._batch())
            body = RawEventBatch(events=batch).model_dump_json().encode()
            answer = await self._ask("POST", "/federation/v1/events", body, wait=60.0)
            if answer is None:
                await asyncio.sleep(1)
                continue
            heard = EventAnswer.model_validate_json(answer)
            taken = sum(event.seq <= heard.cursor for event in self._waiting)
            self._waiting = self._waiting[taken:]
            self._tally.taken += taken
            pause = min(heard.pause, LONGEST_PAUSE_SECONDS) if len(batch) < EVENTS_PER_BATCH else 0.0
            await asyncio.sleep(pause if self._waiting else max(pause, IDLE_SECONDS))

    def _batch(self) -> Iterator[RawEvent]:
        size = 0
        for event in self._waiting[:EVENTS_PER_BATCH]:
            size += _EVENT_BYTES * (1 + len(event.body.get("added", ())))
            if size > BYTES_PER_BATCH:
                return
            yield event


async def study(clinic: Node, archive: Node, work: Work, dice: random.Random, tally: Tally) -> None:
    """A study comes to a clinic, series after series, and is mirrored to the archive as it comes."""
    number = dice.randrange(10**8)
    patient = PatientIdentity(
        patient_id=f"{clinic.name}-{number % 20_000}",
        patient_name=f"Выдумкин{number % 20_000}^Пример^Примерович",
        patient_birth_date=f"19{number % 100:02d}0101",
        patient_sex="FM"[number % 2],
    )
    described = StudyDescription(
        study_instance_uid=new_uid(),
        study_date=datetime.now(UTC).strftime("%Y%m%d"),
        study_time=datetime.now(UTC).strftime("%H%M%S"),
        study_id=str(number),
        study_description="CT of the chest",
        referring_physician_name="Направляев^П^П",
        institution_name=clinic.name,
    )
    tally.studies += 1
    all_of_it = safe = 0
    told = 0.0
    for series_number in range(1, work.series + 1):
        series = SeriesDescription(
            series_instance_uid=new_uid(),
            modality="CT",
            series_number=series_number,
            series_description="Axial 1.0",
            body_part_examined="CHEST",
            station_name="CT1",
            source_ae_title="CT1",
        )
        count, held = dice.randint(work.fewest, work.most), 0
        entries: list[tuple[str, str]] = []
        begun = time.monotonic()
        while held < count:
            await asyncio.sleep(IDLE_SECONDS)
            there = min(count, int((time.monotonic() - begun) * work.instances_per_second))
            added = [_instance(number) for number in range(held + 1, there + 1)]
            if not added:
                continue
            held = there
            entries += [(one.sop_instance_uid, one.dataset_sha256) for one in added]
            event = SeriesChanged(
                patient=patient, study=described, series=series, added=added, count=held, root_hash=root_hash(entries)
            )
            clinic.tell(event)
            archive.tell(event)  # the archive holds the same a moment later
            tally.instances += len(added)
            all_of_it += len(added)
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                clinic.tell(_progress(described.study_instance_uid, all_of_it, safe))
            safe = all_of_it
    await asyncio.sleep(PROGRESS_SECONDS)
    clinic.tell(_progress(described.study_instance_uid, all_of_it, all_of_it))


def _instance(number: int) -> InstanceDescription:
    return InstanceDescription(
        sop_instance_uid=new_uid(),
        sop_class_uid=CTImageStorage,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        dataset_sha256=secrets.token_hex(32),
        pixel_sha256=secrets.token_hex(32),
        frames_sha256=secrets.token_hex(32),
        size=526_000,
        instance_number=number,
    )


def _progress(study_instance_uid: str, total: int, receipted: int) -> DeliveryProgress:
    return DeliveryProgress(
        study_instance_uid=study_instance_uid,
        destination=ARCHIVE,
        total=total,
        receipted=receipted,
        failed=0,
        total_bytes=total * 526_000,
        receipted_bytes=receipted * 526_000,
    )


def trusting(authority: str, centre_url: str, nodes: int) -> httpx.AsyncClient:
    """A client for all nodes at once; each has its connections for heartbeats, commands and events."""
    most = httpx.Limits(max_connections=4 * nodes + 20, max_keepalive_connections=4 * nodes + 20)
    trust: Any = ssl.create_default_context(cafile=authority)
    return httpx.AsyncClient(base_url=centre_url, verify=trust, limits=most, trust_env=False)
