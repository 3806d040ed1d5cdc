"""``recall STUDY``: bring back to the local disk what left it."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.study_index.recalling import recall_study
from standards.errors import RegisError


class Command(BaseCommand):
    """Fetch a study back from the institution or a peer, every file checked by its digest."""

    help = "Fetch a study back from the institution or a peer, every file checked by its digest."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which, and whether removed pixels too."""
        parser.add_argument("study_instance_uid")
        parser.add_argument("--removed", action="store_true", help="also what was removed by remove_pixels")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, and name what did not come back."""
        try:
            back, failed = recall_study(options["study_instance_uid"])
            if options["removed"]:
                more, missed = recall_study(options["study_instance_uid"], released=True)
                back, failed = back + more, failed + missed
        except RegisError as error:
            raise CommandError(str(error)) from error
        for sentence in failed:
            self.stderr.write(sentence)
        self.stdout.write(f"{back} instances are back.")
        if failed:
            raise CommandError(f"{len(failed)} instances did not come back; the lines above say why.")
