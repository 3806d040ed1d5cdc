"""What a node and the centre say to each other: events up, commands down. Owned here, spoken by both sides.

Every message carries ``schema_version``; the receiver accepts its own version and the previous one.
Identity travels as a block of its own (``PatientIdentity``), so that a site can later keep names at home.
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from worklist.feed import DeviceRules, WorklistItem

SCHEMA_VERSION = 1
ACCEPTED_VERSIONS = (SCHEMA_VERSION,)


class Wire(BaseModel):
    """Base of all messages: immutable, and unknown fields are ignored so that neighbours may be a version ahead."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class PatientIdentity(Wire):
    """Who the images are of, as the device wrote it (Unicode, carets kept)."""

    patient_id: str
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""


class StudyDescription(Wire):
    """Study-level attributes; DA/TM are kept as received."""

    study_instance_uid: str
    study_date: str = ""
    study_time: str = ""
    timezone_offset_from_utc: str = ""
    accession_number: str = ""
    study_id: str = ""
    study_description: str = ""
    referring_physician_name: str = ""
    institution_name: str = ""


class SeriesDescription(Wire):
    """Series-level attributes."""

    series_instance_uid: str
    modality: str = ""
    series_number: int | None = None
    series_description: str = ""
    series_date: str = ""
    series_time: str = ""
    body_part_examined: str = ""
    station_name: str = ""
    source_ae_title: str = ""


class InstanceDescription(Wire):
    """One stored instance: a UID alone never names it, ``(sop_instance_uid, dataset_sha256)`` does."""

    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    dataset_sha256: str
    pixel_sha256: str | None = None
    frames_sha256: str | None = None
    size: int
    instance_number: int | None = None
    number_of_frames: int = 1


class SeriesChanged(Wire):
    """Instances arrived at this node. ``count`` and ``root_hash`` are of all the node holds of the series now."""

    type: Literal["series.changed"] = "series.changed"
    patient: PatientIdentity
    study: StudyDescription
    series: SeriesDescription
    added: list[InstanceDescription]
    count: int
    root_hash: str


class SeriesReleased(Wire):
    """This node no longer holds these instances (zero retention after receipt, or a retention rule)."""

    type: Literal["series.released"] = "series.released"
    study_instance_uid: str
    series_instance_uid: str
    patient_id: str
    released: list[tuple[str, str]] = Field(description="(sop_instance_uid, dataset_sha256)")
    count: int
    root_hash: str


class DeliveryProgress(Wire):
    """How far this node's ledger is with a study towards a destination."""

    type: Literal["delivery.progress"] = "delivery.progress"
    study_instance_uid: str
    destination: str
    total: int
    receipted: int
    failed: int
    last_error: str = ""


class AssociationRefused(Wire):
    """A peer was refused at the DICOM port: shown to the engineer, who may admit it."""

    type: Literal["association.refused"] = "association.refused"
    calling_ae_title: str
    called_ae_title: str
    address: str
    reason: str


class InstanceConflicted(Wire):
    """A used SOP Instance UID came with other content; it was kept aside as a variant."""

    type: Literal["instance.conflicted"] = "instance.conflicted"
    study_instance_uid: str
    sop_instance_uid: str
    kept_sha256: str
    variant_sha256: str
    source_ae_title: str = ""


EventBody = Annotated[
    SeriesChanged | SeriesReleased | DeliveryProgress | AssociationRefused | InstanceConflicted,
    Field(discriminator="type"),
]


class Event(Wire):
    """One numbered fact of a node; ``(node, epoch, seq)`` is its identity and has no gaps within an epoch."""

    schema_version: int = SCHEMA_VERSION
    epoch: str
    seq: int
    occurred_at: AwareDatetime
    body: EventBody


class RawEvent(Wire):
    """An event as the receiver first takes it: the body is judged event by event, so one bad one stops no other."""

    schema_version: int
    epoch: str = Field(max_length=36)
    seq: int = Field(ge=1)
    occurred_at: AwareDatetime
    body: dict[str, Any]


class RawEventBatch(Wire):
    """``EventBatch`` as the receiver first takes it."""

    events: list[RawEvent] = Field(max_length=500)


class EventBatch(Wire):
    """Body of ``POST /federation/v1/events``; events in rising ``seq``, one epoch."""

    events: list[Event] = Field(max_length=500)


class EventAnswer(Wire):
    """How far the centre has durably taken this node's events: ``seq`` of the last one, and of which epoch."""

    epoch: str
    cursor: int


class Peer(Wire):
    """A node of the region as other nodes need to know it."""

    name: str
    kind: Literal["archive", "clinic", "gateway"]
    ae_title: str
    url: str = Field(description="HTTPS address for other nodes")
    public_key: str = Field(description="Ed25519, the 32 raw bytes in unpadded base64url")


class Directory(Wire):
    """The whole trust list; replaces the one before."""

    type: Literal["directory"] = "directory"
    peers: list[Peer]
    token_keys: dict[str, str] = Field(description="kid → Ed25519 public key that signs image tokens")
    mirror_to: list[str] = Field(description="names of the peers that this node mirrors to")
    site_name: str = ""
    time_zone: str = "Europe/Moscow"


class Schedule(Wire):
    """Worklist items to put or replace, and ids of those to take away."""

    type: Literal["schedule"] = "schedule"
    items: list[WorklistItem] = []
    removed: list[str] = []


class Devices(Wire):
    """The AE registry of the node; replaces what the centre said before, not what was admitted at the node."""

    type: Literal["devices"] = "devices"
    devices: list[DeviceRules]


class SendStudy(Wire):
    """Deliver this study before others. Priority: 0 stat, 10 consult, 50 routine (smaller goes first)."""

    type: Literal["study.send"] = "study.send"
    study_instance_uid: str
    priority: int = 10


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


CommandBody = Annotated[Directory | Schedule | Devices | SendStudy | Roster, Field(discriminator="type")]


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


class JoinAnswer(Wire):
    """The node's name in the region and the first directory."""

    name: str
    directory: Directory


class Receipt(Wire):
    """What the receiver of an instance signs: which digests it recomputed itself and found equal.

    ``checked`` names them: ``dataset``, ``pixel``, ``frames``. ``signature`` is Ed25519 (base64) over ``signed_text``.
    """

    receiver: str
    sender: str
    sop_instance_uid: str
    dataset_sha256: str
    pixel_sha256: str | None
    frames_sha256: str | None
    checked: list[str]
    received_at: AwareDatetime
    outcome: Literal["stored", "duplicate", "conflict"] = "stored"
    signature: str = ""

    def signed_text(self) -> bytes:
        """What the receiver signs: all fields but the signature, a line each; an absent digest is ``-``."""
        fields = [
            "regis-receipt-1",
            self.receiver,
            self.sender,
            self.sop_instance_uid,
            self.dataset_sha256,
            self.pixel_sha256 or "-",
            self.frames_sha256 or "-",
            ",".join(self.checked),
            self.outcome,
            self.received_at.isoformat(),
        ]
        return "\n".join(fields).encode()


def problem(code: str, title: str, status: int, **extra: Any) -> dict[str, Any]:
    """An RFC 9457 problem document; ``code`` is the stable RegisError code."""
    return {"type": f"urn:regis:problem:{code}", "title": title, "status": status, "code": code, **extra}
