"""``import DIR``: take an existing folder of DICOM in."""

import json
from argparse import ArgumentParser
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.study_index.importing import import_folder
from standards.errors import TransientError

_PROGRESS_EVERY = 100


class Command(BaseCommand):
    """Take all DICOM files below a folder in; originals stay, every file is accounted for."""

    help = "Take all DICOM files below a folder in; originals stay, every file is accounted for."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The folder, who is said to have sent it, and where the account goes."""
        parser.add_argument("folder", type=Path)
        parser.add_argument("--source", default="IMPORT", help="AE title to note as the sender")
        parser.add_argument("--character-set", default="", help="what files without (0008,0005) are written in")
        parser.add_argument("--report", type=Path, help="write one JSON line a file here")

    def handle(self, *args: Any, **options: Any) -> None:
        """Import, naming what is refused."""
        folder: Path = options["folder"]
        if not folder.exists():
            raise CommandError(f"There is no {folder}.")
        counts: Counter[str] = Counter()
        lines: list[str] = []
        try:
            for result in import_folder(
                folder, source_ae_title=options["source"], character_set=options["character_set"]
            ):
                counts[result.outcome] += 1
                lines.append(json.dumps({**asdict(result), "path": str(result.path)}, ensure_ascii=False))
                if result.outcome == "refused":
                    self.stderr.write(f"refused {result.path}: {result.code} ({result.detail})")
                if counts.total() % _PROGRESS_EVERY == 0:
                    self.stdout.write(f"{counts.total()} files …")
        except TransientError as error:
            raise CommandError(f"Stopped after {counts.total()} files: {error}. Run it again to go on.") from error
        finally:
            if options["report"]:
                options["report"].write_text("\n".join(lines) + "\n", encoding="utf-8")
        self.stdout.write(
            f"{counts.total()} files: {counts['stored']} stored, {counts['duplicate']} here already, "
            f"{counts['conflict']} kept aside (their UID is used by another content), {counts['refused']} refused."
        )
