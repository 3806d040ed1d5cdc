"""Kill -9 while images come in: nothing acknowledged is lost, and verify explains whatever lies about."""

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from deploy.processes import wait_until
from tests.factories.dicom import Study, ct_series, write_all
from tests.node.conftest import NodeProcess, need


def acknowledged(said: bytes) -> list[str]:
    """Files that storescu had a success for, in the order of sending."""
    sent: list[str] = []
    done: list[str] = []
    for line in said.decode(errors="replace").splitlines():
        if match := re.search(r"Sending file: (\S+)", line):
            sent.append(match[1])
        if "Received Store Response (Success)" in line:
            done.append(sent[-1])
    return done


def test_kill_in_a_loop_loses_nothing_acknowledged_and_verify_explains_the_rest(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    need("storescu")
    node, dice = make_node(start=False), random.Random(3)
    certain: set[str] = set()
    for turn in range(4):
        datasets = ct_series(60, study=Study(), size=128)
        files = write_all(datasets, tmp_path / str(turn))
        uids = {str(path): str(dataset.SOPInstanceUID) for path, dataset in zip(files, datasets, strict=True)}
        node.start()
        command = ["storescu", "-v", "-aet", "MODALITY", "-aec", "TESTNODE", "127.0.0.1", str(node.dicom_port)]
        sender = subprocess.Popen([*command, *map(str, files)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        wait_until(lambda: bool(list(node.storage.rglob("*.dcm"))), 30, "images come in")
        time.sleep(dice.uniform(0.02, 0.4))  # a moment nobody chose
        node.kill()
        said, _ = sender.communicate(timeout=60)
        certain |= {uids[path] for path in acknowledged(said)}
    done = node.command("verify", "--once", "--settled", "0", check=False)
    assert done.returncode == 0, done.stderr
    indexed = {uid for (uid,) in node.sql("SELECT sop_instance_uid FROM study_index_instance")}
    assert certain <= indexed
    assert len(certain) > 10
    assert {path.stem for path in node.storage.glob("studies/*/*/*/*.dcm")} == indexed
    assert list((node.storage / "incoming").iterdir()) == []


def test_the_gateway_process_verifies_in_the_background_and_goes_on_after_a_kill(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node = make_node(start=False, REGIS_NODE_VERIFY_PACE="0.3")
    for number in range(6):
        write_all(ct_series(4, study=Study(), size=128), tmp_path / str(number))
    node.command("import", str(tmp_path))
    assert node.sql("SELECT * FROM storage_verifyround") == []

    def gateway() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "django", "run", "gateway"],
            env=node.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def round_() -> tuple[str, int, str | None]:
        rows = node.sql("SELECT after, files, finished_at FROM storage_verifyround")
        return rows[0] if rows else ("", 0, None)

    first = gateway()
    try:
        wait_until(lambda: bool(round_()[0]), 60, "a study is verified")
    finally:
        first.kill()
        first.wait(10)
    after, files, finished = round_()
    assert (bool(after), finished) == (True, None)
    second = gateway()
    try:
        wait_until(lambda: round_()[2] is not None, 60, "the round ends")
    finally:
        second.kill()
        second.wait(10)
    assert files < 24
    assert 24 <= round_()[1] <= 28  # what was read twice is at most the study that the kill cut short
