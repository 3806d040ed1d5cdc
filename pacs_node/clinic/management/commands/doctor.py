"""``doctor``: what is wrong with this node, in sentences."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.doctor import findings


class Command(BaseCommand):
    """Check the node and say what is wrong; exits 1 when something is."""

    help = "Check the node and say what is wrong; exits 1 when something is."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Print every finding."""
        found = findings()
        for finding in found:
            self.stdout.write(f"{'ok   ' if finding.well else 'WRONG'} {finding.sentence}")
        if not all(finding.well for finding in found):
            raise CommandError("Something needs a person.")
