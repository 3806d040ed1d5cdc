"""Kill -9 while images come in: nothing acknowledged is lost, and verify explains whatever lies about."""

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.processes import wait_until
from tests.factories.dicom import Study, ct_instance, ct_series, write, write_all
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
        there = len(certain) + 3
        wait_until(lambda: len(list(node.storage.rglob("*.dcm"))) > there, 120, "images come in")  # noqa: B023
        time.sleep(dice.uniform(0.02, 0.4))  # a moment nobody chose
        node.kill()
        said, _ = sender.communicate(timeout=120)
        certain |= {uids[path] for path in acknowledged(said)}
    done = node.command("verify", "--once", "--settled", "0", check=False)
    assert done.returncode == 0, done.stderr
    indexed = {uid for (uid,) in node.sql("SELECT sop_instance_uid FROM study_index_instance")}
    assert certain <= indexed
    assert len(certain) >= 4
    assert {path.stem for path in node.storage.glob("studies/*/*/*/*.dcm")} == indexed
    assert list((node.storage / "incoming").iterdir()) == []


def test_the_gateway_process_verifies_in_the_background_and_goes_on_after_a_kill(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node = make_node(start=False, REGIS_NODE_VERIFY_PACE="0.1")
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
        wait_until(lambda: bool(round_()[0]), 120, "a study is verified")
    finally:
        first.kill()
        first.wait(60)
    after, files, finished = round_()
    assert (bool(after), finished) == (True, None)
    second = gateway()
    try:
        wait_until(lambda: round_()[2] is not None, 120, "the round ends")
    finally:
        second.kill()
        second.wait(60)
    assert files < 24
    assert 24 <= round_()[1] <= 28  # what was read twice is at most the study that the kill cut short


CRASHES = """
import contextlib, hashlib, io, itertools, os
from datetime import timedelta
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone
from pacs_node.storage.filesystem import FilesystemStorage
from pacs_node.storage.models import StudyRetention
from pacs_node.study_index.copies import open_received
from pacs_node.study_index.models import Instance, Study

def silently(*words, **options):
    call_command(*words, **options, stdout=io.StringIO(), stderr=io.StringIO())

def contents():
    found = []
    for instance in Instance.objects.order_by("sop_instance_uid"):
        with open_received(instance) as file:
            found.append(hashlib.sha256(file.read()).hexdigest())
    return found

def make_old():
    for model in (Instance, Study):
        model.objects.update(created_at=timezone.now() - timedelta(days=99))
    StudyRetention.objects.all().delete()

def die_at(step):
    calls = itertools.count()
    def fatal(name):
        plain = getattr(FilesystemStorage, name)
        def call(self, *arguments, **named):
            if next(calls) == step:
                os._exit(9)
            result = plain(self, *arguments, **named)
            if next(calls) == step:
                os._exit(9)
            return result
        setattr(FilesystemStorage, name, call)
    for name in ("append_journal", "remove", "place", "set_aside"):
        fatal(name)

before = contents()
for step in itertools.count():
    make_old()
    if "{command}" == "recall":
        silently("tier")
    connections.close_all()
    child = os.fork()
    if not child:
        die_at(step)
        silently("{command}", *{words!r})
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), status
    silently("verify", once=True, settled=0.0)  # raises when it cannot explain or mend something
    assert contents() == before, step
    silently("recall", Study.objects.get().study_instance_uid)
    if not status:
        break
print("steps", step)
"""


@pytest.mark.parametrize("command", ["tier", "recall", "recompress"])
def test_a_crash_at_any_step_of_it_costs_nothing_and_leaves_nothing_unexplained(
    command: str, make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node, study = make_node(start=False), Study()
    write_all(ct_series(2, study=study, size=128), tmp_path / "in")
    node.command("import", str(tmp_path / "in"))
    node.settings["REGIS_NODE_INSTITUTION_URL"] = (tmp_path / "institution").as_uri()
    node.python(CRASHES.partition("before =")[0] + "make_old()\nsilently('tier')")  # a copy at the institution
    node.settings["REGIS_NODE_TIER_AFTER_DAYS"] = "1"
    words = [] if command == "tier" else [study.study_instance_uid]
    said = node.python(CRASHES.replace("{command}", command).replace("{words!r}", repr(words)))
    assert int(said.rpartition("steps ")[2]) > 3


AT_ONCE = """
import io, sys, threading
from pathlib import Path
from django.db import connection, transaction
from pacs_node.study_index import actions, indexing
from pacs_node.study_index.models import Instance
from standards.part10 import read_header

first, second = (Path(path).read_bytes() for path in ({first!r}, {second!r}))
outcomes = []
other = threading.Thread(
    target=lambda: outcomes.append(actions.ingest(io.BytesIO(second), source_ae_title="CT").outcome)
)
with transaction.atomic():
    Instance.objects.filter(pk=0).update(path="")  # this transaction has the right to write
    other.start()
    while not indexing.commit._turn.locked():
        pass
    added = actions.index_stored(
        "studies/00/1.2/brought-in.dcm", read_header(io.BytesIO(first)), dataset_digest="0" * 64, pixel_digest=None,
        source=actions.Source("CT"),
    )
other.join()
print(added, outcomes, Instance.objects.count())
"""


def test_a_file_is_brought_in_within_a_transaction_while_others_wait_to_commit(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node = make_node(start=False)
    first, second = (write(ct_instance(), tmp_path / name) for name in ("first.dcm", "second.dcm"))
    assert node.python(AT_ONCE.format(first=str(first), second=str(second))) == "True ['stored'] 2"
