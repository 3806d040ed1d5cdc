"""The queue between what passes and a disk that is slow or hangs."""

import errno
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import wait_until
from gateway.proxy import journal, rules
from gateway.proxy.conditions import Sender
from gateway.proxy.copying import Copying
from gateway.proxy.journal import Journal
from gateway.proxy.rules import Rules
from gateway.proxy.spool import Spool
from gateway.proxy.tap import Patience, Tap, Tapped
from tests.factories.dicom import ct_series, part10

SENDER = Sender("CT1", "OLDPACS", "127.0.0.1")
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
PIECE = memoryview(bytes(1000))


class Disk(Spool):
    """A real folder whose disk hangs when it is told to."""

    def __init__(self, folder: Path) -> None:
        self.answers = threading.Event()
        super().__init__(folder)

    def free_bytes(self) -> int:
        self.answers.wait()
        return super().free_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "spool")


@pytest.fixture
def tap(disk: Disk, tmp_path: Path) -> Iterator[Tap]:
    """A tap with room for three pieces, on a disk that hangs."""
    told = Journal(tmp_path)
    made = Tap(disk, told, Copying(disk, told, Rules, b""), most_queued_bytes=3 * len(PIECE), least_free_bytes=0)
    made.start()
    yield made
    disk.answers.set()
    made.stop(30)


def begin(tap: Tap, uid: str) -> Tapped:
    return tap.begin(SENDER, CT, uid, EXPLICIT)


def test_what_passes_waits_for_a_disk_that_is_slow(tap: Tap, disk: Disk) -> None:
    image = begin(tap, "1.2.3")
    for _ in range(3):
        tap.piece(image, PIECE)
    waiting = threading.Thread(target=tap.piece, args=(image, PIECE))
    waiting.start()
    disk.answers.set()
    waiting.join(60)
    tap.end(image, 0)
    wait_until(lambda: not any(disk.answered.iterdir()) and not any(disk.passing.iterdir()), 60, "it is written")
    assert image.trouble == ""
    assert image.size > 4 * len(PIECE)


def test_a_disk_that_hangs_costs_one_pause_and_each_image_is_named(tap: Tap, disk: Disk, tmp_path: Path) -> None:
    began = time.monotonic()
    images = [begin(tap, f"1.2.{number}") for number in range(1, 12)]
    for image in images:
        for _ in range(4):
            tap.piece(image, PIECE)
        tap.end(image, 0)
    assert time.monotonic() - began < 11 * 5, "not five seconds for each"
    disk.answers.set()
    wait_until(lambda: len(list(journal.lines(tmp_path, "missing"))) == 11, 60, "each is named")
    assert {line["reason"][:8] for line in journal.lines(tmp_path, "missing")} == {"too-slow"}


def test_a_piece_that_never_fits_is_not_waited_for(tap: Tap) -> None:
    image = begin(tap, "1.2.3")
    tap.piece(image, memoryview(bytes(4 * len(PIECE))))
    assert image.trouble.startswith("too-slow")
    assert tap._patience.left() == Patience._MOST_SECONDS, "nor is patience spent on it"


class Full(Spool):
    """A real folder that takes no copies while it is told to be full."""

    refusals = 0
    is_full = True

    def hand(self, path: Path, destination: str) -> None:
        if self.is_full:
            self.refusals += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        super().hand(path, destination)


def test_a_copy_that_the_disk_did_not_take_is_made_as_soon_as_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.proxy.tap._AGAIN_SECONDS", 0.05)
    full, told = Full(tmp_path / "spool"), Journal(tmp_path)
    all_to_node = rules.read({"rule": [{"name": "all", "copy": "node"}]})
    tap = Tap(full, told, Copying(full, told, lambda: all_to_node, b""), most_queued_bytes=1 << 20, least_free_bytes=0)
    tap.start()
    (dataset,) = ct_series(1)
    whole = part10(dataset)
    image = tap.begin(SENDER, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), EXPLICIT)
    tap.piece(image, memoryview(whole[144 + int.from_bytes(whole[140:144], "little") :]))
    tap.end(image, 0)
    try:
        wait_until(lambda: full.refusals > 2, 60, "it is tried again and again")
        assert [line["error"] for line in journal.lines(tmp_path, "events")] == ["No space left on device"], "said once"
        full.is_full = False
        wait_until(lambda: not any(full.answered.iterdir()), 60, "it is finished")
        assert len(full.waiting("node")) == 1
    finally:
        tap.stop(30)
