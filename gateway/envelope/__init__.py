"""What a node and the centre say to each other: events up, commands down. Owned here, spoken by both sides.

Every message carries ``schema_version``; the receiver accepts its own version and the previous one.
Identity travels as a block of its own (``PatientIdentity``), so that a site can later keep names at home.
"""

from gateway.envelope.base import ACCEPTED_VERSIONS, SCHEMA_VERSION, Wire, problem
from gateway.envelope.commands import (
    Command,
    CommandBatch,
    CommandBody,
    Devices,
    Directory,
    Peer,
    RawCommand,
    RawCommandBatch,
    Roster,
    RosterEntry,
    Schedule,
    SendStudy,
)
from gateway.envelope.configuration import Configuration, MirrorPolicy, MirrorRule, OutsideDestination, RateWindow
from gateway.envelope.events import (
    AssociationRefused,
    DeliveryProgress,
    Event,
    EventAnswer,
    EventBatch,
    EventBody,
    InstanceConflicted,
    InstanceDescription,
    PatientIdentity,
    RawEvent,
    RawEventBatch,
    SeriesChanged,
    SeriesDescription,
    SeriesReleased,
    StudyDescription,
)
from gateway.envelope.joining import JoinAnswer, JoinRequest, NodeStatus
from gateway.envelope.receipts import Receipt

__all__ = [
    "ACCEPTED_VERSIONS",
    "SCHEMA_VERSION",
    "AssociationRefused",
    "Command",
    "CommandBatch",
    "CommandBody",
    "Configuration",
    "DeliveryProgress",
    "Devices",
    "Directory",
    "Event",
    "EventAnswer",
    "EventBatch",
    "EventBody",
    "InstanceConflicted",
    "InstanceDescription",
    "JoinAnswer",
    "JoinRequest",
    "MirrorPolicy",
    "MirrorRule",
    "NodeStatus",
    "OutsideDestination",
    "PatientIdentity",
    "Peer",
    "RateWindow",
    "RawCommand",
    "RawCommandBatch",
    "RawEvent",
    "RawEventBatch",
    "Receipt",
    "Roster",
    "RosterEntry",
    "Schedule",
    "SendStudy",
    "SeriesChanged",
    "SeriesDescription",
    "SeriesReleased",
    "StudyDescription",
    "Wire",
    "problem",
]
