"""What all retrievals share: the instances of an address, their headers and frames, and how long answers hold."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

import structlog
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from pacs_node.config import config
from pacs_node.dicomweb.permissions import Reach, study_filter
from pacs_node.dicomweb.queries import held
from pacs_node.dicomweb.segments import open_source, plain_file
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import FrameTable, frame_table
from standards.part10 import Header, inflate, read_header

log = structlog.get_logger()
Answer = TypeVar("Answer", bound=HttpResponseBase)

IMMUTABLE: Final = "private, max-age=31536000, immutable"
REVALIDATE: Final = "private, no-cache"
_INFLATED_BYTES: Final = 2 << 30
_TABLE_ENTRIES: Final = 500_000


def instances_of(reach: Reach, study: str, series: str = "", instance: str = "") -> QuerySet[Instance]:
    """The instances below this path, within reach, in the order of their numbers; variants are never given."""
    found = Instance.objects.filter(
        held(), study_filter(reach, "series__study__"), series__study__study_instance_uid=study
    )
    if series:
        found = found.filter(series__series_instance_uid=series)
    if instance:
        found = found.filter(sop_instance_uid=instance)
    return (
        found.select_related("series__study")
        .defer("attributes", "series__attributes", "series__study__attributes")
        .order_by("series__study_id", "series__series_number", "series_id", "instance_number", "pk")
    )


def existing(reach: Reach, study: str, series: str = "", instance: str = "") -> list[Instance]:
    """:func:`instances_of` as a list. Raises: PermanentError("not-found") when there are none."""
    found = list(instances_of(reach, study, series, instance))
    if not found:
        raise PermanentError("not-found", "This node holds nothing by that address.")
    return found


@dataclass(frozen=True)
class StoredFile:
    """What retrieving needs of an instance; ``place`` is its path below the service root."""

    pk: int
    path: str
    size: int
    transfer_syntax_uid: str
    dataset_sha256: str
    place: str


def files_of(reach: Reach, at: dict[str, str]) -> list[StoredFile]:
    """:func:`instances_of` whose files are here or can be fetched back: one lost file never stops the rest.

    Raises: PermanentError "not-found", "instance-gone" when none is left; TransientError("recall-failed").
    """
    columns = ("pk", "path", "size", "transfer_syntax_uid", "dataset_sha256")
    uids = ("series__study__study_instance_uid", "series__series_instance_uid", "sop_instance_uid")
    rows = instances_of(reach, **at).values_list(*columns, *uids)
    found = [
        StoredFile(pk, path, size, syntax, digest, f"/studies/{study}/series/{series}/instances/{sop}")
        for pk, path, size, syntax, digest, study, series, sop in rows
    ]
    if not found:
        raise PermanentError("not-found", "This node holds nothing by that address.")
    there = [file for file in found if plain_file(file.path) or _fetched(file)]
    if len(there) < len(found):
        log.error("dicomweb.files_missing", missing=len(found) - len(there), of=len(found))
    if not there:
        raise PermanentError("instance-gone", "The files are not on the storage any more.")
    return there


def _fetched(file: StoredFile) -> bool:
    try:
        storage().local_path(file.path)
    except PermanentError:
        return False
    return True


@lru_cache(maxsize=32)
def _header(path: str, _digest: str) -> Header:
    with storage().open(path) as file:
        return read_header(file)


def header_of(instance: Instance | StoredFile) -> Header:
    """The header of an instance; a few are remembered, as the frames of one object are asked for one by one."""
    return _header(instance.path, instance.dataset_sha256)


class _Tables:
    """Frame tables made lately, up to so many fragments in all."""

    def __init__(self) -> None:
        self._entries = 0
        self._tables: OrderedDict[tuple[str, str], FrameTable] = OrderedDict()
        self._lock = threading.Lock()

    def table(self, instance: Instance, header: Header) -> FrameTable:
        key = (instance.path, instance.dataset_sha256)
        with self._lock:
            known = self._tables.get(key)
            if known is not None:
                self._tables.move_to_end(key)
                return known
        with plain_of(instance, header) as plain:
            made = frame_table(plain, header)
        with self._lock:
            if key not in self._tables:
                self._tables[key] = made
                self._entries += _weight(made)
            while self._entries > _TABLE_ENTRIES:
                self._entries -= _weight(self._tables.popitem(last=False)[1])
        return made


def _weight(table: FrameTable) -> int:
    return 20 + (len(table.places) if table.places is not None else 0)


_tables = _Tables()


def table_of(instance: Instance, header: Header) -> FrameTable:
    """Where the frames of an instance lie in its plain stream. Raises as ``frames.frame_table``."""
    return _tables.table(instance, header)


class _Inflated:
    """Deflated data sets, inflated once into files of this process: the frames of one are asked for one by one."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, instance: Instance, header: Header) -> str:
        with self._lock:  # inflating is bound by the processor: two at once would gain nothing
            if self._folder is None:
                self._folder = _own_folder()
            path = os.path.join(self._folder.name, instance.dataset_sha256)
            if instance.dataset_sha256 in self._sizes:
                self._sizes.move_to_end(instance.dataset_sha256)
                return path
            try:
                with storage().open(instance.path) as file, open(path, "wb") as plain:
                    for chunk in inflate(file, header.dataset_offset):
                        plain.write(chunk)
                    self._sizes[instance.dataset_sha256] = plain.tell()
            except BaseException:
                os.unlink(path)
                raise
            while len(self._sizes) > 1 and sum(self._sizes.values()) > _INFLATED_BYTES:
                os.unlink(os.path.join(self._folder.name, self._sizes.popitem(last=False)[0]))
            return path


