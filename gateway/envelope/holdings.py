"""Reconciliation: a node and the centre compare what the node holds with what the centre believes that it holds.

The node adds up a line for each series it holds into 4096 buckets; equal buckets cost one hash. Of those that differ it
lists the series, and the centre answers which to tell again. They are told by events, in the order of all others, so
that nothing is mended twice or out of turn.
"""

import hashlib
from typing import Literal, NamedTuple

from pydantic import Field

from gateway.envelope.base import Wire

BUCKETS = 4096
SERIES_AT_ONCE = 5000
"""So many series a request of details holds at most; a bucket is never divided."""
_SEPARATOR = "\x1f"


class SeriesKey(NamedTuple):
    """A series of a study under a patient id: what a node, which knows no issuer for sure, can name."""

    study_instance_uid: str
    patient_id: str
    series_instance_uid: str

    @property
    def bucket(self) -> int:
        """Which bucket its line is added to."""
        return int.from_bytes(hashlib.sha256(_SEPARATOR.join(self).encode()).digest()[:2], "big") % BUCKETS


def identity_sha256(patient: dict[str, object], study: dict[str, object]) -> str:
    """The digest of who a study is of and what it is, from the blocks ``patient`` and ``study`` of ``series.changed``.

    The names are listed here, so that a field which a later version adds changes no digest.
    """
    told = [str(patient.get(name) or "") for name in _PATIENT] + [str(study.get(name) or "") for name in _STUDY]
    return hashlib.sha256(_SEPARATOR.join(told).encode()).hexdigest()


_PATIENT = ("patient_id", "issuer_of_patient_id", "patient_name", "patient_birth_date", "patient_sex")
_STUDY = (
    "study_instance_uid",
    "study_date",
    "study_time",
    "accession_number",
    "study_id",
    "study_description",
    "referring_physician_name",
    "institution_name",
)


def line(key: SeriesKey, count: int, root_hash: str, identity: str) -> int:
    """64 bits that stand for what is held of a series. Lines are added by XOR, so their order does not matter."""
    text = _SEPARATOR.join((*key, str(count), root_hash, identity))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Bucket(Wire):
    """How many series a bucket has and what their lines add up to (hexadecimal)."""

    bucket: int = Field(ge=0, lt=BUCKETS)
    count: int
    total: str


class HeldSeries(Wire):
    """What a node holds of a series now."""

    study_instance_uid: str = Field(max_length=64)
    patient_id: str = Field(max_length=64)
    series_instance_uid: str = Field(max_length=64)
    count: int
    root_hash: str
    identity: str

    @property
    def key(self) -> SeriesKey:
        """Its name."""
        return SeriesKey(self.study_instance_uid, self.patient_id, self.series_instance_uid)


class HoldingsQuestion(Wire):
    """Body of ``POST /federation/v1/holdings``: first all buckets that are not empty, then the series of some.

    ``seq`` is the last event that the node numbered: the centre compares only when it has taken all of them.
    """

    epoch: str
    seq: int
    buckets: list[Bucket] = Field(default=[], max_length=BUCKETS)
    opened: list[int] = Field(default=[], description="buckets of which ``series`` has all", max_length=BUCKETS)
    series: list[HeldSeries] = []
    ended: bool = Field(default=False, description="the last question of this round")


class HoldingsAnswer(Wire):
    """What is to follow: ``differ``, buckets to open; ``tell``, series to tell again in full; or ask again later."""

    state: Literal["compared", "events-under-way"] = "compared"
    differ: list[int] = []
    tell: list[tuple[str, str, str]] = []


class SeriesHeld(Wire):
    """All that this node holds of a series now: replaces what was told before. It follows on ``series.changed``."""

    type: Literal["series.held"] = "series.held"
    study_instance_uid: str
    patient_id: str
    series_instance_uid: str
    held: list[tuple[str, str]] = Field(description="(sop_instance_uid, dataset_sha256)")
    count: int
    root_hash: str


class ProveAgain(Wire):
    """Deliver a series again to a destination that receipted it and no longer holds all of it."""

    type: Literal["series.prove"] = "series.prove"
    study_instance_uid: str
    patient_id: str
    series_instance_uid: str
    destination: str
    priority: int = 20


class TellHoldings(Wire):
    """Compare what this node holds with what the centre believes now, without waiting for the next round."""

    type: Literal["holdings.tell"] = "holdings.tell"
