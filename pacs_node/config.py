"""The one configuration of a node, read from ``REGIS_NODE_*`` and nowhere else."""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic_settings import BaseSettings, SettingsConfigDict


class NodeConfig(BaseSettings):
    """All settings of a node. Ports of 0 mean: not served. Servers listen on loopback unless told otherwise."""

    model_config = SettingsConfigDict(env_prefix="REGIS_NODE_", frozen=True, extra="ignore")

    data_dir: Path = Path("var/node")
    name: str = "node"
    kind: Literal["archive", "clinic", "gateway"] = "clinic"
    ae_title: str = "REGIS"

    http_host: str = "127.0.0.1"
    http_port: int = 8042
    https_port: int = 0
    dicom_host: str = "127.0.0.1"
    dicom_port: int = 11112
    browser_url: str = ""
    """How browsers of the site reach the node; default ``http://{http_host}:{http_port}``."""
    federation_url: str = ""
    """How other nodes reach this one; default ``https://{http_host}:{https_port}``."""

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    """Extra authority to trust when dialling out, in PEM."""

    proxy_url: str = ""
    """HTTP proxy for all that is dialled out; empty: directly. The environment's proxies are not looked at."""

    database_url: str = ""
    """Empty: SQLite in ``data_dir``; else ``postgresql://…``."""
    storage_dir: Path | None = None
    """Where instances lie; default ``data_dir/storage``."""
    low_space_bytes: int = 500_000_000
    """Below this much free space new instances are refused (A700, 507)."""

    default_character_set: str = "ISO_IR 192"
    time_zone: str = "Europe/Moscow"
    maximum_associations: int = 50
    maximum_pdu_bytes: int = 131_072
    network_timeout_seconds: float = 60.0
    event_retention_days: int = 30
    vendor_dir: Path = Path("var/vendor")
    debug: bool = False

    @property
    def storage_root(self) -> Path:
        """The folder that instances are stored under."""
        return self.storage_dir or self.data_dir / "storage"

    @property
    def url(self) -> str:
        """How browsers reach the node."""
        return self.browser_url or f"http://{self.http_host}:{self.http_port}"

    @property
    def peer_url(self) -> str:
        """How other nodes reach the node."""
        return self.federation_url or f"https://{self.http_host}:{self.https_port}"


@cache
def config() -> NodeConfig:
    """The configuration of this process."""
    return NodeConfig()
