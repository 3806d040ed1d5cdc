"""Whether a part does its work now. Each check is quick, and false rather than an exception."""

import http.client
import ssl
from collections.abc import Callable

import celery
import kombu.exceptions
import redis

from deploy.processes import port_is_free

Check = Callable[[], bool]


def http_ok(port: int, path: str = "/healthz") -> Check:
    """The part answers 200 over HTTP on 127.0.0.1."""

    def check() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return check


def https_ok(port: int, authority: str, path: str = "/healthz") -> Check:
    """The part answers 200 over HTTPS on 127.0.0.1 with a certificate of this authority."""
    context = ssl.create_default_context(cafile=authority)

    def check() -> bool:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return check


def listens(port: int) -> Check:
    """Somebody listens on the port of 127.0.0.1."""
    return lambda: not port_is_free(port)


def worker_answers(broker_url: str) -> Check:
    """A Celery worker on this broker answers a ping."""

    def check() -> bool:
        app = celery.Celery(broker=broker_url)
        try:
            return bool(app.control.ping(timeout=1.0, limit=1))
        except (kombu.exceptions.OperationalError, redis.RedisError):
            return False
        finally:
            app.close()

    return check


def both(*checks: Check) -> Check:
    """All of them."""
    return lambda: all(check() for check in checks)
