"""``tier``: let old studies leave the local disk, or only say which would go, which would stay, and why."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from pacs_node.storage.stores import storage
from pacs_node.storage.watermarks import Space
from pacs_node.study_index import tiering
from pacs_node.study_index.tiering import Verdict


class Command(BaseCommand):
    """Apply the rules of the configuration once."""

    help = "Let studies leave the local disk by age and space, as the rules allow. --dry-run only says what would go."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Only say, or do; and for how much space."""
        parser.add_argument("--dry-run", action="store_true", help="say what would go, what stays and why")
        parser.add_argument("--free", default="", metavar="SPACE", help="have so much free, as 20GB or 15%%")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say a line a study, then do it unless told otherwise."""
        store = storage()
        total, free = store.total_bytes(), store.free_bytes()
        wanted = store.watermarks.wanted(total, free)
        if options["free"]:
            wanted = max(wanted, Space.parse(options["free"]).of(total) - free)
        goes = stays = size = 0
        for verdict in tiering.plan(wanted=wanted):
            self.stdout.write(_line(verdict))
            goes, stays = goes + verdict.goes, stays + (not verdict.goes)
            size += verdict.size if verdict.goes else 0
        self.stdout.write(f"{goes} studies ({size / 1e6:.1f} MB) go, {stays} stay; {wanted / 1e6:.1f} MB are wanted.")
        if not options["dry_run"]:
            if copied := tiering.copy_to_institution(limit=100_000):
                self.stdout.write(f"{copied} instances copied to the institution.")
            studies, freed = tiering.run(wanted=wanted)
            thinned = tiering.thin_institution(limit=100_000)
            self.stdout.write(
                f"{studies} studies left the disk, {freed / 1e6:.1f} MB are free again; "
                f"{thinned} copies left the institution."
            )


def _line(verdict: Verdict) -> str:
    copies = ", ".join(f"{place} (proved {at:%Y-%m-%d})" for place, at in sorted(verdict.copies.items())) or "nowhere"
    return (
        f"{'goes ' if verdict.goes else 'stays'} {verdict.study_instance_uid}: {verdict.why}; {verdict.age_days} days, "
        f"{verdict.instances} instances, {verdict.size / 1e6:.1f} MB, whole copies: {copies}"
        + (", pinned" if verdict.pinned else "")
    )
