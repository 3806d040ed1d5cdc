"""``verify``: re-hash what is stored, heal what is damaged, explain what lies about."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from pacs_node.storage.models import Finding
from pacs_node.study_index.rounds import Pace, begin_round, current_round, end_round, note
from pacs_node.study_index.verifying import SETTLED_SECONDS, Step, verify


class Command(BaseCommand):
    """Compare files, index and journals; exits 1 when something is wrong that could not be mended."""

    help = "Re-hash what is stored, heal what is damaged from other copies, explain what lies about. May run any time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """How fast, and whether one round is enough."""
        parser.add_argument("--pace", type=float, default=0.0, metavar="MB/s", help="0, the default: unbounded")
        parser.add_argument(
            "--once", action="store_true", help="one round over everything, from the start: the default"
        )
        parser.add_argument("--for-ever", action="store_true", help="round after round, from where the last one ended")
        parser.add_argument(
            "--settled",
            type=float,
            default=SETTLED_SECONDS,
            metavar="SECONDS",
            help="leave younger files that the index does not know to the process that brings them; 0 when none runs",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Walk, printing each finding; with --for-ever going on where the last walk ended, and again."""
        pace, since, once = Pace(options["pace"]), timezone.now(), not options["for_ever"]
        while True:
            round_ = begin_round() if once or not current_round().after else current_round()
            done: list[Step] = []
            for step in verify(round_.after, settled_seconds=options["settled"]):
                done.append(step)
                if step.study:
                    note(round_, done)
                    done = []
                pace.keep(step.size)
            note(round_, done)
            end_round(round_)
            round_ = current_round()
            self._report(since)
            self.stdout.write(f"{round_.files} files, {round_.size / 1e6:.1f} MB read.")
            if once:
                break
            since = timezone.now()
        if Finding.objects.filter(resolved_at=None).exists():
            raise CommandError("The storage is not as it should be; the lines above say where.")

    def _report(self, since: Any) -> None:
        for finding in Finding.objects.filter(resolved_at__gte=since).order_by("pk"):
            self.stdout.write(f"{finding.kind}: {finding.path}: {finding.detail}: {finding.resolution}")
        for finding in Finding.objects.filter(resolved_at=None).order_by("pk"):
            self.stderr.write(f"{finding.kind}: {finding.path}: {finding.detail}")
