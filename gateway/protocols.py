"""What the gateway needs of the node it lives in; ``pacs_node`` implements these."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Protocol

from gateway.envelope import (
    HeldSeries,
    InstanceDescription,
    OutsideDestination,
    PatientIdentity,
    SeriesDescription,
    SeriesKey,
    StudyDescription,
)
from standards.digests import Digests

if TYPE_CHECKING:  # the registry that names these protocols is loaded before the models are
    from gateway.models import Delivery


class NodeFacts(Protocol):
    """What the gateway must know of its node; ``settings.CONFIG`` of the node's Django project has it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Literal["archive", "clinic", "gateway"]: ...
    @property
    def ae_title(self) -> str: ...
    @property
    def data_dir(self) -> Path: ...
    @property
    def tls_ca(self) -> Path | None: ...
    @property
    def proxy_url(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def peer_url(self) -> str: ...
    @property
    def dicom_host(self) -> str: ...
    @property
    def dicom_port(self) -> int: ...
    @property
    def event_retention_days(self) -> int: ...
    @property
    def network_timeout_seconds(self) -> float: ...


class StoredSeries(Protocol):
    """A series as the index holds it now."""

    @property
    def patient(self) -> PatientIdentity: ...
    @property
    def study(self) -> StudyDescription: ...
    @property
    def series(self) -> SeriesDescription: ...
    @property
    def count(self) -> int: ...
    @property
    def root_hash(self) -> str: ...


class HeldInstance(NamedTuple):
    """An instance whose file this node holds, as far as the ledger needs it."""

    instance_key: int
    series_key: int
    study_instance_uid: str
    sop_instance_uid: str
    dataset_sha256: str


class InstanceOrigin(NamedTuple):
    """What rules of the mirror look at: (0008,0060), who sent it here, bytes of the file as received."""

    modality: str
    source_ae_title: str
    size: int


@dataclass(frozen=True)
class Proof:
    """What a destination proves of an instance: ``name`` is of ``Delivery.Proof``, ``evidence`` is kept on the ledger.

    ``wire_bytes``: bytes that carried it, as far as they can be told.
    """

    name: Literal["stored", "committed", "read-back", "receipt"]
    evidence: dict[str, Any] = field(default_factory=dict)
    wire_bytes: int = 0


class Carrier(Protocol):
    """Brings instances to one kind of destination outside the region (``registry.register_carrier``)."""

    in_flight: int
    """How many deliveries to one destination are carried at once, each by a thread."""

    def carry(self, delivery: "Delivery", destination: OutsideDestination) -> Proof:
        """Bring one instance there and give the strongest proof that is to be had now.

        Called by a thread of that destination; what it takes from ``throttle`` (``gateway.rates.throttle``) per piece
        keeps the caps of the site. A stronger proof that comes later goes to ``deliveries.record_proof``.

        Raises: TransientError for what may work later: code "unreachable" when the destination is away, which pauses
            the destination and not the instance. PermanentError for what a person must look at.
        """


class InstanceStore(Protocol):
    """Storage and index of the node, as seen by the gateway. Registered once in ``AppConfig.ready()``."""

    def describe_series(self, series_key: int) -> StoredSeries | None:
        """The series of surrogate key ``series_key`` with all it holds now, or None when the index lost it.

        A series of which every instance was released is still described, with a count of 0.
        """

    def describe_instances(self, instance_keys: Iterable[int]) -> list[InstanceDescription]:
        """Descriptions, in the order of the keys; keys that are gone are left out."""

    def instances_after(self, instance_key: int, limit: int) -> list[HeldInstance]:
        """Up to ``limit`` instances held (not released) with a key above ``instance_key``, in rising key order."""

    def series_after(self, series_key: int, limit: int) -> list[tuple[int, SeriesKey]]:
        """Up to ``limit`` series with a key above ``series_key``, in rising key order, and their names."""

    def summarize(self, series_keys: list[int]) -> list[HeldSeries]:
        """What is held of these series now; those of which nothing is held are left out."""

    def instances_of_series(self, series: SeriesKey) -> list[HeldInstance]:
        """All instances held of a series; none when the index never had it."""

    def open(self, instance_key: int) -> BinaryIO:
        """The Part 10 file as it was received, seekable. Raises PermanentError("instance-gone"), TransientError."""

    def find(self, sop_instance_uid: str, dataset_sha256: str) -> int | None:
        """The key of the instance with this content, if it is held here."""

    def ensure_frames_digest(self, instance_key: int) -> str | None:
        """The canonical frames digest, computed and kept on first call; None where it does not apply."""

    def receive(self, stream: BinaryIO, *, source: str, sop_instance_uid: str, found: Digests) -> tuple[int, str]:
        """Take one Part 10 file in: durable, indexed, exactly once. Reads ``stream`` to its end (``read`` gives b"").

        ``found``: its digests, computed from these bytes; they are kept with it.

        Returns ``(instance_key, outcome)``, outcome being ``stored``, ``duplicate`` or ``conflict``.
        Raises PermanentError for what can never be stored, TransientError for a full disk ("storage-full") or a busy
        database. What ``stream.read`` raises passes through, and nothing is kept then.
        """

    def release(self, instance_keys: Iterable[int]) -> None:
        """Let go of the files of these instances (zero retention); journalled, the index keeps that they were here.

        Calling it again for a released instance changes nothing.
        """

    def instance_keys_of_study(self, study_instance_uid: str) -> list[int]:
        """All instances held of a study."""

    def received_of_study(self, study_instance_uid: str) -> set[str]:
        """SOP Instance UIDs of all that ever came of a study, what was released since included."""

    def held(self) -> tuple[int, int]:
        """``(instances stored, free bytes on the storage)``."""

    def origins(self, instance_keys: Iterable[int]) -> dict[int, InstanceOrigin]:
        """What rules look at, by key; keys that are gone are left out."""

    def check_room(self, size: int) -> None:
        """Whether ``size`` bytes more may be taken in. Raises: TransientError("storage-full")."""
