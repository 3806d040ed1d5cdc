"""Whatever breaks in the proxy, devices and the old PACS keep talking, and what was not tapped is named."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.processes import free_port, wait_until
from standards import upper_layer
from tests.factories.dicom import ct_series, part10
from tests.node.conftest import NodeProcess
from tests.node.proxied import COPY_ALL, Orthanc, Proxy, dcmtk
from tests.node.raw_association import CT, EXPLICIT, RawAssociation
from tests.node.test_proxy_rules import uid_of

pytest_plugins = ["tests.node.old_pacs"]


def files(folder: Path, count: int, size: int = 64) -> dict[str, Path]:
    """SOP Instance UID → file of a small series."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, dataset in enumerate(ct_series(count, size=size)):
        path = folder / f"{number}.dcm"
        path.write_bytes(part10(dataset))
        found[str(dataset.SOPInstanceUID)] = path
    return found


def raw(proxy: Proxy) -> RawAssociation:
    """An association by hand, through the proxy."""
    return RawAssociation(NodeProcess(proxy.folder, dicom_port=proxy.port), contexts=((CT, EXPLICIT),))


def bare(path: Path) -> bytes:
    """The data set of a file."""
    whole = path.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


def test_after_a_kill_of_the_worker_new_associations_pass_and_a_new_worker_serves(
    proxy: Proxy, pacs: Orthanc, tmp_path: Path
) -> None:
    proxy.start()
    images = files(tmp_path / "in", 6)
    (first, first_path), *rest = images.items()
    with raw(proxy) as running:
        assert running.store(CT, first, bare(first_path))["Status"] == 0
        proxy.kill_worker()
        sent = dcmtk("storescu", proxy.port, *(path for _, path in rest))
    assert sent.returncode == 0, sent.stderr
    assert set(images) <= set(pacs.files())
    proxy.wait_for_worker(times=2)
    reasons = [line["reason"] for line in proxy.events("missing")]
    assert any("worker-died" in reason for reason in reasons)
    assert any(line["event"] == "worker-died" for line in proxy.events())
    more = files(tmp_path / "more", 2)
    assert dcmtk("storescu", proxy.port, *more.values()).returncode == 0
    wait_until(lambda: set(more) <= {uid_of(path) for path in proxy.waiting()}, 60, "the new worker taps")


