"""The one configuration of the centre, read from ``REGIS_CENTRE_*`` and nowhere else."""

from functools import cache
from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class CentreConfig(BaseSettings):
    """All settings of the centre. Ports of 0 mean: not served. Servers listen on loopback unless told otherwise."""

    model_config = SettingsConfigDict(env_prefix="REGIS_CENTRE_", frozen=True, extra="ignore")

    data_dir: Path = Path("var/centre")
    region_name: str = "Regis"

    http_host: str = "127.0.0.1"
    http_port: int = 8000
    https_port: int = 0
    public_url: str = ""
    """How people reach the centre; default ``http://{http_host}:{http_port}``."""
    hl7_host: str = "127.0.0.1"
    hl7_port: int = 2575

    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    """Extra authority to trust when dialling out, in PEM."""

    database_url: str = "postgresql://regis@127.0.0.1:5432/regis"
    redis_url: str = "redis://127.0.0.1:6379/0"

    time_zone: str = "Europe/Moscow"
    accession_prefix: str = "R"
    study_quiet_seconds: int = 120
    """A study without MPPS is complete when nothing came for this long; late images reopen it."""
    image_token_seconds: int = 300
    hl7_default_charset: str = "auto"
    """For messages without MSH-18: a value of table 0211, or ``auto`` (UTF-8 where valid, else Windows-1251)."""
    hl7_default_site: str = ""
    """Code of the site whose messages name no site of the region; empty: such messages are refused."""
    smtp_url: str = ""
    """Where alerts are mailed by: ``smtp://user:password@host:25``, ``smtps://…`` or ``smtp+starttls://…``."""
    mail_from: str = "regis@localhost"
    alert_silent_minutes: int = 5
    alert_queue_minutes: int = 120
    """Something that waits longer at a node to be mirrored raises an alert."""
    alert_disk_days: float = 14
    alert_backup_hours: int = 48
    inbox_retention_days: int = 30
    """How long events of nodes and applied commands are kept; what could not be applied stays."""
    metrics_token: str = ""
    """When set, ``/metrics`` is given only with it as bearer token."""
    vendor_dir: Path = Path("var/vendor")
    debug: bool = False

    @property
    def url(self) -> str:
        """How people reach the centre."""
        return self.public_url or f"http://{self.http_host}:{self.http_port}"


@cache
def config() -> CentreConfig:
    """The configuration of this process."""
    return CentreConfig()
