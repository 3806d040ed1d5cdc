"""``remove_pixels STUDY``: images go; the study, its reports and its key images stay."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.study_index.removing_pixels import plan_removal, remove_pixels
from standards.errors import RegisError


class Command(BaseCommand):
    """Remove the images of a study that no Key Object Selection refers to."""

    help = "Remove the images of a study; the study, reports and key images stay. recall --removed undoes it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which, whether only to say, and whether even without another copy."""
        parser.add_argument("study_instance_uid")
        parser.add_argument("--dry-run", action="store_true", help="only say what would go")
        parser.add_argument("--even-the-last-copy", action="store_true", help="also what nobody else has: it is lost")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say or do it."""
        uid = options["study_instance_uid"]
        try:
            if options["dry_run"]:
                removal = plan_removal(uid)
            else:
                removal = remove_pixels(uid, even_the_last_copy=options["even_the_last_copy"])
        except RegisError as error:
            raise CommandError(str(error)) from error
        what = "would go" if options["dry_run"] else "are gone"
        self.stdout.write(
            f"{len(removal.goes)} images ({removal.size / 1e6:.1f} MB) {what}; "
            f"{len(removal.key_images)} key images and {len(removal.without_pixels)} reports and other objects stay."
        )
