"""How a node joins, and what it tells of itself while it lives."""

from typing import Literal

from pydantic import AwareDatetime, Field

from gateway.envelope.base import Wire
from gateway.envelope.commands import Directory


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
