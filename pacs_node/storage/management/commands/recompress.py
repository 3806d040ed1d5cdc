"""``recompress [STUDY]``: bring native images into a lossless encoding now."""

from argparse import ArgumentParser
from collections import Counter
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.config import config
from pacs_node.study_index.recompressing import recompress_one, remove_originals, waiting
from standards.errors import RegisError
from standards.lossless import ENCODINGS


class Command(BaseCommand):
    """Recompress what the configuration names, or one study."""

    help = "Bring native images into a lossless encoding; each is decoded and compared before it replaces anything."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What, and into what."""
        parser.add_argument("study_instance_uid", nargs="?", default="", help="only this study, however young")
        parser.add_argument("--encoding", choices=sorted(ENCODINGS), default=config().recompress or "jpeg-ls")
        parser.add_argument("--originals-now", action="store_true", help="remove the originals' files without delay")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, saying why some are left alone."""
        before = after = done = 0
        reasons: Counter[str] = Counter()
        try:
            while chosen := waiting(options["encoding"], 100, study_instance_uid=options["study_instance_uid"]):
                for instance in chosen:
                    outcome = recompress_one(instance, options["encoding"])
                    before, after = before + outcome.before, after + outcome.after
                    done += not outcome.left_alone
                    if outcome.left_alone:
                        reasons[outcome.left_alone] += 1
        except RegisError as error:
            raise CommandError(str(error)) from error
        remove_originals(1_000_000, **({"grace": timedelta(0)} if options["originals_now"] else {}))
        for reason, count in reasons.most_common():
            self.stdout.write(f"{count} left alone: {reason}")
        self.stdout.write(f"{done} recompressed; {before / 1e6:.1f} MB became {after / 1e6:.1f} MB.")
