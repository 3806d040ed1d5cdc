"""``run pacs``: the DICOM port and the HTTP server. ``run gateway``: everything that dials out."""

import gc
import threading
from argparse import ArgumentParser
from typing import Any

import structlog
from django.core.management.base import BaseCommand, CommandError

from gateway import runner
from gateway.loops import set_on_signal
from pacs_node.config import config
from pacs_node.dimse.server import DimseServer
from pacs_node.logs import configure_logs
from pacs_node.storage.filesystem import storage
from pacs_node.web import WebServers
from pacs_node.wsgi import application

log = structlog.get_logger(__name__)


class Command(BaseCommand):
    """Run one of the node's two processes in the foreground until SIGTERM or Ctrl-C."""

    help = "Run one of the node's processes in the foreground until SIGTERM or Ctrl-C."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which process."""
        parser.add_argument("process", choices=["pacs", "gateway"])

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it."""
        configure_logs()
        gc.freeze()  # what was loaded stays: collecting garbage, as pynetdicom does every few seconds, need not walk it
        if options["process"] == "gateway":
            runner.run()
        else:
            run_pacs()


def run_pacs() -> None:
    """Serve DICOM and HTTP until a signal. Raises CommandError when a port is in use."""
    stopped = threading.Event()
    set_on_signal(stopped)
    settings = config()
    removed = storage().clean_incoming()
    web, dimse = WebServers(settings, application), DimseServer(settings)
    try:
        if settings.dicom_port:
            dimse.start()
        web.start()
    except OSError as error:
        raise CommandError(
            f"Cannot listen on {settings.http_host} (HTTP {settings.http_port}, HTTPS {settings.https_port}, "
            f"DICOM {settings.dicom_port}): {error}. Another program may use the port."
        ) from error
    log.info(
        "pacs-ready",
        ae_title=settings.ae_title,
        dicom_port=settings.dicom_port,
        http_port=settings.http_port,
        https_port=settings.https_port,
        half_received_removed=removed,
    )
    stopped.wait()
    dimse.stop()
    web.stop()
    log.info("pacs-stopped")
