"""``reindex``: restore the index from the stored files."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.study_index.reindexing import Report, reindex


class Command(BaseCommand):
    """Bring every stored file into the index; may run while the node serves."""

    help = "Bring every stored file into the index; may run while the node serves."

    def handle(self, *args: Any, **options: Any) -> None:
        """Reindex and name what is damaged or gone."""
        report = Report()
        for report in reindex():
            if report.studies % 100 == 0:
                self.stdout.write(f"{report.studies} studies, {report.files} files …")
        for damaged in report.damaged:
            self.stderr.write(f"damaged: {damaged}")
        for missing in report.missing:
            self.stderr.write(f"the file is gone: {missing}")
        self.stdout.write(
            f"{report.studies} studies, {report.files} files: {report.added} added to the index, "
            f"{len(report.damaged)} damaged, {len(report.missing)} gone."
        )
        if report.damaged or report.missing:
            raise CommandError("The storage does not hold all that it should; the lines above name it.")
