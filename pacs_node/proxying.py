"""The in-line proxy as this node runs it: an optional third process (``regis node run proxy``)."""

import sys
import time
from calendar import timegm
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from gateway.proxy import journal
from gateway.proxy.settings import ProxySettings
from gateway.proxy.supervisor import Supervisor
from pacs_node.config import NodeConfig, config
from standards.errors import PermanentError
from standards.secrets import secret_file

_FRESH_SECONDS: Final = 15.0
_MOST_COUNTED: Final = 100_000

WORKER = (sys.executable, "-P", "-m", "pacs_node.proxy_worker")


def folder(settings: NodeConfig | None = None) -> Path:
    """Where the proxy keeps its spool, journal and figures."""
    return (settings or config()).data_dir / "proxy"


def proxy_settings(settings: NodeConfig) -> ProxySettings:
    """What the proxy is told. Raises: PermanentError("invalid-setting"), OSError."""
    if not settings.proxy_pacs_host or not settings.proxy_pacs_port:
        raise PermanentError(
            "invalid-setting", "REGIS_NODE_PROXY_PACS_HOST and REGIS_NODE_PROXY_PACS_PORT say where the old PACS is"
        )
    return ProxySettings(
        folder=folder(settings),
        host=settings.proxy_host,
        port=settings.proxy_port,
        back_port=settings.proxy_back_port,
        pacs_host=settings.proxy_pacs_host,
        pacs_port=settings.proxy_pacs_port,
        rules=settings.proxy_rules,
        ae_title=settings.ae_title,
        secret=pseudonym_secret(settings),
    )


def pseudonym_secret(settings: NodeConfig) -> str:
    """What keys the pseudonyms of this node, made when first needed. Whoever loses it cannot continue a series."""
    return secret_file(settings.data_dir / "secrets" / "pseudonyms.key")


def run() -> None:
    """Serve until a signal. Raises: PermanentError("invalid-setting"), OSError when a port is in use."""
    Supervisor(proxy_settings(config()), WORKER).run()


@dataclass(frozen=True)
class Waiting:
    """What lies in the spool for one destination."""

    destination: str
    waiting: int
    failed: int
    why: str


@dataclass(frozen=True)
class Figures:
    """What both processes of the proxy wrote down of themselves. ``state``: the worker's own words."""

    serves: bool
    state: dict[str, Any]
    counts: Counter[str]
    waiting: list[Waiting]

    def by_label(self, name: str) -> dict[str, int]:
        """A figure that is told apart: label → count."""
        return {key.partition(":")[2]: n for key, n in sorted(self.counts.items()) if key.partition(":")[0] == name}


def figures() -> Figures:
    """The proxy's figures, from its own files."""
    base = folder()
    state = journal.read_state(base)
    counts = Counter[str](state.get("counts", {}))
    counts.update(journal.read_state(base, journal.SUPERVISOR_FIGURES).get("counts", {}))
    serves = bool(state) and time.time() - _seconds(state.get("at", "")) < _FRESH_SECONDS
    return Figures(serves, state, counts, _waiting(state.get("destinations", {})))


def _seconds(at: str) -> float:
    try:
        return timegm(time.strptime(at, "%Y-%m-%dT%H:%M:%SZ"))
    except ValueError:
        return 0.0


def _waiting(reasons: dict[str, str]) -> list[Waiting]:
    spool = folder() / "spool"
    names = {path.name for kind in ("to", "failed") for path in spool.glob(f"{kind}/*")}
    return [
        Waiting(
            name,
            sum(1 for _ in islice(spool.glob(f"to/{name}/*.dcm"), _MOST_COUNTED)),
            sum(1 for _ in islice(spool.glob(f"failed/{name}/*.dcm"), _MOST_COUNTED)),
            reasons.get(name, ""),
        )
        for name in sorted(names)
    ]


_COUNTED: Final = (
    ("instances", "Images that passed"),
    ("tapped", "Images of which rules wanted copies"),
    ("not-tapped", "Images and stretches of time that passed and were not copied"),
    ("rewritten", "Images changed on their way to the old PACS"),
    ("dropped", "Images that rules kept from the old PACS"),
    ("routed", "Images that went elsewhere instead of to the old PACS"),
    ("kept-for-old-pacs", "Images taken while the old PACS was down"),
    ("transcoded", "Copies decoded for a destination that refuses their encoding"),
    ("passed-blindly", "Connections that passed without the worker"),
)
_TOLD_APART: Final = (
    ("associations", "outcome", "Associations of devices that have ended"),
    ("associations-back", "outcome", "Associations that the old PACS opened"),
    ("bytes", "to", "Bytes passed"),
    ("copied", "destination", "Copies made"),
    ("forwarded", "destination", "Copies sent to other application entities"),
    ("failure", "reason", "What went wrong"),
)


def metrics() -> list[str]:
    """The figures as Prometheus text; none where this node stands before no old PACS."""
    if not config().proxy_pacs_host:
        return []
    found = figures()
    lines: list[str] = []

    def metric(name: str, kind: str, about: str, label: str, values: dict[str, int]) -> None:
        name = f"regis_node_proxy_{name.replace('-', '_')}"
        lines.extend([f"# HELP {name} {about}", f"# TYPE {name} {kind}"])
        lines.extend(f"{name}{_labelled(label, key)} {value}" for key, value in values.items())

    metric("up", "gauge", "Whether the worker serves", "", {"": int(found.serves)})
    opened = len(found.state.get("open", [])) if found.serves else 0
    metric("associations_open", "gauge", "Connections that are open", "", {"": opened})
    for name, about in _COUNTED:
        metric(f"{name}_total", "counter", about, "", {"": found.counts[name]})
    for name, label, about in _TOLD_APART:
        metric(f"{'failures' if name == 'failure' else name}_total", "counter", about, label, found.by_label(name))
    waiting = {row.destination: row.waiting for row in found.waiting}
    metric("spool_waiting", "gauge", "Copies waiting in the spool", "destination", waiting)
    refused = {row.destination: row.failed for row in found.waiting}
    metric("spool_refused", "gauge", "Copies kept aside, as trying again cannot help", "destination", refused)
    return lines


def _labelled(label: str, value: str) -> str:
    if not label:
        return ""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{{label}="{escaped}"}}'
