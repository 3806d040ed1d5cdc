"""``backup FILE``: one archive from which this node can be brought back."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand

from pacs_node.backup import backup


class Command(BaseCommand):
    """Back the node up while it serves. The archive holds secrets: keep it private."""

    help = "Back the node up while it serves. The archive holds secrets: keep it private."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where to, and whether instances go with it."""
        parser.add_argument("file", type=Path)
        parser.add_argument("--with-instances", action="store_true", help="put the stored files into it too")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write it."""
        count = backup(options["file"].absolute(), with_instances=options["with_instances"])
        also = "and holds them" if options["with_instances"] else "and does not hold them"
        self.stdout.write(f"{options['file']} is written; it names {count} instances {also}.")
