"""A region for contract tests whose clinic delivers to the archive through a machine in the middle."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from deploy.processes import wait_until
from standards.uids import new_uid
from tests.contract.region import NodeUnderTest, Region, region
from tests.contract.tampering import MachineInTheMiddle


class Setup:
    """What the tests of a module share; each uses studies of its own."""

    def __init__(self, made: Region, middle: MachineInTheMiddle) -> None:
        self.region, self.middle = made, middle
        self.archive = made.add_node("archive", "archive", federation_url=f"https://127.0.0.1:{middle.port}")
        self.clinic = made.add_node("clinic", "clinic")
        middle.upstream = f"https://127.0.0.1:{self.archive.https_port}"

    def start(self) -> None:
        codes = self.region.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        self.region.start_centre()
        self.region.join(self.archive, codes["archive"])
        self.region.join(self.clinic, codes["clinic"])
        self.region.start_pacs(self.archive)
        self.archive.gateway.start()
        self.clinic.gateway.start()

    def deliveries(self, study: str) -> list[tuple[object, ...]]:
        return self.clinic.query(
            "SELECT sop_instance_uid, status, attempts, last_error FROM gateway_delivery WHERE study_instance_uid = ?",
            study,
        )

    def wait_for_receipts(self, study: str, count: int, seconds: float = 240) -> None:
        def done() -> bool:
            return [row[1] for row in self.deliveries(study)] == ["receipted"] * count

        try:
            wait_until(done, seconds, f"{count} receipts")
        except TimeoutError:
            pytest.fail(f"{self.deliveries(study)[:5]}\n{self.region.last_words()}")

    def assert_same_at_both_ends(self, uids: list[str]) -> None:
        at_clinic, at_archive = self.clinic.held(), self.archive.held()
        assert {uid: at_archive.get(uid) for uid in uids} == {uid: at_clinic[uid] for uid in uids}

    def wait_for_centre(self, node: NodeUnderTest) -> None:
        """Until the centre took every event of the node, and nothing waits to be numbered."""
        try:
            wait_until(lambda: self.region.heard_all(node), 240, f"the centre has all of {node.name}")
        except TimeoutError:
            pytest.fail(self.region.last_words())

    def last_command(self, node: NodeUnderTest) -> int:
        """The number of the last command, once the node has all that were sent to it and waits for the next."""
        study = new_uid()
        self.region.send(node.name, {"type": "study.send", "study_instance_uid": study, "priority": 10})
        came = "SELECT count(*) FROM gateway_studypriority WHERE study_instance_uid = ?"
        wait_until(lambda: node.query(came, study) == [(1,)], 240, f"{node.name} hears commands")
        return int(str(node.query("SELECT last_command_seq FROM gateway_joinstate")[0][0]))

    def announced(self, node: NodeUnderTest, study: str) -> list[str]:
        """SOP Instance UIDs that the centre took from the node as added, in the order of the inbox."""
        rows = self.region.ask(
            "SELECT e.body, e.error FROM federation_inboxevent e JOIN federation_node n ON n.id = e.node_id"
            " WHERE n.name = %s AND e.type = 'series.changed'"
            " AND e.body->'study'->>'study_instance_uid' = %s ORDER BY e.id",
            node.name,
            study,
        )
        assert all(error == "" for _, error in rows), rows
        return [item["sop_instance_uid"] for body, _ in rows for item in body["added"]]  # type: ignore[index]

    def assert_no_gaps(self) -> None:
        rows = self.region.ask(
            "SELECT node_id, epoch, array_agg(seq ORDER BY seq) FROM federation_inboxevent GROUP BY 1, 2"
        )
        for _, _, seqs in rows:
            assert seqs == list(range(1, len(seqs) + 1))  # type: ignore[arg-type]


S = TypeVar("S", bound=Setup)


@contextlib.contextmanager
def region_with_middle(directory: Path, kind: Callable[[Region, MachineInTheMiddle], S]) -> Iterator[S]:
    """The region at work, until the tests of a module are through; ``kind`` is what they see of it."""
    with region(directory) as made:
        middle = MachineInTheMiddle(directory / "tls")
        setup = kind(made, middle)
        setup.start()
        yield setup
        middle.stop()
