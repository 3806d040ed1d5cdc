"""``restore FILE``: bring a backup back into an empty node."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.backup import restore
from standards.errors import RegisError


class Command(BaseCommand):
    """Bring a backup back into an empty node, which then begins a new sequence of events."""

    help = "Bring a backup back into an empty node, which then begins a new sequence of events."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which backup."""
        parser.add_argument("file", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        """Restore it and say what is missing."""
        try:
            restored = restore(options["file"])
        except RegisError as error:
            raise CommandError(str(error)) from error
        for path in restored.missing:
            self.stderr.write(f"the storage does not hold {path}")
        self.stdout.write(
            f"Restored; the backup names {restored.instances} instances, {len(restored.missing)} of them are missing; "
            f"{restored.index.added} newer ones were found on the storage."
        )
        if restored.missing:
            raise CommandError("Copy the storage back and run reindex.")
