"""``restore FILE``: bring a backup back into an empty database."""

from pathlib import Path
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser

from ris_central.backups import restore
from ris_central.config import config
from standards.errors import RegisError

JUST_MADE = "django.key"
"""On a new machine this very command has made one by starting: it opens nothing yet."""


class Command(BaseCommand):
    """Restore the centre."""

    help = "Restore FILE into a database without tables; run migrate afterwards, then start the centre."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """FILE."""
        parser.add_argument("file", type=Path)
        parser.add_argument("--replace-secrets", action="store_true", help="overwrite secret files that are there")

    def handle(self, *args: Any, **options: Any) -> None:
        """Restore, or say in one sentence why not. The settings make a Django key at any start: it may be replaced."""
        data_dir = config().data_dir
        present = [path for path in (data_dir / "secrets").glob("*") if not path.name.startswith(".")]
        if options["replace_secrets"] or [path.name for path in present] == [JUST_MADE]:
            for path in present:
                path.replace(path.with_name(f".replaced-{path.name}"))
        try:
            digests = restore(options["file"], config().database_url, data_dir)
        except (RegisError, OSError, psycopg.Error) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{options['file']}: restored the database and {len(digests) - 1} secret files")
