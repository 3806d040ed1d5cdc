"""The one configuration of a node, read from ``REGIS_NODE_*`` and nowhere else."""

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from standards.errors import PermanentError
from standards.sop_classes import STORAGE_SOP_CLASSES
from standards.uids import validated_uid


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
    """The plain DICOM port; 0: TLS alone."""
    dicom_tls_port: int = 0
    dicom_tls_certificate: Path | None = None
    dicom_tls_key: Path | None = None
    dicom_tls_ca: Path | None = None
    """The authority (PEM) whose certificates peers must show, and that the node trusts when it calls by TLS."""
    dicom_tls_check_host: bool = True
    """Whether a certificate must also name the host that the node calls."""
    private_sop_classes: str = ""
    """UIDs, parted by commas, of private storage SOP classes that are taken in besides those of the standard."""
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
    """Where instances lie, or with S3 its incoming and cache; default ``data_dir/storage``."""
    storage_url: str = ""
    """Empty: the folder ``storage_dir``; else ``s3://bucket/prefix?endpoint=https://…&region=…``."""
    storage_keys: Path | None = None
    """File of two lines, access key and secret key; default ``data_dir/secrets/storage.keys``."""
    storage_cache_bytes: int = 20_000_000_000
    """How much of an S3 storage is kept on the local disk for readers that need a file."""
    institution_url: str = ""
    """A second storage that copies go to: ``file:///mnt/…`` or ``s3://…``; empty: none."""
    institution_keys: Path | None = None
    """As ``storage_keys``, of the institution's storage; default ``data_dir/secrets/institution.keys``."""

    refuse_below: str = "500MB"
    """Below this much free space (bytes, ``20GB``, ``5%``) new instances are refused (A700, 507) …"""
    accept_above: str = ""
    """… until there is more than this; default a fifth above ``refuse_below``."""
    tier_below: str = ""
    """Below this much free space the oldest studies leave the disk, as far as the rules let them; empty: never."""
    tier_after_days: int = 0
    """Studies that came longer ago leave the local disk, as far as the rules let them; 0: never for their age."""
    institution_after_days: int = 0
    """Copies at the institution that are proved at the archive go after so many days; 0: never."""
    minimum_copies: int = 1
    """So many verified copies must lie elsewhere before one is let go of."""
    prefetch_years: int = 5
    """Priors of tomorrow's patients that are not here are fetched back when not older than this; 0: none."""

    verify_pace: float = 2.0
    """MB/s at which the gateway process re-hashes what is stored, round after round; 0: not at all."""
    recompress: Literal["", "jpeg-ls", "htj2k", "jpeg-xl"] = ""
    """Lossless encoding that native images are brought into in the background; empty: stored as received."""
    recompress_after_days: int = 7

    proxy_host: str = "127.0.0.1"
    proxy_port: int = 11113
    """Where devices call the in-line proxy (``regis node run proxy``), which passes all to the old PACS."""
    proxy_back_port: int = 0
    """Where the old PACS calls devices through the proxy, for C-MOVE and storage commitment; 0: nowhere."""
    proxy_pacs_host: str = ""
    proxy_pacs_port: int = 0
    proxy_rules: Path | None = None
    """The rules file (TOML) of the proxy; without one everything passes and nothing is copied."""

    default_character_set: str = "ISO_IR 192"
    time_zone: str = "Europe/Moscow"
    maximum_associations: int = 50
    largest_inflated_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """A deflated data set that becomes longer is refused; at most as much room in the temporary folder."""
    dicom_processes: int = Field(default=2, ge=1, le=2)
    """2: associations that come at once are shared with a second process."""
    maximum_pdu_bytes: int = 131_072
    network_timeout_seconds: float = 60.0
    event_retention_days: int = 30
    metrics_token: str = ""
    """When set, ``/metrics`` is given only with it as bearer token; else to this machine alone."""
    vendor_dir: Path = Path("var/vendor")
    debug: bool = False

    @field_validator("private_sop_classes")
    @classmethod
    def _are_uids(cls, value: str) -> str:
        try:
            return ",".join(validated_uid(uid.strip()) for uid in value.split(",") if uid.strip())
        except PermanentError as error:
            raise ValueError(str(error)) from error

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
def storage_sop_classes() -> frozenset[str]:
    """The SOP classes that this node takes in: those of the standard, and the private ones it is told of."""
    return frozenset(STORAGE_SOP_CLASSES) | frozenset(config().private_sop_classes.split(",")) - {""}


@cache
def config() -> NodeConfig:
    """The configuration of this process."""
    return NodeConfig()
