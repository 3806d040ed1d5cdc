"""How a node joins, and what it tells of itself while it lives."""

from typing import Literal

from pydantic import AwareDatetime, Field

from gateway.envelope.base import Wire
from gateway.envelope.commands import Directory
from gateway.envelope.events import Held


class LineEncoding(Wire):
    """Whether a node encodes for the line to a destination, and what it measured. Bytes are of files, a second.

    Why: ``setting``; ``measuring`` (not known yet); ``line`` (the encoder keeps up easily, so the line decides);
    ``faster`` or ``slower`` than as they are.
    """

    encodes: bool
    why: Literal["setting", "measuring", "line", "faster", "slower"]
    ratio: float | None = Field(default=None, description="bytes of the wire per byte of files, encoded")
    encoder: int | None = Field(default=None, description="what the encoder alone would do")
    encoded: int | None = Field(default=None, description="what arrives encoded")
    plain: int | None = Field(default=None, description="what arrives as it is; None: not tried lately")

    @property
    def share(self) -> int | None:
        """``ratio`` in percent."""
        return None if self.ratio is None else round(self.ratio * 100)


class Queue(Wire):
    """All that waits for one destination, whatever the study."""

    destination: str
    instances: int = Field(default=0, description="not safe there yet: on their way, held and failed")
    size: int = Field(default=0, description="bytes of those")
    failed: int = 0
    held: list[Held] = []
    bytes_per_second: int = Field(default=0, description="of files, over the last half minute")
    wire_bytes_per_second: int = Field(default=0, description="of the link, over the last half minute")
    seconds_left: int | None = Field(default=None, description="for what is on its way; None: not known")
    oldest_at: AwareDatetime | None = None
    trouble: str = Field(default="", description="why nothing goes there now: the last error of the destination")
    trouble_since: AwareDatetime | None = None
    encoding: LineEncoding | None = Field(default=None, description="None: nothing went there by chunks and segments")


class NodeStatus(Wire):
    """Body of ``POST /federation/v1/status``: a losable heartbeat, answered with an ``EventAnswer``."""

    version: str
    epoch: str
    clock: AwareDatetime
    free_bytes: int
    stored_instances: int
    events_waiting: int
    deliveries_waiting: int
    oldest_waiting_seconds: int = 0
    configuration_version: int = 0
    understands: list[str] = Field(default=[], description="types of commands; empty: those of the first version")
    commands_not_understood: int = 0
    clock_offset_seconds: int = Field(default=0, description="by how much signatures are corrected; see gateway.clock")
    stored_bytes: int | None = None
    backed_up_at: AwareDatetime | None = None
    certificate_until: AwareDatetime | None = None
    roster_until: AwareDatetime | None = None
    bytes_waiting: int = Field(default=0, description="of all queues, held and failed included")
    queues: list[Queue] = []


class JoinRequest(Wire):
    """Body of ``POST /federation/v1/join``: spends a one-time code."""

    code: str
    public_key: str
    ae_title: str
    kind: Literal["archive", "clinic", "gateway"]
    url: str = Field(description="HTTPS address of the node for other nodes")
    browser_url: str = Field(description="address of the node for browsers of its site")
    host: str
    dicom_port: int
    understands: list[str] = []


class KeyChange(Wire):
    """Body of ``POST /federation/v1/keys``: a node's new key. It proves itself, so that it can be said again at any
    time, to a centre that was restored from a backup too: ``signature`` is the old key's over ``signed_text``,
    ``proof`` the new one's.
    """

    node: str
    old_key: str
    new_key: str
    made_at: AwareDatetime
    signature: str = ""
    proof: str = ""

    def signed_text(self) -> bytes:
        """What both keys sign."""
        fields = ["regis-key-change-1", self.node, self.old_key, self.new_key, self.made_at.isoformat()]
        return "\n".join(fields).encode()


class JoinAnswer(Wire):
    """The node's name in the region and the first directory."""

    name: str
    directory: Directory
