"""``proxy check RULES``: what a rules file would do to stored studies. ``proxy missing``: what was never tapped, and
``proxy fetch``: fetch it."""

from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Literal

from django.core.management.base import BaseCommand, CommandError

from gateway.proxy import dry_run, journal, rules
from gateway.proxy.conditions import Sender
from gateway.proxy.dry_run import Report
from gateway.proxy.rules import Rules
from pacs_node.config import config
from pacs_node.dimse.catching_up import catch_up, old_pacs
from pacs_node.proxying import folder, pseudonym_secret
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError, RegisError


class Command(BaseCommand):
    """Try the rules of the in-line proxy; nothing is changed or sent."""

    help = "Try a rules file of the in-line proxy on stored studies or a folder; list what passed and was not tapped."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to do, and on which instances."""
        actions = parser.add_subparsers(dest="action", required=True)
        check = actions.add_parser("check", help="say which rule fits each instance and what would change")
        check.add_argument("rules", type=Path)
        check.add_argument("folder", type=Path, nargs="?", help="files to try it on, instead of stored studies")
        check.add_argument("--studies", nargs="+", default=[], metavar="UID")
        check.add_argument("--since", type=date.fromisoformat, metavar="YYYY-MM-DD", help="what came since that day")
        check.add_argument("--calling", default="", help="as if this AE title had sent it")
        check.add_argument("--called", default="")
        check.add_argument("--address", default="")
        fetch = actions.add_parser("fetch", help="fetch from the old PACS what passed and was not copied")
        fetch.add_argument("ae_title", help="of the old PACS")
        fetch.add_argument("--by", choices=["c-get", "c-move"], default="c-get", help="c-move: it must know this node")
        actions.add_parser("missing", help="one line for each instance or time in which copies were not made")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print it."""
        if options["action"] == "missing":
            self._missing()
            return
        if options["action"] == "fetch":
            self._fetch(options["ae_title"], options["by"])
            return
        try:
            found = rules.load(options["rules"])
        except (PermanentError, OSError) as error:
            raise CommandError(error.detail if isinstance(error, PermanentError) else str(error)) from error
        self.stdout.write(f"The file holds together: {len(found.rules)} rules.")
        if options["folder"] is not None and not options["folder"].exists():
            raise CommandError(f"{options['folder']} is not there")
        reports = list(self._reports(found, options))
        for line in dry_run.told(reports):
            self.stdout.write(line)
        tried = {report.study_instance_uid for report in reports}
        for study in sorted({*options["studies"]} - tried):
            self.stderr.write(f"Nothing is stored of study {study}")
        if not reports:
            self.stdout.write("There was nothing to try it on.")

    def _reports(self, found: Rules, options: dict[str, Any]) -> Iterator[Report]:
        secret = pseudonym_secret(config()).encode()
        override = Sender(options["calling"], options["called"], options["address"])
        for name, opened in _files(options):
            try:
                with opened() as file:
                    yield dry_run.examine(file, found, secret, override)
            except (RegisError, OSError) as error:
                self.stderr.write(f"{name}: {error}")

    def _fetch(self, ae_title: str, retrieve: Literal["c-get", "c-move"]) -> None:
        try:
            for sentence in catch_up(old_pacs(ae_title, retrieve)):
                self.stdout.write(sentence)
        except RegisError as error:
            raise CommandError(f"The old PACS: {error}. Nothing is settled; try again.") from error
        left, _ = journal.unsettled(folder(), "missing")
        self.stdout.write(f"{len(left)} lines are left.")

    def _missing(self) -> None:
        for line in journal.lines(folder(), "missing"):
            where = line.get("sop_instance_uid") or line.get("address") or "?"
            self.stdout.write(f"{line['at']} {line.get('calling_ae_title', '')} {where}: {line['reason']}")


def _files(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if options["folder"] is not None:
        yield from (
            (str(path), lambda path=path: path.open("rb"))
            for path in sorted(options["folder"].rglob("*"))
            if path.is_file()
        )
        return
    stored = Instance.objects.filter(is_variant=False, released_at=None).order_by("series__study", "series", "pk")
    if options["studies"]:
        stored = stored.filter(series__study__study_instance_uid__in=options["studies"])
    if options["since"]:
        stored = stored.filter(created_at__date__gte=options["since"])
    for path in stored.values_list("path", flat=True).iterator():
        yield path, lambda path=path: storage().open(path)
