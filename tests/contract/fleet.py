"""A small fleet for contract tests: a centre, an archive and a clinic, and what a test asks them."""

from pathlib import Path

import pytest

from deploy.processes import wait_until
from tests.contract.parts import run
from tests.contract.region import NodeUnderTest, Region, make_series

PATIENT = 240.0


class Fleet:
    """A centre, an archive and a clinic."""

    def __init__(self, made: Region) -> None:
        self.region = made
        self.archive = made.add_node("archive", "archive")
        self.clinic = made.add_node("clinic", "clinic")

    def start(self) -> None:
        codes = self.region.prepare(("centre", "archive", "archive"), ("a", "clinic", "clinic"))
        self.region.start_centre()
        for node in (self.archive, self.clinic):
            self.region.join(node, codes[node.name])
        self.region.start_pacs(self.archive)
        self.archive.gateway.start()
        self.clinic.gateway.start()

    def until(self, ready: object, what: str, seconds: float = PATIENT) -> None:
        try:
            wait_until(ready, seconds, what)  # type: ignore[arg-type]
        except TimeoutError:
            pytest.fail(f"{what}\n{self.region.last_words()}")

    def key_at_centre(self, node: NodeUnderTest) -> str:
        return str(self.region.ask("SELECT public_key FROM federation_node WHERE name = %s", node.name)[0][0])

    def key_of(self, node: NodeUnderTest) -> str:
        return str(
            run(
                ["-c", "import sys; from pathlib import Path; from gateway.keys import node_key, public_text\n"
                 "print(public_text(node_key(Path(sys.argv[1]))))", str(node.directory)],
                node.environment,
            ).stdout.strip()
        )  # fmt: skip

    def mirrored(self, study: str, count: int) -> bool:
        rows = self.clinic.query("SELECT status FROM gateway_delivery WHERE study_instance_uid = ?", study)
        return [row[0] for row in rows] == ["receipted"] * count

    def heard_since(self, node: NodeUnderTest, moment: float) -> bool:
        seen = self.region.ask(
            "SELECT extract(epoch FROM last_seen_at) FROM federation_node WHERE name = %s", node.name
        )
        return seen[0][0] is not None and float(str(seen[0][0])) > moment

    def send_study(self, folder: Path, count: int = 3) -> tuple[str, list[str]]:
        study, uids = make_series(count, folder)
        self.region.take_in(self.clinic, folder)
        return study, uids

    def all_known_at_centre(self, study: str, count: int) -> bool:
        rows = self.region.ask(
            "SELECT instances_known, instances_safe FROM catalogue_study WHERE study_instance_uid = %s", study
        )
        return rows == [(count, count)]
