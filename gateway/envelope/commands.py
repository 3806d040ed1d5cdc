"""Commands down: what the centre wants of a node."""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from gateway.envelope.base import SCHEMA_VERSION, Wire
from gateway.envelope.configuration import Configuration
from gateway.envelope.holdings import ProveAgain, TellHoldings
from gateway.envelope.offline import AccessionBlock
from worklist.feed import DeviceRules, WorklistItem


class FormerKey(Wire):
    """A key that a peer rotated away from. What it signed before ``until`` counts: requests then, receipts for ever."""

    public_key: str
    until: AwareDatetime


class Peer(Wire):
    """A node of the region as other nodes need to know it."""

    name: str
    kind: Literal["archive", "clinic", "gateway"]
    ae_title: str
    url: str = Field(description="HTTPS address for other nodes")
    public_key: str = Field(description="Ed25519, the 32 raw bytes in unpadded base64url")
    former_keys: list[FormerKey] = []


class Directory(Wire):
    """The whole trust list; replaces the one before."""

    type: Literal["directory"] = "directory"
    peers: list[Peer]
    token_keys: dict[str, str] = Field(description="kid → Ed25519 public key that signs image tokens")
    mirror_to: list[str] = Field(description="names of the peers that this node mirrors to")
    site_name: str = ""
    time_zone: str = "Europe/Moscow"


class Schedule(Wire):
    """Worklist items to put or replace, and ids of those to take away.

    ``settled``: step ids and the highest revision of the node's own changes that the centre has taken in; what the
    node changed after that is not overwritten.
    """

    type: Literal["schedule"] = "schedule"
    items: list[WorklistItem] = []
    removed: list[str] = []
    settled: dict[str, int] = {}


class Devices(Wire):
    """The AE registry of the node; replaces what the centre said before, not what was admitted at the node."""

    type: Literal["devices"] = "devices"
    devices: list[DeviceRules]


class SendStudy(Wire):
    """Deliver this study before others. Priority: 0 stat, 10 consult, 50 routine (smaller goes first)."""

    type: Literal["study.send"] = "study.send"
    study_instance_uid: str
    priority: int = 10


class RetryDelivery(Wire):
    """Give what failed another try, and what waits for its next try that try now; empty fields: any."""

    type: Literal["delivery.retry"] = "delivery.retry"
    study_instance_uid: str = ""
    destination: str = ""


class HoldDelivery(Wire):
    """``hold``: nothing more of this study leaves until it is asked for by ``study.send`` or given back.
    ``rule``: what was asked for it is forgotten, the rules of the mirror decide again.
    """

    type: Literal["delivery.hold"] = "delivery.hold"
    study_instance_uid: str
    action: Literal["hold", "rule"] = "hold"


class FetchStudy(Wire):
    """Fetch a study from a foreign PACS. Priority as for ``SendStudy``."""

    type: Literal["study.fetch"] = "study.fetch"
    study_instance_uid: str
    source: str
    priority: int = 10


class ProbeSource(Wire):
    """Try a foreign PACS out as it is configured now, then poll it; ``foreign.source`` tells what came of it."""

    type: Literal["foreign.probe"] = "foreign.probe"
    source: str
    asked_at: AwareDatetime


class RosterEntry(Wire):
    """A person of the site who may log in at the node while the centre is away."""

    username: str
    full_name: str
    role: str
    password_hash: str


class Roster(Wire):
    """The people of the site; replaces the one before; nobody of it can log in after ``expires_at``."""

    type: Literal["roster"] = "roster"
    entries: list[RosterEntry]
    expires_at: AwareDatetime


class RotateKey(Wire):
    """Make a new key and announce it, signed by the present one."""

    type: Literal["key.rotate"] = "key.rotate"
    reason: str = ""


CommandBody = Annotated[
    Directory
    | Schedule
    | Devices
    | SendStudy
    | FetchStudy
    | ProbeSource
    | Roster
    | Configuration
    | AccessionBlock
    | ProveAgain
    | TellHoldings
    | RetryDelivery
    | HoldDelivery
    | RotateKey,
    Field(discriminator="type"),
]


class Command(Wire):
    """One thing the centre wants of a node; ``seq`` rises per node, applying twice changes nothing."""

    schema_version: int = SCHEMA_VERSION
    seq: int
    body: CommandBody


class CommandBatch(Wire):
    """Answer of ``GET /federation/v1/commands?after=SEQ&wait=25``."""

    commands: list[Command]


class RawCommand(Wire):
    """A command as the node first takes it: one it does not know stops no other."""

    schema_version: int
    seq: int
    body: dict[str, Any]


class RawCommandBatch(Wire):
    """``CommandBatch`` as the node first takes it."""

    commands: list[RawCommand]
