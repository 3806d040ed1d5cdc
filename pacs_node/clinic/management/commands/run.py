"""``run pacs``: the DICOM port and HTTP. ``run gateway``: what dials out. ``run proxy``: the in-line proxy."""

import gc
import threading
from argparse import ArgumentParser
from functools import partial
from typing import Any

import structlog
from django.core.management.base import BaseCommand, CommandError

from gateway import runner
from gateway.loops import Loop, join_all, set_on_signal
from gateway.rates import throttle
from pacs_node import proxying
from pacs_node.config import NodeConfig, config
from pacs_node.dimse import commitment, commitment_service
from pacs_node.dimse.server import DimseServer
from pacs_node.dimse.sharing import Duty, fork_helper
from pacs_node.logs import configure_logs
from pacs_node.storage.stores import storage
from pacs_node.web import WebServers
from pacs_node.wsgi import application
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

_STOP_SECONDS = 10.0


class Command(BaseCommand):
    """Run one of the node's two processes in the foreground until SIGTERM or Ctrl-C."""

    help = "Run one of the node's processes in the foreground until SIGTERM or Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which process."""
        parser.add_argument("process", choices=["pacs", "gateway", "proxy"])

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it."""
        configure_logs()
        gc.freeze()  # what was loaded stays: collecting garbage, as pynetdicom does every few seconds, need not walk it
        gc.set_threshold(50_000, 20, 20)  # an instance makes some thousand objects that die by themselves
        if options["process"] == "gateway":
            throttle.share(config().data_dir)
            runner.run()
        elif options["process"] == "proxy":
            run_proxy()
        else:
            run_pacs()


def run_proxy() -> None:
    """Stand between devices and an old PACS until a signal. Raises CommandError when a port is in use."""
    try:
        proxying.run()
    except PermanentError as error:
        raise CommandError(error.detail) from error
    except OSError as error:
        raise CommandError(f"Cannot listen where devices call: {error}. Another program may use the port.") from error


def run_pacs() -> None:
    """Serve DICOM and HTTP until a signal. Raises CommandError when a port is in use."""
    stopped = threading.Event()
    set_on_signal(stopped)
    settings = config()
    throttle.share(settings.data_dir)
    removed = storage().clean_incoming()
    helper = fork_helper(partial(_help, settings)) if settings.dicom_processes > 1 else None
    web, dimse = WebServers(settings, application), DimseServer(settings, helper)
    commitments = Loop("commitment", commitment_service.step, stopped)
    try:
        dimse.start()
        web.start()
    except (OSError, PermanentError) as error:
        dimse.stop()
        web.stop()
        raise CommandError(_why_not(settings, error)) from error
    commitments.start()
    log.info(
        "pacs-ready",
        ae_title=settings.ae_title,
        dicom_port=settings.dicom_port,
        dicom_tls_port=settings.dicom_tls_port,
        http_port=settings.http_port,
        https_port=settings.https_port,
        half_received_removed=removed,
    )
    stopped.wait()
    commitment.due.set()
    dimse.stop()
    web.stop()
    join_all([commitments], _STOP_SECONDS)
    log.info("pacs-stopped")


def _help(settings: NodeConfig, duty: Duty) -> None:
    """What the second process of the DICOM port does, until the first one ends or a signal comes."""
    stopped = threading.Event()
    set_on_signal(stopped)

    def stop_on_signal() -> None:
        stopped.wait()
        duty.stop()

    threading.Thread(target=stop_on_signal, name="stopping", daemon=True).start()
    DimseServer(settings).serve_handed(duty)


def _why_not(settings: NodeConfig, error: OSError | PermanentError) -> str:
    if isinstance(error, PermanentError):
        return str(error)
    return (
        f"Cannot listen on {settings.http_host} (HTTP {settings.http_port}, HTTPS {settings.https_port}) and "
        f"{settings.dicom_host} (DICOM {settings.dicom_port}, DICOM over TLS {settings.dicom_tls_port}): {error}. "
        "Another program may use the port."
    )
