"""The configuration of a node as the centre pushes it: one versioned document, so that history and going back are one
thing.

What a node needs before it knows a centre (ports, folders, keys) is its own ``NodeConfig``; here is what a region
decides.
"""

from typing import Literal

from pydantic import Field

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


class MirrorPolicy(Wire):
    """What leaves the node, when, how fast and where to."""

    rules: list[MirrorRule] = []
    night_since: str = Field(default="20:00", pattern=CLOCK)
    night_until: str = Field(default="06:00", pattern=CLOCK)
    rates: list[RateWindow] = []
    outside: list[OutsideDestination] = []
    compress: bool = Field(default=True, description="encode losslessly for the wire where that pays")
    checkpoints: list[str] = Field(
        default=[], description="networks (CIDR) in which images may leave a mobile node; empty: everywhere"
    )


class Configuration(Wire):
    """The whole configuration of a node; replaces the one before. Version 0 is what holds before any came."""

    type: Literal["configuration"] = "configuration"
    version: int = 0
    mirror: MirrorPolicy = MirrorPolicy()
