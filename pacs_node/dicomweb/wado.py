"""WADO-RS: instances and frames, as they are stored or in the transfer syntax that is asked for. Source: PS3.18 10.4"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import structlog
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.views.decorators.http import require_safe

from pacs_node.dicomweb.permissions import Reach, guarded
from pacs_node.dicomweb.qido import accepted, service_root
from pacs_node.dicomweb.retrieval import (
    IMMUTABLE,
    REVALIDATE,
    StoredFile,
    cached,
    etag_of,
    existing,
    files_of,
    header_of,
    not_modified,
    path_of,
    plain_of,
    plain_source,
    table_of,
)
from pacs_node.dicomweb.segments import FileRange, Segment, Segments, SegmentsResponse, ranged
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import FrameTable, read_from_table
from standards.media_types import DICOM, InstanceChoice, Offer, content_type, frame_offers, instance_choice, negotiate
from standards.multipart import OutgoingPart, encode_related, framed, new_boundary
from standards.part10 import Header
from standards.pixels import can_decode, decode_whole
from standards.transcoding import Transcoded, as_explicit, can_be_explicit

log = structlog.get_logger()

EXPLICIT: Final = transfer_syntaxes.EXPLICIT_VR_LITTLE_ENDIAN
_MOST_FRAMES: Final = 10_000


# Instances


def transcodable(transfer_syntax: str) -> bool:
    """Whether objects so stored can be given in Explicit VR Little Endian."""
    return can_be_explicit(transfer_syntax) and can_decode(transfer_syntax)


def explicit_chunks(instance: StoredFile) -> Transcoded:
    """The instance in Explicit VR Little Endian. Raises: PermanentError, see ``transcoding.as_explicit``."""
    header = header_of(instance)
    file = storage().open(instance.path)
    try:
        made = as_explicit(file, header)
    except BaseException:
        file.close()
        raise

    def chunks() -> Iterator[bytes]:
        with file:
            yield from made.chunks

    return Transcoded(made.length, chunks())


@require_safe
@guarded("read")
def instances(request: HttpRequest, reach: Reach, **at: str) -> HttpResponseBase:
    """A study, series or instance as Part 10 files, streamed: as stored, or in Explicit VR Little Endian."""
    found = files_of(reach, at)
    syntaxes = {instance.transfer_syntax_uid for instance in found}
    single = len(found) == 1 and "instance" in at
    choice = instance_choice(accepted(request), syntaxes, single=single, transcodable=transcodable)
    if choice is None:
        raise PermanentError(
            "not-acceptable", f"Here there is {DICOM} as stored ({', '.join(sorted(syntaxes))}) or as {EXPLICIT}."
        )
    given = [instance for instance in found if instance.transfer_syntax_uid in choice.syntaxes]
    cache = IMMUTABLE if "instance" in at else REVALIDATE
    etag = etag_of(given, "instances", choice.multipart, sorted(choice.syntaxes.items()))
    if answer := not_modified(request, etag, cache):
        return answer
    if not choice.multipart:
        return cached(single_instance(request, given[0], choice, etag), etag, cache)
    status = 200 if len(given) == len(found) else 206  # PS3.18 10.4.3: some have no acceptable form
    return cached(_multipart(request, given, choice, status), etag, cache)


def single_instance(request: HttpRequest, instance: StoredFile, choice: InstanceChoice, etag: str) -> HttpResponseBase:
    """A Part 10 file by itself, with ranges where it is as stored. Raises: PermanentError when it cannot be decoded."""
    wanted = choice.syntaxes[instance.transfer_syntax_uid]
    if wanted != instance.transfer_syntax_uid:
        try:
            made = explicit_chunks(instance)
        except PermanentError:
            if choice.strict:
                raise
        else:
            response = StreamingHttpResponse(made.chunks, content_type=f"{DICOM}; transfer-syntax={EXPLICIT}")
            response["Content-Length"] = str(made.length)
            return response
    kind = f"{DICOM}; transfer-syntax={instance.transfer_syntax_uid}"
    return ranged(request, Segments([FileRange(instance.path, 0, instance.size)]), kind, etag)


def _multipart(request: HttpRequest, given: list[StoredFile], choice: InstanceChoice, status: int) -> HttpResponseBase:
    root, boundary = service_root(request), new_boundary()
    sent = {choice.syntaxes[instance.transfer_syntax_uid] for instance in given}
    kind = content_type(Offer(DICOM, next(iter(sent)) if len(sent) == 1 else "", multipart=True), boundary)
    if all(stored == wanted for stored, wanted in choice.syntaxes.items()):
        parts: list[Segment] = []
        for instance in given:
            parts += framed(_part_headers(root, instance, instance.transfer_syntax_uid), boundary, first=not parts)
            parts.append(FileRange(instance.path, 0, instance.size))
        parts.append(f"\r\n--{boundary}--\r\n".encode("ascii"))
        return SegmentsResponse(Segments(parts), content_type=kind, status=status)
    body = encode_related(_parts(root, given, choice), boundary)
    return StreamingHttpResponse(body, content_type=kind, status=status)


def _part_headers(root: str, instance: StoredFile, transfer_syntax: str) -> dict[str, str]:
    return {
        "Content-Type": f"{DICOM}; transfer-syntax={transfer_syntax}",
        "Content-Location": root + instance.place,
    }


def _parts(root: str, given: list[StoredFile], choice: InstanceChoice) -> Iterator[OutgoingPart]:
    for instance in given:
        wanted = choice.syntaxes[instance.transfer_syntax_uid]
        if wanted != instance.transfer_syntax_uid:
            try:
                made = explicit_chunks(instance)
            except PermanentError as error:
                # One picture that cannot be decoded never stops the rest of its study.
                log.warning("dicomweb.not_transcoded", instance=instance.pk, code=error.code)
                if choice.strict:
                    continue
            else:
                yield OutgoingPart(_part_headers(root, instance, wanted), made.chunks)
                continue
        stored = Segments([FileRange(instance.path, 0, instance.size)])
        yield OutgoingPart(_part_headers(root, instance, instance.transfer_syntax_uid), stored)


# Frames


def frame_numbers(text: str, count: int) -> list[int]:
    """Frame indices from 0 of a path segment like ``1,3``.

    Raises: PermanentError "invalid-parameter", "no-such-frame".
    """
    parts = text.replace("%2C", ",").replace("%2c", ",").split(",")
    if len(parts) > _MOST_FRAMES or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise PermanentError("invalid-parameter", "Frames are numbers from 1, parted by commas.")
    numbers = [int(part) for part in parts]
    for number in numbers:
        if not 1 <= number <= count:
            raise PermanentError("no-such-frame", f"The object has frames 1 to {count}, not {number}.")
    return [number - 1 for number in numbers]


def native_frame(instance: Instance, header: Header, table: FrameTable, index: int) -> bytes:
    """A frame decoded to little-endian bytes, single bits packed. Raises: PermanentError("cannot-decode")."""
    with plain_of(instance, header) as plain:
        frame = decode_whole(read_from_table(plain, table, index), header)[0]
    if int(header.dataset.get("BitsAllocated") or 8) == 1:
        return np.packbits(frame, bitorder="little").tobytes()
    return frame.tobytes()


def stored_frame(instance: Instance, header: Header, table: FrameTable, index: int) -> list[Segment]:
    """A frame as it is stored, by its place in the file where it lies there as it is. Raises: PermanentError."""
    if table.is_direct:
        source = plain_source(instance, header)
        return [FileRange(source, offset, length) for offset, length in table.ranges(index)]
    with plain_of(instance, header) as plain:
        return [read_from_table(plain, table, index)]


def offer_for_frames(accept: str | None, stored: str, *, single: bool) -> Offer | None:
    """How a frame stored in this syntax is given to who accepts this; None where nothing fits."""
    offers = frame_offers(stored, decodable=not transfer_syntaxes.is_video(stored))
    if single:
        offers += [Offer(offer.type, offer.transfer_syntax, stored=offer.stored) for offer in offers]
    # octet-stream alone means native bytes (PS3.18 8.7.3.3); a codec's own media type needs no transfer syntax.
    return negotiate(accept, offers, default_transfer_syntax=EXPLICIT) or negotiate(accept, offers)


@require_safe
@guarded("read")
def frames(request: HttpRequest, reach: Reach, study: str, series: str, instance: str, frames: str) -> HttpResponseBase:
    """Frames as stored, or decoded to native little-endian bytes where that is asked for; multipart or single."""
    found = existing(reach, study, series, instance)[0]
    header = header_of(found)
    if header.pixel_offset is None:
        raise PermanentError("no-pixel-data", "This object has no image.")
    stored = header.transfer_syntax
    table = table_of(found, header)
    wanted = frame_numbers(frames, table.count)
    offer = offer_for_frames(accepted(request), stored, single=len(wanted) == 1)
    if offer is None:
        kinds = sorted({o.type for o in frame_offers(stored, decodable=not transfer_syntaxes.is_video(stored))})
        raise PermanentError("not-acceptable", f"Here there is {', '.join(kinds)}.")
    etag = etag_of([found], "frames", frames, offer)
    if answer := not_modified(request, etag, IMMUTABLE):
        return answer
    boundary = new_boundary()
    kind = content_type(offer, boundary)
    if offer.stored:
        parts: list[Segment] = []
        for place, index in enumerate(wanted):
            if offer.multipart:
                parts += framed(_frame_headers(request, found, offer, index), boundary, first=place == 0)
            parts += stored_frame(found, header, table, index)
        if not offer.multipart:
            return cached(ranged(request, Segments(parts), kind, etag), etag, IMMUTABLE)
        parts.append(f"\r\n--{boundary}--\r\n".encode("ascii"))
        return cached(SegmentsResponse(Segments(parts), content_type=kind), etag, IMMUTABLE)
    # What cannot be decoded becomes a 406 while there still is a status to choose.
    first = native_frame(found, header, table, wanted[0])
    if not offer.multipart:
        return cached(HttpResponse(first, content_type=kind), etag, IMMUTABLE)
    decoded = (
        OutgoingPart(
            _frame_headers(request, found, offer, index),
            first if place == 0 else native_frame(found, header, table, index),
        )
        for place, index in enumerate(wanted)
    )
    response = StreamingHttpResponse(encode_related(decoded, boundary), content_type=kind)
    return cached(response, etag, IMMUTABLE)


def _frame_headers(request: HttpRequest, instance: Instance, offer: Offer, index: int) -> dict[str, str]:
    return {
        "Content-Type": f"{offer.type}; transfer-syntax={offer.transfer_syntax}",
        "Content-Location": f"{service_root(request)}{path_of(instance)}/frames/{index + 1}",
    }