def _own_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that goes with this process; those of processes that were killed go now."""
    for path in config().data_dir.glob("inflated-*"):
        owner = path.name.split("-")[1]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path, ignore_errors=True)
    config().data_dir.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f"inflated-{os.getpid()}-", dir=config().data_dir)


_inflated = _Inflated()


def plain_source(instance: Instance, header: Header) -> str:
    """Where the header's offsets count, for ``segments.FileRange``: the stored file, or its inflated data set.

    Raises: PermanentError("instance-gone").
    """
    if transfer_syntaxes.is_deflated(header.transfer_syntax):
        return _inflated.path(instance, header)
    if plain_file(instance.path) is None:
        storage().local_path(instance.path)  # fetched back now, or not there: said while there is a status to choose
    return instance.path


@contextmanager
def plain_of(instance: Instance, header: Header) -> Iterator[BinaryIO]:
    """The stream in which the header's offsets count. Raises: PermanentError("instance-gone")."""
    with open_source(plain_source(instance, header)) as file:
        yield file


def not_modified(request: HttpRequest, etag: str, cache: str) -> HttpResponse | None:
    """304 when the client has it."""
    asked = request.headers.get("If-None-Match", "")
    if etag not in asked and asked.strip() != "*":
        return None
    response = HttpResponse(status=304)
    return cached(response, etag, cache)


def cached(response: Answer, etag: str, cache: str) -> Answer:
    """Say how long the answer holds."""
    response["ETag"] = etag
    response["Cache-Control"] = cache
    response["Vary"] = "Accept"
    return response


def etag_of(instances: Iterable[Instance | StoredFile], *what: object) -> str:
    """The ETag of what is made of these instances: it changes with any content and with how it is given."""
    digest = hashlib.sha256(repr(what).encode())
    for instance in instances:
        digest.update(instance.dataset_sha256.encode())
    return f'"{digest.hexdigest()[:32]}"'


def path_of(instance: Instance) -> str:
    """The path of an instance below the service root."""
    series = instance.series
    return (
        f"/studies/{series.study.study_instance_uid}/series/{series.series_instance_uid}"
        f"/instances/{instance.sop_instance_uid}"
    )
