"""``commit AE STUDY``: ask an archive by storage commitment whether it has a study safe."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.dimse import commitment
from pacs_node.dimse.models import Commitment
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError


class Command(BaseCommand):
    """Ask an application entity of the registry for storage commitment of a study, and print what it says."""

    help = "Ask an application entity of the registry for storage commitment of a study."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Whom, for what, and how long to wait."""
        parser.add_argument("ae_title")
        parser.add_argument("study_instance_uid")
        parser.add_argument("--wait", type=float, default=120, help="seconds to wait for the report; 0: do not wait")

    def handle(self, *args: Any, **options: Any) -> None:
        """Have the running node ask; it tries for a week, also after this command has ended."""
        rows = Instance.objects.filter(
            series__study__study_instance_uid=options["study_instance_uid"], is_variant=False
        ).values_list("sop_class_uid", "sop_instance_uid")
        try:
            asked = commitment.ask(options["ae_title"], list(rows))
        except PermanentError as error:
            raise CommandError(f"No instances of {options['study_instance_uid']} are known here.") from error
        deadline = time.monotonic() + options["wait"]
        while asked.status not in (Commitment.Status.DONE, Commitment.Status.FAILED) and time.monotonic() < deadline:
            time.sleep(0.2)
            asked.refresh_from_db()
        if asked.status != Commitment.Status.DONE or asked.result is None:
            raise CommandError(f"No report yet of transaction {asked.transaction_uid}. {asked.last_error}".strip())
        for _, sop_instance_uid, reason in asked.result["failed"]:
            self.stdout.write(f"{sop_instance_uid} failed: {reason:04X}")
        total = len(asked.result["committed"]) + len(asked.result["failed"])
        self.stdout.write(f"{len(asked.result['committed'])} of {total} are safe at {asked.ae_title}.")
        if asked.result["failed"]:
            raise CommandError("Not all of it is safe.")
