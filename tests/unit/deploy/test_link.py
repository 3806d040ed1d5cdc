"""A clinic's line can be cut and mended while people talk over it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from deploy.link import Link
from deploy.processes import free_port


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while block := await reader.read(100):
            writer.write(block.upper())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    line = Link(free_port())
    await line.start()
    yield line
    await line.stop()


async def dial(link: Link, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    return reader, writer, answer.decode().split(" ")[1]


async def test_what_is_said_arrives_and_comes_back(link: Link, echo: int) -> None:
    reader, writer, status = await dial(link, echo)
    writer.write("снимок".encode())
    assert status == "200"
    assert (await reader.read(100)).decode() == "снимок"
    writer.close()


async def test_a_cut_breaks_what_is_open_and_refuses_what_is_new_until_it_is_mended(link: Link, echo: int) -> None:
    reader, _, _ = await dial(link, echo)
    link.cut()
    with contextlib.suppress(ConnectionResetError):  # a reset or an end: either way the line is dead
        assert await reader.read(100) == b""
    assert (await dial(link, echo))[2] == "503"
    link.restore()
    reader, writer, status = await dial(link, echo)
    writer.write(b"again")
    assert (status, await reader.read(100)) == ("200", b"AGAIN")
    writer.close()