def test_without_any_worker_bytes_still_pass(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.worker = [sys.executable, "-c", "import sys; sys.exit(3)"]
    proxy.start()
    images = files(tmp_path / "in", 2)
    assert dcmtk("echoscu", proxy.port).returncode == 0
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    assert set(images) <= set(pacs.files())
    assert any("passed-blindly" in line["reason"] for line in proxy.events("missing"))


def test_a_worker_that_hangs_is_killed_and_connections_pass(proxy: Proxy, pacs: Orthanc) -> None:
    proxy.start()
    os.kill(proxy.worker_pids()[0], signal.SIGSTOP)
    assert dcmtk("echoscu", proxy.port).returncode == 0  # waits where it is until it is clear that nobody comes
    proxy.wait_for_worker(times=2)
    assert any("did not answer" in line.get("reason", "") for line in proxy.events())


def test_when_the_disk_is_full_images_pass_and_are_named(
    proxy: Proxy, pacs: Orthanc, tmp_path: Path, small_disk: Path
) -> None:
    proxy.folder = small_disk
    proxy.start()
    images = files(tmp_path / "in", 8, size=600)  # 720 KB each
    sent = dcmtk("storescu", proxy.port, *images.values())
    assert sent.returncode == 0, sent.stderr
    assert set(images) <= set(pacs.files())
    wait_until(lambda: len(proxy.waiting()) + len(_told(proxy)) == 8, 60, "all are tapped or named")
    told = _told(proxy)
    assert told
    assert not told & {uid_of(path) for path in proxy.waiting()}
    assert set(images) == told | {uid_of(path) for path in proxy.waiting()}


def _told(proxy: Proxy) -> set[str]:
    """What is named as missing; on a full disk the log, which lies elsewhere or grows in memory, has it too."""
    lines = [json.loads(line) for line in proxy.log.read_text().splitlines() if '"not-tapped"' in line]
    return {line["sop_instance_uid"] for line in lines} | proxy.missing()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system can be mounted here, so none can be filled")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_when_the_tap_cannot_write_at_all_images_pass(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.settings["least_free_bytes"] = 1 << 60
    proxy.start()
    images = files(tmp_path / "in", 2)
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    wait_until(lambda: proxy.missing() == set(images), 60, "both are named")
    assert {line["calling_ae_title"] for line in proxy.events("missing")} == {"CT1"}


def test_when_the_tap_is_too_slow_images_pass(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.settings["queue_bytes"] = 1000
    proxy.start()
    images = files(tmp_path / "in", 2)
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    wait_until(lambda: proxy.missing() == set(images), 60, "both are named")
    assert all(line["reason"].startswith("too-slow") for line in proxy.events("missing"))


def test_with_a_broken_rules_file_everything_passes_and_it_is_said(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.rules = "[[rule]]\nname = 'typo'\ncopi = 'node'\n"
    proxy.start()
    images = files(tmp_path / "in", 1)
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    (told,) = [line for line in proxy.events() if line["event"] == "rules-broken"]
    assert "«typo»" in told["error"]
    assert "copi" in told["error"]


def test_a_file_that_breaks_later_leaves_the_rules_before_it(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.start()
    proxy.rules_path.write_text("this is no TOML", encoding="utf-8")
    wait_until(lambda: any(line["event"] == "rules-broken" for line in proxy.events()), 60, "it is noticed")
    images = files(tmp_path / "in", 1)
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    wait_until(lambda: len(proxy.waiting()) == 1, 60, "the copy is still made")
    proxy.kill_worker()
    proxy.wait_for_worker(times=2)
    more = files(tmp_path / "more", 1)
    assert dcmtk("storescu", proxy.port, *more.values()).returncode == 0
    wait_until(lambda: len(proxy.waiting()) == 2, 60, "the last good rules hold after a restart too")


def test_an_old_pacs_that_is_down_is_a_transient_rejection(tmp_path: Path) -> None:
    one = Proxy(tmp_path, free_port())
    try:
        one.start()
        refused = dcmtk("echoscu", one.port)
        assert refused.returncode != 0
        assert "Temporary Congestion" in refused.stderr
        assert any(line["event"] == "old-pacs-away" for line in one.events())
    finally:
        one.stop()


def test_what_the_old_pacs_missed_is_kept_and_brought_to_it_later(tmp_path: Path) -> None:
    pacs = Orthanc(tmp_path / "pacs")
    one = Proxy(tmp_path / "proxy", pacs.port)
    one.rules = '[old_pacs]\nwhen_down = "store-and-forward"\n' + COPY_ALL
    images = files(tmp_path / "in", 3, size=300)
    try:
        one.start()
        stored = dcmtk("storescu", one.port, *images.values())
        assert stored.returncode == 0, stored.stderr
        assert len(one.waiting("old_pacs")) == 3
        one.kill_worker()
        one.wait_for_worker(times=2)
        pacs.start()
        wait_until(lambda: set(pacs.files()) == set(images), 90, "the old PACS has them")
        wait_until(lambda: len(one.waiting()) == 3 and not one.waiting("old_pacs"), 60, "the node has them too")
        for uid, path in images.items():
            assert bare(path) in pacs.files()[uid]
    finally:
        one.stop()
        pacs.stop()


def test_what_is_refused_or_never_answered_is_not_copied(tmp_path: Path) -> None:
    """An old PACS that answers A700 to the first image, and closes at the second."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=_refusing, args=(listener,), daemon=True).start()
    one = Proxy(tmp_path / "proxy", port)
    (first, second) = files(tmp_path / "in", 2).items()
    try:
        one.start()
        with raw(one) as association:
            assert association.store(CT, first[0], bare(first[1]))["Status"] == 0xA700
            with pytest.raises((OSError, AssertionError, EOFError)):
                association.store(CT, second[0], bare(second[1]))
        wait_until(lambda: one.counts().get("instances") == 2, 60, "both were seen")
        wait_until(lambda: not list((one.state_folder / "spool" / "passing").iterdir()), 60, "nothing is left of them")
        assert (one.waiting(), one.missing()) == ([], set())
    finally:
        one.stop()
        listener.close()


def _refusing(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    asked = upper_layer.read_pdu(peer, 1 << 20, time.monotonic() + 30)
    assert asked is not None
    syntax = EXPLICIT.encode()
    item = (
        b"\x21\0" + (8 + len(syntax)).to_bytes(2, "big") + b"\x01\0\0\0\x40\0" + len(syntax).to_bytes(2, "big") + syntax
    )
    user = b"\x50\0\0\x08\x51\0\0\x04" + (16384).to_bytes(4, "big")
    application = b"\x10\0\0\x15" + b"1.2.840.10008.3.1.1.1"
    body = bytes(asked[1][:68]) + application + item + user
    peer.sendall(upper_layer.pdu_header(upper_layer.ASSOCIATE_AC, len(body)) + body)
    last = False
    while not last:
        read = upper_layer.read_pdu(peer, 1 << 20, time.monotonic() + 30)
        assert read is not None
        last = any(part.is_last and not part.is_command for part in upper_layer.pdvs(read[1]))
    peer.sendall(
        upper_layer.message(
            1,
            {
                "CommandField": 0x8001,
                "MessageIDBeingRespondedTo": 7,
                "CommandDataSetType": 0x0101,
                "Status": 0xA700,
            },
        )
    )
    upper_layer.read_pdu(peer, 1 << 20, time.monotonic() + 30)
    peer.close()
