"""``pin STUDY``: keep a study on the local disk whatever the rules say."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.study_index.models import Study
from pacs_node.study_index.tiering import pin


class Command(BaseCommand):
    """Pin a study, or let the rules decide again."""

    help = "Keep a study on the local disk whatever the rules say; --off lets the rules decide again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which, and why."""
        parser.add_argument("study_instance_uid")
        parser.add_argument("--reason", default="", help="why, for those who wonder later")
        parser.add_argument("--off", action="store_true", help="let the rules decide again")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, journalled."""
        uid = options["study_instance_uid"]
        if not Study.objects.filter(study_instance_uid=uid).exists():
            raise CommandError(f"There is no study {uid} in the index.")
        pin(uid, pinned=not options["off"], reason=options["reason"])
        self.stdout.write(f"{uid}: " + ("the rules decide again." if options["off"] else "pinned."))
