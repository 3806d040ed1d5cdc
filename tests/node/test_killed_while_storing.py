"""Kill -9 in a loop while four devices send: nothing acknowledged is lost, and a second sending leaves one of each."""

import hashlib
import random
import struct
import threading
import time
from collections.abc import Callable
from functools import partial

from deploy.processes import wait_until
from standards.errors import RegisError
from tests.factories.dicom import ct_series, part10
from tests.node.conftest import NodeProcess
from tests.node.raw_association import CT, RawAssociation

SENDERS = 4
KILLS = 10
SLICES = 300

Slice = tuple[str, bytes]
"""SOP Instance UID and encoded data set."""


def slices(count: int) -> tuple[str, list[Slice]]:
    """A study of ``count`` small slices as they travel."""
    series = ct_series(count, size=96)
    encoded = []
    for dataset in series:
        whole = part10(dataset)
        length = struct.unpack("<L", whole[140:144])[0]
        encoded.append((str(dataset.SOPInstanceUID), whole[144 + length :]))
    return str(series[0].StudyInstanceUID), encoded


class Sender(threading.Thread):
    """A device that sends what has not been acknowledged yet, over and over, until all of it is or it is told to end.

    ``acknowledged``: the UIDs that were answered with success. ``strange``: any other answer.
    """

    def __init__(self, node: NodeProcess, images: list[Slice]) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._images = images
        self._over = threading.Event()
        self.acknowledged: set[str] = set()
        self.strange: list[int] = []

    def run(self) -> None:
        while not self._over.is_set():
            try:
                self._send()
            except (OSError, RegisError, AssertionError):  # the node was killed under it: that is the point
                time.sleep(0.02)

    def _send(self) -> None:
        with RawAssociation(self._node) as association:
            for uid, encoded in self._images:
                if self._over.is_set():
                    return
                if uid in self.acknowledged:
                    continue
                status = association.store(CT, uid, encoded)["Status"]
                if status == 0:
                    self.acknowledged.add(uid)
                else:
                    self.strange.append(status)
        self._over.set()

    def end(self) -> None:
        """Tell it to end, and wait for that."""
        self._over.set()
        self.join(120)
        assert not self.is_alive()


def whole(node: NodeProcess, study: str, images: list[Slice]) -> set[str]:
    """What index and storage hold of a study; fails when one is there twice or has not the bytes that were sent."""
    sent = {uid: hashlib.sha256(encoded).hexdigest() for uid, encoded in images}
    rows = node.sql(
        "SELECT i.sop_instance_uid, i.path, i.dataset_sha256, i.is_variant FROM study_index_instance i"
        " JOIN study_index_series s ON s.id = i.series_id JOIN study_index_study t ON t.id = s.study_id"
        " WHERE t.study_instance_uid = ?",
        study,
    )
    assert len({uid for uid, *_ in rows}) == len(rows), "an instance is in the index twice"
    for uid, path, digest, variant in rows:
        stored = (node.storage / path).read_bytes()
        length = struct.unpack("<L", stored[140:144])[0]
        assert hashlib.sha256(stored[144 + length :]).hexdigest() == digest == sent[uid], uid
        assert not variant, uid
    return {uid for uid, *_ in rows}


def _any_acknowledged(senders: list[Sender]) -> bool:
    return any(sender.acknowledged for sender in senders)


def test_kills_at_any_moment_lose_nothing_and_sending_again_leaves_one_of_each(
    make_node: Callable[..., NodeProcess],
) -> None:
    node, dice = make_node(), random.Random(20261121)
    studies = [slices(SLICES) for _ in range(SENDERS)]
    certain: list[set[str]] = [set() for _ in studies]
    kills = 0
    while kills < KILLS and sum(map(len, certain)) < SENDERS * SLICES:
        senders = [
            Sender(node, [(uid, encoded) for uid, encoded in images if uid not in done])
            for (_, images), done in zip(studies, certain, strict=True)
        ]
        for sender in senders:
            sender.start()
        wait_until(partial(_any_acknowledged, senders), 120, "something is stored")
        time.sleep(dice.uniform(0, 0.15))  # no state is waited for: the moment is chance
        node.kill()
        kills += 1
        for sender, done in zip(senders, certain, strict=True):
            sender.end()
            assert sender.strange == []
            done |= sender.acknowledged
        for (study, images), done in zip(studies, certain, strict=True):
            assert done <= whole(node, study, images), "something acknowledged is lost"
        node.start()
    assert kills > 2, "the kills came after all was stored"

    explained = node.command("verify", "--once", "--settled", "0", check=False)
    assert explained.returncode == 0, explained.stderr
    for study, images in studies:
        held = whole(node, study, images)
        assert {path.stem for path in node.files(study)} == held, "a file that neither index nor verify explains"
    assert list((node.storage / "incoming").iterdir()) == []

    for study, images in studies:
        with RawAssociation(node) as association:
            assert {association.store(CT, uid, encoded)["Status"] for uid, encoded in images} == {0}
            association.release()
        assert whole(node, study, images) == {uid for uid, _ in images}
        assert {path.stem for path in node.files(study)} == {uid for uid, _ in images}
        assert len(node.files(study)) == len(images)
