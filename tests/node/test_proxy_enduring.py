"""What breaks around the proxy: its rules, its disk, its own first process, the old PACS, devices of odd manners."""

import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.processes import wait_until
from gateway.proxy import journal
from standards import upper_layer
from tests.factories.dicom import ct_series, part10
from tests.node.conftest import NodeProcess
from tests.node.proxied import COPY_ALL, Orthanc, Proxy, Store, dcmtk
from tests.node.raw_association import CT, EXPLICIT, RawAssociation, store_command
from tests.node.test_proxy_failing import bare, files, raw, small_disk

__all__ = ["small_disk"]

COERCE = COPY_ALL + '[[rule]]\nset = { InstitutionName = "Hospital" }\n'


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Store]:
    """An old PACS with a process for each association."""
    one = Store(tmp_path / "old", ("--fork",))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def proxy(tmp_path: Path, old: Store) -> Iterator[Proxy]:
    one = Proxy(tmp_path / "proxy", old.port)
    yield one
    one.stop()


def taken(old: Store) -> set[str]:
    return {str(one.SOPInstanceUID) for one in old.received()}


def _removed(path: Path) -> None:
    path.unlink()


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _not_utf8(path: Path) -> None:
    path.write_bytes(b"# \xd0\xff\xfe\n")


def _a_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def told(proxy: Proxy) -> tuple[str, str]:
    """What is said of its rules, and which are used."""
    rules = journal.read_state(proxy.state_folder)["rules"]
    return rules["state"], rules["using"]


@pytest.mark.parametrize("spoil", [_removed, _a_folder, _not_utf8, _a_loop])
def test_rules_that_cannot_be_read_any_more_stay_in_force(proxy: Proxy, old: Store, tmp_path: Path, spoil: Any) -> None:
    proxy.rules = COERCE
    proxy.start()
    spoil(proxy.rules_path)
    wait_until(lambda: any(line["event"] == "rules-broken" for line in proxy.events()), 60, "it is noticed")
    images = files(tmp_path / "in", 1)
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    (received,) = old.received()
    assert received.InstitutionName == "Hospital"
    wait_until(lambda: len(proxy.waiting()) == 1, 60, "the copy is made")
    wait_until(lambda: told(proxy) == ("broken", "the rules before it"), 60, "the page is told")


def test_an_old_pacs_that_restarts_is_reached_again_at_once(tmp_path: Path) -> None:
    pacs = Orthanc(tmp_path / "pacs")
    pacs.start()
    one = Proxy(tmp_path / "proxy", pacs.port, rules=COERCE)
    (first, first_path), (second, second_path) = files(tmp_path / "in", 2).items()
    try:
        one.start()
        with raw(one) as running:
            assert running.store(CT, first, bare(first_path))["Status"] == 0
            assert pacs.process is not None
            pacs.process.kill()
            pacs.process.wait(60)
            ended = running.pdu(60)  # as the old PACS ends it: closed or aborted, not left open
            assert ended is None or ended[0] == upper_layer.ABORT
        assert "Temporary Congestion" in dcmtk("echoscu", one.port).stderr
        pacs.start()
        assert dcmtk("storescu", one.port, second_path).returncode == 0
        assert {first, second} <= set(pacs.files())
        wait_until(lambda: len(one.waiting()) == 2, 60, "both are copied")
        assert len(one.worker_pids()) == 1
    finally:
        one.stop()
        pacs.stop()


@pytest.mark.parametrize("rules", [COPY_ALL, COERCE], ids=["copied", "coerced"])
def test_a_device_that_sends_its_end_early_still_gets_its_answers(
    proxy: Proxy, old: Store, tmp_path: Path, rules: str
) -> None:
    proxy.rules = rules
    proxy.start()
    ((uid, path),) = files(tmp_path / "in", 1).items()
    with raw(proxy) as device:
        device.send_fragments(1, upper_layer.encode_command(store_command(CT, uid)), is_command=True)
        device.send_fragments(1, bare(path), is_command=False)
        device.plain.sendall(upper_layer.RELEASE_RQ_PDU)
        device.plain.shutdown(socket.SHUT_WR)
        assert device.answer()["Status"] == 0
        released = device.pdu()
        assert released is not None
        assert released[0] == upper_layer.RELEASE_RP
        assert device.pdu() is None
    assert taken(old) == {uid}
    wait_until(lambda: len(proxy.waiting()) == 1, 60, "it is copied")


