"""Restoring the index from the files alone: what the storage holds is the truth, journals say where it came from."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import structlog

from pacs_node.storage.filesystem import storage
from pacs_node.study_index.actions import Source, index_stored
from pacs_node.study_index.models import Instance
from standards.digests import dataset_sha256, pixel_sha256
from standards.errors import PermanentError
from standards.part10 import read_header

log = structlog.get_logger(__name__)


@dataclass
class Report:
    """What a reindex found: counts, files that are not what the journal says, and rows whose file is gone."""

    studies: int = 0
    files: int = 0
    added: int = 0
    damaged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def reindex(report: Report | None = None) -> Iterator[Report]:
    """Bring every stored file into the index; rows that exist keep their keys. Yields progress after each study.

    A damaged file is named and left where it is. A row whose file is gone is named and kept: only people delete.
    """
    report = report or Report()
    for study_instance_uid in storage().study_instance_uids():
        report.studies += 1
        lines = {line["path"]: line for line in storage().journal(study_instance_uid) if line.get("path")}
        for key in storage().keys_of_study(study_instance_uid):
            report.files += 1
            _bring_in(key, lines.get(key, {}), report)
        yield report
    held = Instance.objects.filter(released_at__isnull=True).values_list("path", flat=True)
    report.missing = [path for path in held.iterator() if not storage().exists(path)]
    yield report


def _bring_in(key: str, line: dict[str, Any], report: Report) -> None:
    source = Source(
        str(line.get("source_ae_title", "")),
        str(line.get("address", "")),
        str(line.get("default_character_set", "")),
        str(line.get("default_issuer", "")),
    )
    try:
        with storage().open(key) as file:
            header = read_header(file, default_charset=source.default_character_set)
            digest, pixels = dataset_sha256(file), pixel_sha256(file, header)
        if line.get("dataset_sha256", digest) != digest:
            raise PermanentError("digest-mismatch", "the journal has another digest for this file")
    except PermanentError as error:
        log.error("stored-file-damaged", key=key, code=error.code, detail=error.detail)
        report.damaged.append(f"{key}: {error}")
        return
    report.added += index_stored(key, header, dataset_digest=digest, pixel_digest=pixels, source=source)
