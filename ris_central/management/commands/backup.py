"""``backup FILE``: the database of one moment and the secret files, in one zip."""

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ris_central.backups import backup
from ris_central.config import config
from standards.errors import RegisError


class Command(BaseCommand):
    """Back the centre up while it runs."""

    help = "Write a backup of the centre to FILE (a zip; keep it safe: it holds the centre's keys)."

    def add_arguments(self, parser: CommandParser) -> None:
        """FILE."""
        parser.add_argument("file", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        """Make it, or say in one sentence why not."""
        try:
            digests = backup(config().database_url, config().data_dir, options["file"])
        except (RegisError, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"{options['file']}: database and {len(digests) - 1} secret files")
