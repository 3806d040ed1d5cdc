"""DICOMweb services outside the region: how they are reached and what opens them."""

import base64
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from gateway import client, registry
from standards.errors import PermanentError, TransientError

_LATER: Final = frozenset({408, 425, 429})
_CREDENTIALS = re.compile(r"(bearer|basic) +(\S.*)", re.IGNORECASE)


def authorization(name: str, url: str) -> dict[str, str]:
    """The header that opens the service ``name``: of the file ``secrets/<name>.credentials`` in the node's data folder,
    a line ``bearer TOKEN`` or ``basic USER:PASSWORD``; none without the file. With a second line they are given to
    addresses alone that begin with it, whatever the region's configuration says.

    Raises: PermanentError("invalid-setting").
    """
    path = registry.node().data_dir / "secrets" / f"{name}.credentials"
    try:
        line, _, place = (text.strip() for text in path.read_text(encoding="utf-8").strip().partition("\n"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise PermanentError("invalid-setting", f"{path.name} cannot be read: {type(error).__name__}") from error
    match = _CREDENTIALS.fullmatch(line)
    if match is None:
        raise PermanentError("invalid-setting", f"{path.name} holds neither bearer TOKEN nor basic USER:PASSWORD")
    if not url.startswith(place):
        raise PermanentError("invalid-setting", f"{path.name} is for {place}, not for {url}")
    if match[1].lower() == "bearer":
        return {"Authorization": f"Bearer {match[2]}"}
    return {"Authorization": f"Basic {base64.b64encode(match[2].encode()).decode('ascii')}"}


class Service:
    """A DICOMweb service at ``url``; its connections are kept."""

    def __init__(self, name: str, url: str, timeout: float) -> None:
        if not url.startswith(("http://", "https://")):
            raise PermanentError("invalid-setting", f"{name} has no http address")
        self.name, self.url = name, url
        self._client = client.connect(url.rstrip("/") + "/", timeout)

    @contextmanager
    def ask(
        self,
        method: str,
        path: str,
        *,
        parameters: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        content: Iterable[bytes] | None = None,
    ) -> Iterator[httpx.Response]:
        """One request whose answer is a stream.

        Raises: TransientError "unreachable", "busy"; PermanentError "access-refused", "invalid-setting". What else is
            answered, the caller judges by its status.
        """
        try:
            with self._client.stream(
                method,
                path,
                params=parameters,
                headers={**authorization(self.name, self.url), **(headers or {})},
                content=content,
            ) as answer:
                if answer.status_code in (401, 403):
                    raise PermanentError("access-refused", f"{self.name} answered {answer.status_code}")
                if answer.status_code in _LATER or answer.status_code in (502, 503, 504):
                    raise TransientError("busy", f"{self.name} answered {answer.status_code}")
                yield answer
        except httpx.HTTPError as error:
            raise TransientError("unreachable", f"{self.name}: {str(error) or type(error).__name__}") from error

    def close(self) -> None:
        """End the connections."""
        self._client.close()


class Stream:
    """The body of an answer as ``standards.multipart`` reads it. Raises: as ``httpx`` does."""

    def __init__(self, answer: httpx.Response) -> None:
        self._pieces = answer.iter_bytes()
        self._rest = b""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; b"" at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken
