"""Taking instances in: durable first, then indexed, then answered."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, cast

import structlog
from django.db import IntegrityError, OperationalError, transaction
from django.utils import timezone

from gateway.together import Together
from pacs_node.config import config, storage_sop_classes
from pacs_node.storage.incoming import Incoming
from pacs_node.storage.layout import instance_key, is_recompressed, is_variant, variant_key
from pacs_node.storage.stores import storage
from pacs_node.study_index.attributes import IndexRows, index_rows
from pacs_node.study_index.copies import adopt, as_received, former_paths, note_recompressed
from pacs_node.study_index.counts import recount
from pacs_node.study_index.indexing import Entry, commit
from pacs_node.study_index.models import Instance
from pacs_node.study_index.recalling import take_back
from pacs_node.study_index.snapshots import let_go_lines
from standards.digests import Digests, dataset_sha256, frames_sha256, pixel_sha256
from standards.errors import PermanentError, TransientError, trouble_of_database
from standards.part10 import Header, Provenance, dataset_offset, read_header, write_file_meta
from standards.recompression import received
from standards.transfer_syntaxes import is_encapsulated

log = structlog.get_logger(__name__)

Outcome = Literal["stored", "duplicate", "conflict"]
_COPY_BYTES: Final = 1 << 20
# Two senders of one instance take turns; the unique constraints decide between processes.
_turns = [threading.Lock() for _ in range(256)]


@dataclass(frozen=True)
class Ingested:
    """An instance taken in. ``duplicate``: it was here already; ``conflict``: kept aside, its UID is used otherwise."""

    instance_key: int
    outcome: Outcome

    @property
    def instance(self) -> Instance:
        """Its row."""
        return Instance.objects.select_related("series__study").get(pk=self.instance_key)


@dataclass(frozen=True)
class Source:
    """Who brought an instance, and what is assumed where it is silent."""

    ae_title: str
    address: str = ""
    default_character_set: str = ""
    default_issuer: str = ""

    def provenance(self) -> Provenance:
        """As it is written into the stored file, so that files alone restore the index."""
        return Provenance(self.ae_title, config().ae_title, self.default_character_set, self.default_issuer)


def receive(sop_class: str, sop_instance: str, transfer_syntax: str, source: Source) -> Incoming:
    """A file to receive a bare data set into, to be given to :func:`take_in`.

    Raises: PermanentError("invalid-uid"), TransientError("storage-full").
    """
    incoming = storage().receive(write_file_meta(sop_class, sop_instance, transfer_syntax, source.provenance()))
    incoming.transfer_syntax = transfer_syntax
    return incoming


def ingest(
    content: BinaryIO | Path,
    *,
    source_ae_title: str,
    address: str = "",
    expected_sop_class: str | None = None,
    expected_sop_instance: str | None = None,
    transfer_syntax: str | None = None,
    default_character_set: str = "",
    default_issuer: str = "",
) -> Ingested:
    """Take one instance in from a stream or a file (which stays): on return it survives a power cut and is found.

    ``content`` is a Part 10 file or, with ``transfer_syntax``, a bare data set whose SOP UIDs are the expected ones.

    Raises:
        PermanentError: what can never be stored (``standards.part10.read_header``), "sop-class-mismatch",
            "sop-instance-mismatch", "sop-class-not-supported", "transfer-syntax-mismatch".
        TransientError: "storage-full", "database-busy".
    """
    if isinstance(content, Path):
        with content.open("rb") as file:
            return ingest(
                file,
                source_ae_title=source_ae_title,
                address=address,
                expected_sop_class=expected_sop_class,
                expected_sop_instance=expected_sop_instance,
                transfer_syntax=transfer_syntax,
                default_character_set=default_character_set,
                default_issuer=default_issuer,
            )
    source = Source(source_ae_title, address, default_character_set, default_issuer)
    piece = _first(content)
    if transfer_syntax is None:
        start = dataset_offset(piece)
        incoming, piece = storage().receive(piece[:start]), piece[start:]
    else:
        incoming = receive(expected_sop_class or "", expected_sop_instance or "", transfer_syntax, source)
    with incoming:
        while piece:
            incoming.write(piece)
            piece = content.read(_COPY_BYTES)
        return take_in(
            incoming,
            source,
            expected_sop_class=expected_sop_class,
            expected_sop_instance=expected_sop_instance,
            journal=transfer_syntax is None,
        )


def _first(content: BinaryIO) -> bytes:
    """The beginning of a stream, long enough for any file meta group; streams may give less than they are asked for."""
    pieces, length = [], 0
    while length < _COPY_BYTES and (piece := content.read(_COPY_BYTES - length)):
        pieces.append(piece)
        length += len(piece)
    return b"".join(pieces)


@dataclass(frozen=True)
class Described:
    """What a received file says of itself."""

    header: Header
    rows: IndexRows


def _describe(incoming: Incoming, source: Source, *, more_to_come: bool = False) -> Described:
    reader = cast(BinaryIO, incoming.reader())
    reader.seek(incoming.dataset_offset)
    if reader.read(2) == b"\2\0":
        raise PermanentError("not-dicom", "the data set begins with file meta elements, which would change its syntax")
    header = read_header(
        reader,
        incoming.transfer_syntax or None,
        start=incoming.dataset_offset,
        default_charset=source.default_character_set,
        more_to_come=more_to_come,
        max_inflated=config().largest_inflated_bytes,
    )
    return Described(header, index_rows(header, default_issuer=source.default_issuer))


def foresee(incoming: Incoming, source: Source) -> Described | None:
    """What a file of which the beginning is there says of itself, while the peer still sends its pixels.

    It holds if the file ends where it says. None if more is needed; whether the file is sound is not judged here.
    """
    try:
        return _describe(incoming, source, more_to_come=True)
    except PermanentError:
        return None


def take_in(
    incoming: Incoming,
    source: Source,
    *,
    expected_sop_class: str | None = None,
    expected_sop_instance: str | None = None,
    foreseen: Described | None = None,
    journal: bool = False,
) -> Ingested:
    """:func:`ingest` for what has been received; the caller closes ``incoming``.

    ``foreseen``: what :func:`foresee` said. ``journal``: its meta group is the sender's, so the study's journal has to
    say where it came from.
    """
    if foreseen is None or foreseen.header.total_length != incoming.size:
        foreseen = _describe(incoming, source)
    _check(foreseen.header, expected_sop_class, expected_sop_instance)
    foreseen.rows.instance.update(dataset_sha256=incoming.dataset_sha256(), source_ae_title=source.ae_title[:64])
    try:
        with _turns[hash(foreseen.header.sop_instance_uid) % len(_turns)]:
            return _store(incoming, foreseen.header, foreseen.rows, source, journal=journal)
    except OperationalError as error:
        raise trouble_of_database(error) from error


def _check(header: Header, expected_sop_class: str | None, expected_sop_instance: str | None) -> None:
    if expected_sop_class is not None and header.sop_class_uid != expected_sop_class.strip("\0 "):
        raise PermanentError(
            "sop-class-mismatch", f"announced {expected_sop_class}, the data set says {header.sop_class_uid}"
        )
    if expected_sop_instance is not None and header.sop_instance_uid != expected_sop_instance.strip("\0 "):
        raise PermanentError(
            "sop-instance-mismatch", f"announced {expected_sop_instance}, the data set says {header.sop_instance_uid}"
        )
    if header.sop_class_uid not in storage_sop_classes():
        raise PermanentError("sop-class-not-supported", f"{header.sop_class_uid} is not a storage SOP class")
    # PS3.5 A.4: encapsulated if, and only if, the transfer syntax says so. Nobody could show the other.
    lies = header.encapsulated != is_encapsulated(header.transfer_syntax)
    if header.pixel_keyword == "PixelData" and header.pixel_length and lies:
        found = "encapsulated" if header.encapsulated else "native"
        raise PermanentError("transfer-syntax-mismatch", f"{found} pixel data in {header.transfer_syntax}")


def _store(incoming: Incoming, header: Header, rows: IndexRows, source: Source, *, journal: bool) -> Ingested:
    """Give the file its name, then index it. Nearly all are new; what is not costs a second look."""
    key = instance_key(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
    for _ in range(4):
        if journal and not storage().exists(key):  # else the journal, or the file itself, says where that one came from
            storage().append_journal(header.study_instance_uid, _line("stored", key, header, rows, source))
        placed = storage().place(incoming, key)
        if placed:
            entry = Entry(rows, key)
            try:
                commit(entry)
            except IntegrityError:
                log.info("instance-known-elsewhere", sop_instance_uid=header.sop_instance_uid)
            else:
                return Ingested(entry.instance_key, "stored")
        taken = _store_known(incoming, header, rows, source, key)
        if placed and not Instance.objects.filter(path=key).exists():
            storage().remove(key)  # only now: a nameless file that lost its only name cannot get another
        if taken is not None:
            return taken
    raise TransientError("database-busy", "other processes keep storing the same instance")


def _store_known(incoming: Incoming, header: Header, rows: IndexRows, source: Source, key: str) -> Ingested | None:
    """Store where the UID, or only the place of the file, is taken; None when that has just changed."""
    digest = rows.instance["dataset_sha256"]
    known = list(Instance.objects.filter(sop_instance_uid=header.sop_instance_uid))
    same = next((instance for instance in known if instance.dataset_sha256 == digest), None)
    if same is not None:
        take_back(same, incoming)
        return Ingested(same.pk, "duplicate")
    current = next((instance for instance in known if not instance.is_variant), None)
    if current is None:
        _bring_in_unindexed(key)
        return None
    place = variant_key(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid, digest)
    if not storage().place(incoming, place) and _digest_of(place) != digest:
        raise TransientError("storage-damaged", f"{place} lies on the storage with other content")
    line = _line("conflict", place, header, rows, source)
    storage().append_journal(header.study_instance_uid, {**line, "kept_sha256": current.dataset_sha256})
    entry = Entry(rows, place, is_variant=True, conflicts_with=current.dataset_sha256)
    try:
        commit(entry)
    except IntegrityError:
        return None
    return Ingested(entry.instance_key, "conflict")


def _bring_in_unindexed(key: str) -> None:
    """A file that a process placed and did not live to index belongs to the index; a damaged one is set aside."""
    if not storage().exists(key):
        return
    try:
        bring_in(key, {})
    except PermanentError as error:
        log.error("unindexed-file-set-aside", key=key, code=error.code, detail=error.detail)
        storage().set_aside(key)


def _digest_of(key: str) -> str:
    with storage().open(key) as file:
        try:
            return dataset_sha256(file)
        except PermanentError:
            return ""


def _line(kind: str, key: str, header: Header, rows: IndexRows, source: Source) -> dict[str, Any]:
    return {
        "type": kind,
        "at": timezone.now().isoformat(),
        "path": key,
        "series_instance_uid": header.series_instance_uid,
        "sop_instance_uid": header.sop_instance_uid,
        "dataset_sha256": rows.instance["dataset_sha256"],
        "source_ae_title": source.ae_title,
        "address": source.address,
        "default_character_set": source.default_character_set,
        "default_issuer": source.default_issuer,
    }


def bring_in(key: str, came: Mapping[str, dict[str, Any]]) -> bool:
    """Bring one stored file into the index; False when it is there already. ``came``: the journal's lines on arrivals
    under its name, by digest: besides its own those of conflicts, and of what a crash kept from arriving.

    Raises: PermanentError for a damaged file ("digest-mismatch": not what was received),
        TransientError("database-busy").
    """
    with received(storage().open(key)) as file:
        header = read_header(file)
        said, digest = Provenance.of(header.file_meta), dataset_sha256(file)
        if digest not in ([said.dataset_sha256] if said.dataset_sha256 else came or [digest]):
            raise PermanentError("digest-mismatch", "these are not the bytes that were received")
        line = came.get(digest, {})
        source = Source(
            str(line.get("source_ae_title", said.sending_ae_title)),
            str(line.get("address", "")),
            str(line.get("default_character_set", said.default_character_set)),
            str(line.get("default_issuer", said.default_issuer)),
        )
        if source.default_character_set:
            header = read_header(file, default_charset=source.default_character_set)
        pixels = pixel_sha256(file, header)
    if Instance.objects.filter(path=key).exclude(dataset_sha256=digest).exists():
        raise PermanentError("digest-mismatch", "the index has another digest for this file")
    try:
        with transaction.atomic():
            added = index_stored(key, header, dataset_digest=digest, pixel_digest=pixels, source=source)
            if added and is_recompressed(key):
                note_recompressed(key, header)
        return added or adopt(key, header, digest)
    except IntegrityError as error:
        raise PermanentError("uid-in-use", "another file has this SOP Instance UID and other content") from error


def index_stored(key: str, header: Header, *, dataset_digest: str, pixel_digest: str | None, source: Source) -> bool:
    """Bring a file that already lies in the storage into the index (reindex, restore); False when it is there.

    Raises: TransientError("database-busy").
    """
    rows = index_rows(header, default_issuer=source.default_issuer)
    rows.instance.update(dataset_sha256=dataset_digest, pixel_sha256=pixel_digest, source_ae_title=source.ae_title[:64])
    known = Instance.objects.filter(sop_instance_uid=header.sop_instance_uid)
    if known.filter(dataset_sha256=dataset_digest).exists():
        return False
    current = known.filter(is_variant=False).first()
    try:
        commit(Entry(rows, key, is_variant(key), conflicts_with=current.dataset_sha256 if current else ""))
    except OperationalError as error:
        raise trouble_of_database(error) from error
    return True


def release(instances: list[Instance]) -> None:
    """Let go of the files of these instances: journal, index, then the files; the index keeps that they were here."""
    held = [instance for instance in instances if instance.released_at is None]
    by_study: dict[str, list[Instance]] = {}
    for instance in held:
        by_study.setdefault(instance.series.study.study_instance_uid, []).append(instance)
    now = timezone.now()
    stored = [instance.path for instance in instances] + former_paths(held)
    with transaction.atomic():
        as_received(held)
    for study, members in by_study.items():
        storage().append_journal(study, *let_go_lines("released", members, now))
    with transaction.atomic():
        Instance.objects.filter(pk__in=[instance.pk for instance in held]).update(released_at=now)
        recount({instance.series_id for instance in held})
    for path in stored:
        storage().remove(path)


def ensure_digests(instance_key: int) -> Instance:
    """The instance with all its digests; those that cost a second reading are computed on the first call.

    Raises: PermanentError("instance-gone"), TransientError("recall-failed").
    """
    instance = Instance.objects.filter(pk=instance_key).first()
    if instance is None:
        raise PermanentError("instance-gone", f"no instance {instance_key} in the index")
    if not instance.digests_done:
        path = storage().local_path(instance.path)
        with path.open("rb") as file:
            header = read_header(file)
            instance.pixel_sha256 = pixel_sha256(file, header)
        instance.frames_sha256 = frames_sha256(path, header)
        instance.digests_done = True
        keep_digests(instance_key, Digests(instance.dataset_sha256, instance.pixel_sha256, instance.frames_sha256))
    return instance


def keep_digests(instance_key: int, found: Digests) -> None:
    """Keep digests that somebody else computed from the received bytes, so that nobody reads them for it again."""
    _keep_digests((instance_key, found))


def _write_digests(told: list[tuple[int, Digests]]) -> list[None]:
    for key, found in told:
        Instance.objects.filter(pk=key, dataset_sha256=found.dataset, digests_done=False).update(
            pixel_sha256=found.pixels, frames_sha256=found.frames, digests_done=True
        )
    return [None] * len(told)


_keep_digests = Together(_write_digests)
