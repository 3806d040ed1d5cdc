"""The in-line proxy as this node runs it: an optional third process (``regis node run proxy``)."""

import sys
from pathlib import Path

from gateway.proxy.settings import ProxySettings
from gateway.proxy.supervisor import Supervisor
from pacs_node.config import NodeConfig, config
from standards.errors import PermanentError
from standards.secrets import secret_file

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
