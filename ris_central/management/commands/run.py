"""``run web | worker | hl7``: one process of the centre in the foreground, until SIGTERM or Ctrl-C."""

import asyncio
import signal
from typing import Any

import uvicorn
import uvloop
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ris_central.config import CentreConfig, config
from ris_central.integration.listener import serve as serve_hl7
from ris_central.logs import configure

WORKERS = 2


class Command(BaseCommand):
    """The centre's processes."""

    help = "Run a process of the centre: web (HTTP and HTTPS), worker (Celery with beat), hl7 (MLLP listener)."

    def add_arguments(self, parser: CommandParser) -> None:
        """Which process."""
        parser.add_argument("process", choices=["web", "worker", "hl7"])

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it to its end."""
        configure()
        if options["process"] == "web":
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve_web(config()))
        elif options["process"] == "worker":
            work()
        else:
            serve_hl7()


def servers(settings: CentreConfig) -> list[uvicorn.Server]:
    """One server for each of HTTP and HTTPS that is served; both share the application.

    Raises: CommandError when HTTPS is asked for without a certificate, or nothing is served.
    """
    shared: dict[str, Any] = {
        "app": "ris_central.asgi:application",
        "host": settings.http_host,
        "lifespan": "off",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 5,
        "timeout_keep_alive": 60,  # nodes come every 5 s, and each new connection is a handshake
        "ws_ping_interval": 20.0,
    }
    found = []
    if settings.http_port:
        found.append(uvicorn.Server(uvicorn.Config(port=settings.http_port, **shared)))
    if settings.https_port:
        if settings.tls_certificate is None or settings.tls_key is None:
            raise CommandError("HTTPS needs REGIS_CENTRE_TLS_CERTIFICATE and REGIS_CENTRE_TLS_KEY.")
        tls: dict[str, Any] = {"ssl_certfile": str(settings.tls_certificate), "ssl_keyfile": str(settings.tls_key)}
        found.append(uvicorn.Server(uvicorn.Config(port=settings.https_port, **shared, **tls)))
    if not found:
        raise CommandError("Nothing to serve: set REGIS_CENTRE_HTTP_PORT or REGIS_CENTRE_HTTPS_PORT.")
    return found


async def serve_web(settings: CentreConfig) -> None:
    """Serve until a signal; then answer what is under way and stop. One server that ends takes the other with it."""
    running = servers(settings)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in running:
            server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # serve() would take the signals for one server alone; _serve() leaves them to us.
    tasks = [asyncio.create_task(server._serve()) for server in running]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stop()
    await asyncio.gather(*tasks)


def work() -> None:
    """A Celery worker with beat inside, in this process."""
    from ris_central.celery import app  # noqa: PLC0415  only this process connects to the broker as a worker

    app.Worker(concurrency=WORKERS, beat=True, loglevel="INFO", hostname="centre@%h", optimization="fair").start()