def test_a_device_that_vanishes_within_an_image_leaves_nothing(proxy: Proxy, old: Store, tmp_path: Path) -> None:
    proxy.rules = COERCE
    proxy.start()
    ((uid, path),) = files(tmp_path / "in", 1, size=512).items()
    with raw(proxy) as device:
        device.send_fragments(1, upper_layer.encode_command(store_command(CT, uid)), is_command=True)
        whole = b"".join(upper_layer.fragments(1, bare(path), 1 << 14, is_command=False))
        device.plain.sendall(whole[: len(whole) // 2])
    wait_until(lambda: proxy.counts().get("associations:broken-off", 0) + _aborted(proxy) == 1, 90, "it is over")
    spool = proxy.state_folder / "spool"
    wait_until(lambda: not list((spool / "passing").iterdir()), 60, "nothing is left of it")
    assert (proxy.waiting(), proxy.missing()) == ([], set())
    assert dcmtk("storescu", proxy.port, path).returncode == 0


def _aborted(proxy: Proxy) -> int:
    return proxy.counts().get("associations:aborted", 0)


@pytest.mark.parametrize("rules", [COPY_ALL, COERCE], ids=["copied", "coerced"])
def test_fifty_associations_at_once_all_pass(proxy: Proxy, old: Store, tmp_path: Path, rules: str) -> None:
    proxy.rules = rules
    proxy.start()
    images = list(files(tmp_path / "in", 50).items())
    together = threading.Barrier(51, timeout=120)
    statuses: list[int] = []

    def device(uid: str, path: Path) -> None:
        with RawAssociation(NodeProcess(proxy.folder, dicom_port=proxy.port), contexts=((CT, EXPLICIT),)) as one:
            together.wait()  # all are open
            together.wait()
            statuses.append(one.store(CT, uid, bare(path))["Status"])
            one.plain.sendall(upper_layer.RELEASE_RQ_PDU)
            one.pdu(60)

    threads = [threading.Thread(target=device, args=image, daemon=True) for image in images]
    for thread in threads:
        thread.start()
    together.wait()
    wait_until(lambda: len(journal.read_state(proxy.state_folder).get("open", ())) == 50, 60, "all are counted as open")
    together.wait()
    for thread in threads:
        thread.join(120)
    assert statuses == [0] * 50
    assert taken(old) == {uid for uid, _ in images}
    wait_until(lambda: len(proxy.waiting()) == 50, 90, "all are copied")
    wait_until(lambda: proxy.counts().get("associations:released") == 50, 60, "all were released")
    assert proxy.missing() == set()


def test_with_a_full_disk_images_that_rules_would_change_pass_unchanged(
    proxy: Proxy, old: Store, tmp_path: Path, small_disk: Path
) -> None:
    proxy.folder, proxy.rules = small_disk, COERCE
    proxy.start()
    images = files(tmp_path / "in", 1, size=2000)  # 8 MB, which no memory of ours holds either
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    assert taken(old) == set(images)
    wait_until(lambda: '"not-held"' in proxy.log.read_text(), 60, "it is said")


def test_a_spool_that_is_deleted_while_it_works_is_made_again(proxy: Proxy, old: Store, tmp_path: Path) -> None:
    proxy.rules = COERCE
    proxy.start()
    shutil.rmtree(proxy.state_folder)
    images = files(tmp_path / "in", 1, size=2000)
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    assert taken(old) == set(images)
    wait_until(lambda: len(proxy.waiting()) == 1, 60, "it is copied all the same")


def test_when_the_first_process_is_killed_another_takes_its_place_at_once(
    proxy: Proxy, old: Store, tmp_path: Path
) -> None:
    proxy.start()
    assert proxy.process is not None
    os.kill(proxy.process.pid, signal.SIGKILL)
    proxy.process.wait(30)
    proxy.start()  # as systemd would; the worker before it has not ended yet
    proxy.wait_for_worker(times=2)
    images = files(tmp_path / "in", 1)
    assert dcmtk("storescu", proxy.port, *images.values()).returncode == 0
    wait_until(lambda: len(proxy.waiting()) == 1, 60, "it is copied")
    assert any(line["reason"].startswith("ended-unexpectedly") for line in proxy.events("missing"))


def test_images_pass_while_a_killed_worker_is_followed_by_the_next(proxy: Proxy, old: Store, tmp_path: Path) -> None:
    """Ten kills in a row: a device that repeats what failed, as devices do, gets everything through."""
    proxy.start()
    (tmp_path / "in").mkdir()
    sent: set[str] = set()
    for number in range(10):
        (dataset,) = ct_series(1)
        path = tmp_path / "in" / f"{number}.dcm"
        path.write_bytes(part10(dataset))
        sent.add(str(dataset.SOPInstanceUID))
        before = proxy.worker_pids()
        with suppress(ProcessLookupError):  # after three deaths the next begins later, and bytes pass without any
            os.kill(before[-1], signal.SIGKILL)
        tries: list[int] = []
        while 0 not in tries and len(tries) < 3:
            tries.append(dcmtk("storescu", proxy.port, path).returncode)
        assert 0 in tries
        if number < 3:
            proxy.wait_for_worker(times=len(before) + 1)
    assert taken(old) == sent
