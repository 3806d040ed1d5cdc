"""Peers that send broken objects or lie in their messages, over real sockets against a real node."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from standards import upper_layer
from tests.node.conftest import NodeProcess
from tests.node.hostile_peers import (
    BOTH,
    MIXED,
    explicit,
    lines_of,
    made,
    traces,
)
from tests.node.raw_association import (
    BIG_ENDIAN,
    CT,
    DEFLATED,
    EXPLICIT,
    FIND,
    IMPLICIT,
    JPEG_LS,
    MR,
    VERIFICATION,
    Context,
    RawAssociation,
    aborted,
    logged,
    store_command,
)

# Objects: the association lives on


def refused(node: NodeProcess, dataset: Any, encoded: bytes, contexts: tuple[Context, ...], **how: Any) -> int:
    """Send it, see that it is refused with one line and without a trace, and that the association goes on."""
    good, sop_class = made(), how.pop("sop_class", CT)
    with logged(node) as log, RawAssociation(node, contexts) as association:
        answer = association.store(sop_class, how.pop("sop_instance", dataset.SOPInstanceUID), encoded, **how)
        assert association.echo() == 0
        assert association.store(CT, good.SOPInstanceUID, explicit(good))["Status"] == 0
        association.release()
    (line,) = lines_of(log)
    assert (line["event"], line["calling_ae_title"]) == ("instance-refused", "MODALITY")
    assert line["code"]
    assert answer["CommandField"] == upper_layer.C_STORE_RQ | upper_layer.RESPONSE
    assert traces(node, dataset.StudyInstanceUID) == []
    assert len(node.held(good.StudyInstanceUID)) == 1
    return int(answer["Status"])


SEQUENCE = struct.pack("<HH2s2xL", 0x0040, 0x0275, b"SQ", 0xFFFFFFFF)
ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)


SHIFTED = struct.pack("<HH2sH16s", 0x20, 0x000E, b"UI", 16, b"SECRETOV^NIKITA ")
ESCAPING = struct.pack("<HH2sH10s", 0x20, 0x000D, b"UI", 10, b"../../../x")


def _deep(depth: int) -> bytes:
    """Sequences of known length, ``depth`` inside each other."""
    inner = b""
    for _ in range(depth):
        item = struct.pack("<HHL", 0xFFFE, 0xE000, len(inner)) + inner
        inner = struct.pack("<HH2s2xL", 0x0040, 0x0275, b"SQ", len(item)) + item
    return inner


def _before_pixels(encoded: bytes, piece: bytes) -> bytes:
    at = encoded.index(b"\xe0\x7f\x10\x00")
    return encoded[:at] + piece + encoded[at:]


MALFORMED: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "nothing": (lambda encoded: b"", 0xC006),
    "a byte": (lambda encoded: b"\x08", 0xC002),
    "cut in the pixels": (lambda encoded: encoded[:-100], 0xC002),
    "10,000 sequences of undefined length": (
        lambda encoded: _before_pixels(encoded, (SEQUENCE + ITEM) * 10_000),
        0xC008,
    ),
    "10,000 sequences of known length": (lambda encoded: _before_pixels(encoded, _deep(10_000)), 0xC008),
    "an undefined length of a short text": (
        lambda encoded: _before_pixels(encoded, struct.pack("<HH2s2xL", 0x0040, 0x1001, b"UC", 0xFFFFFFFF) + b"x" * 50),
        0xC003,
    ),
    "a value of 4 GB": (
        lambda encoded: _before_pixels(encoded, struct.pack("<HH2s2xL", 0x0040, 0x1001, b"UT", 0xFFFFFFFE)),
        0xC002,
    ),
    "a VR that is none": (lambda encoded: encoded.replace(b"\x10\0\x20\0LO", b"\x10\0\x20\0??", 1), 0xC004),
    "a delimiter where nothing is open": (
        lambda encoded: _before_pixels(encoded, struct.pack("<HHL", 0xFFFE, 0xE00D, 0)),
        0xC003,
    ),
    "a Part 10 file in place of its data set": (lambda encoded: bytes(128) + b"DICM" + encoded, 0xC001),
    "meta elements at the head of the data set": (
        lambda encoded: struct.pack("<HH2sH", 2, 0x0010, b"UI", 20) + b"1.2.840.10008.1.2.1\0" + encoded,
        0xC001,
    ),
    "no study UID": (
        lambda encoded: encoded.replace(b"\x20\0\x0d\0UI", b"\x20\0\x0f\0UI", 1),
        0xC006,
    ),
    "a name in place of a UID": (
        lambda encoded: encoded.replace(b"\x20\0\x0e\0UI", SHIFTED + b"\x20\0\x0f\0UI", 1),
        0xC007,
    ),
    "a study UID that leads out of the storage": (
        lambda encoded: encoded.replace(b"\x20\0\x0d\0UI", ESCAPING + b"\x20\0\x0f\0UI", 1),
        0xC007,
    ),
}


@BOTH
@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_data_set_is_refused_by_its_status_and_the_association_lives_on(
    node_process: NodeProcess, what: str, contexts: tuple[Context, ...]
) -> None:
    damage, status = MALFORMED[what]
    dataset = made()
    assert refused(node_process, dataset, damage(explicit(dataset)), contexts) == status


def _encapsulated(encoded: bytes) -> bytes:
    head = encoded[: encoded.index(b"\xe0\x7f\x10\0")]
    frame = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + struct.pack("<HHL", 0xFFFE, 0xE000, 4) + b"\xff\xd8\xff\xd9"
    pixels = struct.pack("<HH2s2xL", 0x7FE0, 0x0010, b"OB", 0xFFFFFFFF)
    return head + pixels + frame + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


LIES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "explicit in an implicit context": (IMPLICIT, lambda encoded: encoded),
    "explicit in a big endian context": (BIG_ENDIAN, lambda encoded: encoded),
    "big endian in an explicit context": (
        EXPLICIT,
        lambda encoded: struct.pack(">HH2sH10s", 8, 5, b"CS", 10, b"ISO_IR 192"),
    ),
    "plain in a deflated context": (DEFLATED, lambda encoded: encoded),
    "native pixels in a JPEG-LS context": (JPEG_LS, lambda encoded: encoded),
    "JPEG-LS in an explicit context": (EXPLICIT, _encapsulated),
    "implicit in an explicit context": (
        EXPLICIT,
        lambda encoded: struct.pack("<HHL", 8, 5, 10) + b"ISO_IR 192" + struct.pack("<HHL", 8, 0x16, 2) + b"1\0",
    ),
}


@BOTH
@pytest.mark.parametrize("what", LIES)
def test_a_data_set_in_another_syntax_than_its_context_is_refused(
    node_process: NodeProcess, what: str, contexts: tuple[Context, ...]
) -> None:
    syntax, lie = LIES[what]
    dataset = made()
    encoded = lie(explicit(dataset))
    status = refused(node_process, dataset, encoded, (*contexts, (CT, syntax)), context_id=2 * len(contexts) + 1)
    assert status & 0xF000 == 0xC000


@BOTH
def test_a_deflated_data_set_that_becomes_too_long_is_refused_by_name(
    make_node: Callable[..., NodeProcess], contexts: tuple[Context, ...]
) -> None:
    node = make_node(REGIS_NODE_LARGEST_INFLATED_BYTES=str(1 << 20))
    dataset, packer = made(PixelData=bytes(4 << 20), Rows=1024, Columns=2048), zlib.compressobj(wbits=-15)
    bomb = packer.compress(explicit(dataset)) + packer.flush()
    assert len(bomb) < 1 << 14
    status = refused(node, dataset, bomb, (*contexts, (CT, DEFLATED)), context_id=2 * len(contexts) + 1)
    assert status == 0xC003
    assert "length-out-of-bounds" in node.log.read_text(encoding="utf-8")


@BOTH
@pytest.mark.parametrize(
    ("sop_class", "context", "status"),
    [(CT, MR, 0xA900), (MR, CT, 0xA900), (CT, VERIFICATION, 0xA900), (FIND, CT, 0x0122), ("1.2.3", CT, 0x0122)],
)
def test_a_class_other_than_that_of_its_context_is_refused(
    node_process: NodeProcess, sop_class: str, context: str, status: int, contexts: tuple[Context, ...]
) -> None:
    dataset = made()
    offered = (*contexts, (MR, EXPLICIT))
    context_id = 2 * [abstract for abstract, _ in offered].index(context) + 1
    encoded = explicit(dataset)
    assert refused(node_process, dataset, encoded, offered, sop_class=sop_class, context_id=context_id) == status


@BOTH
@pytest.mark.parametrize("uid", ["", "../../../etc/x", "1.2." + "3" * 80, "SECRETOV^NIKITA", "9" * 60_000])
def test_an_instance_uid_that_is_none_is_refused_and_not_told(
    node_process: NodeProcess, uid: str, contexts: tuple[Context, ...]
) -> None:
    dataset = made()
    if contexts is MIXED and not 0 < len(uid) <= 64:  # pynetdicom cannot answer to such a one
        with logged(node_process) as log, RawAssociation(node_process, contexts) as association:
            association.plain.sendall(upper_layer.message(1, store_command(CT, uid)))
            assert aborted(association.plain) == (2, upper_layer.INVALID_PARAMETER_VALUE)
        (line,) = lines_of(log)
        assert (line["event"], line["code"]) == ("association-ended", "invalid-command")
        return
    status = refused(node_process, dataset, explicit(dataset), contexts, sop_instance=uid)
    assert status in (0xA900, 0xC006, 0xC007)
