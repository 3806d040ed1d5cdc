"""What the proxy is told by the node's configuration, handed to its worker process as JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """``port``: where devices call; ``back_port``: where the old PACS calls devices (0: nowhere)."""

    folder: Path
    host: str
    port: int
    back_port: int
    pacs_host: str
    pacs_port: int
    rules: Path | None
    ae_title: str
    connect_seconds: float = 5.0
    queue_bytes: int = 64 << 20
    least_free_bytes: int = 500_000_000
    secret: str = ""

    def to_json(self) -> str:
        """For the command line of the worker."""
        return json.dumps(
            {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        )

    @classmethod
    def from_json(cls, text: str) -> "ProxySettings":
        """What ``to_json`` gave."""
        raw = json.loads(text)
        return cls(**{**raw, "folder": Path(raw["folder"]), "rules": Path(raw["rules"]) if raw["rules"] else None})

    @property
    def spool(self) -> Path:
        """Where tapped instances lie."""
        return self.folder / "spool"

    @property
    def last_good_rules(self) -> Path:
        """The copy of the rules that were read last."""
        return self.folder / "rules.last-good.toml"
