"""``admit AE``: let an application entity in."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from pacs_node.clinic import actions


class Command(BaseCommand):
    """Let an application entity talk to this node."""

    help = "Let an application entity talk to this node."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The AE title and, for a C-MOVE destination, its address."""
        parser.add_argument("ae_title")
        parser.add_argument("--host", default="", help="where C-MOVE sends to")
        parser.add_argument("--port", type=int, default=0)
        parser.add_argument("--character-set", default="", help="what the device reads, as ISO_IR 144")

    def handle(self, *args: Any, **options: Any) -> None:
        """Admit it."""
        entity = actions.admit(
            options["ae_title"],
            actor="command line",
            host=options["host"],
            port=options["port"],
            character_set=options["character_set"],
        )
        self.stdout.write(f"{entity.ae_title} may store, query and retrieve here.")
