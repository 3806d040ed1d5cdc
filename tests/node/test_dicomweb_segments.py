"""Bodies made of pieces of files, on their way into a socket."""

import secrets
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pacs_node.dicomweb.segments import FileRange, send_segments


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server's end of a connection and its client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    with server, client:
        yield server, client


def test_a_body_of_many_files_arrives_whole_and_in_order(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    server, client = ends
    server.settimeout(60)
    contents = [secrets.token_bytes(length) for length in (1, 4096, 700_001, 3_000_000)]
    parts: list[bytes | FileRange] = []
    for number, content in enumerate(contents):
        file = tmp_path / str(number)
        file.write_bytes(b"skipped" + content + b"not asked for")
        parts += [f"-{number}-".encode(), FileRange(str(file), 7, len(content))]

    def send() -> None:
        send_segments(server, [*parts, b"end"])
        server.shutdown(socket.SHUT_WR)

    sending = threading.Thread(target=send)
    sending.start()
    received = bytearray()
    while piece := client.recv(65536):
        received += piece
    sending.join(60)
    expected = b"".join(f"-{number}-".encode() + content for number, content in enumerate(contents)) + b"end"
    assert bytes(received) == expected


def test_a_client_that_takes_nothing_in_is_given_up(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    server, _client = ends
    server.settimeout(0.2)
    file = tmp_path / "long"
    with file.open("wb") as long:
        long.truncate(256 << 20)  # more than any socket holds
    with pytest.raises(TimeoutError):
        send_segments(server, [FileRange(str(file), 0, 256 << 20)])
    assert server.gettimeout() == 0.2  # as it was, whatever happened in between


def test_a_client_that_takes_no_text_in_is_given_up_too(ends: tuple[socket.socket, socket.socket]) -> None:
    server, _client = ends
    server.settimeout(0.2)
    with pytest.raises(TimeoutError):
        send_segments(server, [bytes(64 << 20)])


def test_a_file_that_became_shorter_ends_the_answer(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    server, _client = ends
    server.settimeout(60)
    file = tmp_path / "short"
    file.write_bytes(b"1234")
    with pytest.raises(OSError, match="6 bytes too early"):
        send_segments(server, [FileRange(str(file), 0, 10)])
