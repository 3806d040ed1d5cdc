"""The configuration of a node as the centre pushes it: one versioned document, so that history and going back are one
thing.

What a node needs before it knows a centre (ports, folders, keys) is its own ``NodeConfig``; here is what a region
decides.
"""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from gateway.envelope.base import Wire

CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"


class MirrorRule(Wire):
    """Which instances go, when and where to. The first rule that fits decides; what none fits goes now, to all."""

    modalities: list[str] = Field(default=[], description="(0008,0060); empty: all")
    when: Literal["now", "night", "on-demand"] = "now"
    destinations: list[str] = Field(default=[], description="names of peers or outside destinations; empty: all")
    priority: int = Field(default=50, ge=0, le=100, description="0 stat, 10 consult, 50 routine; smaller goes first")


class RateWindow(Wire):
    """How much may leave the node at a time of day, in the site's zone. Outside all windows: as much as the link takes.

    A window that ends before it begins goes over midnight.
    """

    since: str = Field(pattern=CLOCK)
    until: str = Field(pattern=CLOCK)
    kilobits_per_second: int = Field(ge=0, description="0: nothing but what is urgent (priority below 50)")


class OutsideDestination(Wire):
    """A place outside the region that images go to as well; it gives the strongest proof it can."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    kind: Literal["stow", "dicom"]
    url: str = Field(default="", description="of its DICOMweb service, for ``stow``")
    host: str = ""
    port: int = 0
    ae_title: str = ""
    use_tls: bool = False
    commitment: bool = Field(default=True, description="ask for storage commitment, for ``dicom``")
    read_back: bool = Field(default=True, description="fetch each instance back and compare it, for ``stow``")


class MirrorPolicy(Wire):
    """What leaves the node, when, how fast and where to."""

    rules: list[MirrorRule] = []
    night_since: str = Field(default="20:00", pattern=CLOCK)
    night_until: str = Field(default="06:00", pattern=CLOCK)
    rates: list[RateWindow] = []
    outside: list[OutsideDestination] = []
    compress: bool = Field(default=True, description="false: never encode for the wire, whatever ``encode`` says")
    encode: Literal["auto", "always", "never"] = Field(
        default="auto", description="losslessly for the wire; auto: where it was measured to pay (``gateway.paying``)"
    )
    checkpoints: list[str] = Field(
        default=[], description="networks (CIDR) in which images may leave a mobile node; empty: everywhere"
    )
    release_by: list[Literal["receipt", "read-back", "committed", "stored"]] = Field(
        default=["receipt"], description="proofs after which a node with zero retention lets go of its copy"
    )
    upload_hours: int = Field(default=24, ge=1, description="so long a receiver keeps what came of a large instance")

    @property
    def encoding(self) -> Literal["auto", "always", "never"]:
        """What ``compress``, which older nodes go by, and ``encode`` say together."""
        return self.encode if self.compress else "never"


class ImportRule(Wire):
    """What becomes of new studies of a foreign PACS. The first rule that fits decides; what none fits is on demand."""

    modalities: list[str] = Field(default=[], description="(0008,0060), any of the study's; empty: all")
    when: Literal["catalogue", "on-demand", "now", "night"] = Field(
        default="on-demand", description="catalogue: listed, never fetched; night: of the mirror policy"
    )


class ForeignSource(Wire):
    """A PACS that is no part of the region and is not changed for it: polled, listed, fetched from."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    enabled: bool = Field(default=True, description="else neither asked nor fetched from; what it listed stays")
    kind: Literal["dicom", "dicomweb"] = "dicom"
    ae_title: str = Field(default="", max_length=16, description="of the PACS")
    host: str = ""
    port: int = 0
    use_tls: bool = False
    url: str = Field(default="", description="of its DICOMweb service, for ``dicomweb``")
    calling_ae_title: str = Field(default="", max_length=16, description="empty: the node's own")
    sending_ae_title: str = Field(default="", max_length=16, description="under which it sends; empty: ``ae_title``")
    retrieve: Literal["c-move", "c-get", "wado-rs"] = "c-move"
    poll_seconds: int = Field(default=300, ge=1)
    window_days: int = Field(default=7, ge=0, description="so many days back are looked over in full")
    sweep_seconds: int = Field(default=21_600, ge=1, description="how often they are; else only yesterday and today")
    hours: list[str] = Field(default=[], description="``HH:MM-HH:MM`` in the site's zone; empty: always")
    queries_per_minute: int = Field(default=20, ge=1)
    concurrent_retrieves: int = Field(default=1, ge=1, le=16)
    answers_at_most: int = Field(default=0, ge=0, description="known cap on its answers; 0: unknown")
    changes_by: Literal["", "StudyArrivalDate", "StudyCompletionDate", "StudyVerifiedDate"] = Field(
        default="", description="a date of arrival that it matches on, so that late studies of old dates are seen"
    )
    undated_at_most: int = Field(
        default=2000,
        ge=0,
        le=100_000,
        description="studies without a date are looked for among so many answers at each sweep; 0: never",
    )
    character_set: str = Field(default="ISO_IR 192", description="what it means where it names none")
    issuer_of_patient_id: str = ""
    timeout_seconds: float = Field(default=120.0, gt=0, description="for each of its answers")
    rules: list[ImportRule] = []

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.kind == "dicom" and not (self.ae_title and self.host and self.port):
            raise ValueError("ae_title, host and port are needed")
        by_web = self.kind == "dicomweb" or self.retrieve == "wado-rs"
        if by_web and not self.url.startswith(("http://", "https://")):
            raise ValueError("the url of its DICOMweb service is needed")
        return self

    @property
    def sends_as(self) -> str:
        """The AE title under which its instances come; what a DICOMweb source gives is known by its name."""
        return self.sending_ae_title or self.ae_title or self.name.upper()[:16]

    def is_at(self, place: OutsideDestination) -> bool:
        """Whether this is the same PACS as a destination of the mirror."""
        same_port = bool(self.host) and (self.host, self.port) == (place.host, place.port)
        same_url = bool(self.url) and self.url.rstrip("/") == place.url.rstrip("/")
        return self.name == place.name or same_port or same_url

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, value: list[str]) -> list[str]:
        for span in value:
            if not all(re.match(CLOCK, end) for end in span.partition("-")[::2]):
                raise ValueError(f"{span!r} is not HH:MM-HH:MM")
        return value


class KeyPolicy(Wire):
    """How long a node signs with one key."""

    rotate_after_days: int = Field(default=365, ge=0, le=3650, description="0: only when asked")


class Configuration(Wire):
    """The whole configuration of a node; replaces the one before. Version 0 is what holds before any came."""

    type: Literal["configuration"] = "configuration"
    version: int = 0
    mirror: MirrorPolicy = MirrorPolicy()
    keys: KeyPolicy = KeyPolicy()
    foreign: list[ForeignSource] = []

    @field_validator("foreign")
    @classmethod
    def _have_names_of_their_own(cls, value: list[ForeignSource]) -> list[ForeignSource]:
        names = [source.name for source in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"{sorted(twice)[0]} is there twice")
        return value

    def titles_at(self, place: OutsideDestination) -> frozenset[str]:
        """AE titles under which instances come that are at this destination already: they never go back there."""
        theirs = {source.sends_as for source in self.foreign if source.is_at(place)}
        return frozenset({place.name, place.ae_title} | theirs) - {""}
