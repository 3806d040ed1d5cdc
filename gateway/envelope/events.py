"""Events up: what a node tells the centre."""

import hashlib
import json
from datetime import UTC
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BeforeValidator, Field

from gateway.envelope.base import SCHEMA_VERSION, Wire
from gateway.envelope.holdings import SeriesHeld
from gateway.envelope.offline import AccessionState, OrderCancelled, OrderChanged, OrderRegistered, ReportDraft


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


class Held(Wire):
    """What a rule keeps back: why, until when (None: until somebody asks or the place changes), and how much.

    Reasons: ``night`` and ``rate`` wait for an hour, ``on-demand`` for somebody to ask, ``checkpoint`` for a network in
    which images may leave, ``held`` for the person who held it.
    """

    reason: Literal["night", "on-demand", "rate", "checkpoint", "held"]
    until: AwareDatetime | None = None
    instances: int = 0
    size: int = Field(default=0, description="bytes")


class DeliveryProgress(Wire):
    """How far this node's ledger is with a study towards a destination.

    ``receipted`` is what is safe there by the proofs that ``proofs`` counts: ``receipt`` (a peer's signed receipt),
    ``read-back``, ``committed``, ``stored`` (the answer to the transfer and no more). What is neither safe nor failed
    nor held is on its way. Sizes are bytes of the files themselves, whatever went over the wire.
    """

    type: Literal["delivery.progress"] = "delivery.progress"
    study_instance_uid: str
    destination: str
    total: int
    receipted: int
    failed: int
    last_error: str = ""
    total_bytes: int = 0
    receipted_bytes: int = 0
    failed_bytes: int = 0
    under_way_bytes: int = Field(default=0, description="of files that went in part")
    wire_bytes: int = Field(default=0, description="what the link carried for what is safe")
    held: list[Held] = []
    proofs: dict[str, int] = {}
    errors: dict[str, int] = Field(default={}, description="error code → instances that are not safe for it now")
    failing_since: AwareDatetime | None = Field(default=None, description="the oldest of those errors")
    bytes_per_second: int = Field(default=0, description="of the whole destination, over the last half minute")
    seconds_left: int | None = Field(default=None, description="None: not known, or nothing is on its way")


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


class ForeignStudySeen(Wire):
    """A foreign PACS lists this study, lists it otherwise than before, or (``gone``) lists it no more."""

    type: Literal["foreign.study"] = "foreign.study"
    source: str
    patient: PatientIdentity
    study: StudyDescription
    modalities: list[str] = []
    series_count: int | None = Field(default=None, description="None: it does not say")
    instance_count: int | None = None
    may_fetch: bool = True
    gone: bool = False


class ForeignRetrieval(Wire):
    """How far this node is with fetching a study from a foreign PACS. ``missing``: the first of ``missing_count``."""

    type: Literal["foreign.retrieval"] = "foreign.retrieval"
    source: str
    study_instance_uid: str
    patient_id: str = ""
    status: Literal["waiting", "done", "failed"]
    expected: int | None = Field(default=None, description="None: the PACS does not list its instances")
    held: int = 0
    missing_count: int = 0
    missing: list[str] = []
    unlisted_count: int = Field(default=0, description="held here of the study, and not listed by the PACS")
    attempts: int = 0
    next_attempt_at: AwareDatetime | None = None
    last_error: str = ""


class ProbeStep(Wire):
    """One thing that was tried at a foreign PACS. ``unclear``: it answered neither yes nor no."""

    step: Literal["echo", "find", "retrieve"]
    outcome: Literal["ok", "failed", "unclear"]
    detail: str = Field(default="", description="an error as ``code: detail``, or what was answered")
    found: int | None = Field(default=None, description="studies of today, for ``find``")
    milliseconds: int = 0


class Probe(Wire):
    """What came of trying a foreign PACS out because a person asked."""

    asked_at: AwareDatetime
    done_at: AwareDatetime
    steps: list[ProbeStep]


class ForeignSourceState(Wire):
    """How a foreign PACS answers: told when that changes, after each sweep, and no more often than every five minutes
    that it still does."""

    type: Literal["foreign.source"] = "foreign.source"
    source: str
    polled_at: AwareDatetime | None = None
    failing_since: AwareDatetime | None = None
    last_error: str = ""
    studies: int = 0
    quirks: list[str] = []
    retired: bool = False
    probe: Probe | None = Field(default=None, description="the last one")


class AuditRow(Wire):
    """A chained row of a node's own audit trail."""

    sequence: int = Field(ge=1)
    occurred_at: AwareDatetime
    actor: str
    action: str
    outcome: str
    entity: str = ""
    address: str = ""
    detail: dict[str, Any] = {}
    previous_hash: str
    hash: str

    def digest(self) -> str:
        """What ``hash`` must be: SHA-256 over all other fields as JSON with sorted keys."""
        content = self.model_dump(exclude={"hash"})
        content["occurred_at"] = self.occurred_at.astimezone(UTC).isoformat(timespec="microseconds")
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class AuditSealed(Wire):
    """Rows of the node's audit trail, in the order of its chain."""

    type: Literal["audit.sealed"] = "audit.sealed"
    rows: list[AuditRow] = Field(max_length=500)


EventBody = Annotated[
    SeriesChanged
    | SeriesReleased
    | SeriesHeld
    | DeliveryProgress
    | AssociationRefused
    | InstanceConflicted
    | ForeignStudySeen
    | ForeignRetrieval
    | ForeignSourceState
    | AccessionState
    | OrderRegistered
    | OrderChanged
    | OrderCancelled
    | ReportDraft
    | AuditSealed,
    Field(discriminator="type"),
]


class Event(Wire):
    """One numbered fact of a node; ``(node, epoch, seq)`` is its identity and has no gaps within an epoch."""

    schema_version: int = SCHEMA_VERSION
    epoch: str
    seq: int
    occurred_at: AwareDatetime
    body: EventBody


def _storable(value: Any) -> Any:
    """The same without NUL characters, which some devices pad texts with and PostgreSQL cannot keep."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_storable(key): _storable(one) for key, one in value.items()}
    return [_storable(one) for one in value] if isinstance(value, list) else value


class RawEvent(Wire):
    """An event as the receiver first takes it: the body is judged event by event, so one bad one stops no other."""

    schema_version: int
    epoch: str = Field(max_length=36)
    seq: int = Field(ge=1)
    occurred_at: AwareDatetime
    body: Annotated[dict[str, Any], BeforeValidator(_storable)]


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
    pause: float = Field(
        default=0.0,
        ge=0,
        description="seconds to gather events before the next batch, because the centre is busy; not with a full one",
    )
