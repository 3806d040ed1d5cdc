"""The wire between a clinic and the rest of the region, as something that can be cut.

A node's HTTPS goes out through this CONNECT proxy on 127.0.0.1. Cutting it breaks what is open and refuses what is new,
as a dead line does; nothing inside the clinic notices.
"""

import asyncio
import contextlib


class Link:
    """One clinic's way out."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.is_up = True
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """What HTTPS_PROXY is set to."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """End every connection and stop listening."""
        self.cut()
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def cut(self) -> None:
        """Break every connection and refuse new ones until `restore`."""
        self.is_up = False
        for writer in self._open:
            writer.transport.abort()

    def restore(self) -> None:
        """Let connections through again."""
        self.is_up = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._tunnel(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self._open.discard(writer)
            writer.close()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, address, _ = request.split(" ", 2)
        host, _, port = address.rpartition(":")
        if not self.is_up or method != "CONNECT":
            writer.write(b"HTTP/1.1 503 The line is cut\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        self._open.add(far_writer)
        ways: list[asyncio.Task[None]] = []
        try:
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            ways = [asyncio.create_task(_copy(reader, far_writer)), asyncio.create_task(_copy(far_reader, writer))]
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            self._open.discard(far_writer)
            far_writer.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Everything from one side to the other, then the end of it."""
    while block := await source.read(1 << 16):
        target.write(block)
        await target.drain()
    with contextlib.suppress(OSError, NotImplementedError):
        target.write_eof()
