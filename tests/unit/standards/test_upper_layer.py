"""P-DATA-TF framing and command sets: pynetdicom reads what is written and the other way round; lies are named."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from functools import partial
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pynetdicom.dsutils import decode, encode
from pynetdicom.pdu import A_ABORT_RQ, A_RELEASE_RP, A_RELEASE_RQ, P_DATA_TF

from standards import upper_layer
from standards.errors import PermanentError, TransientError
from standards.upper_layer import DATASET_FOLLOWS, NO_DATASET, decode_command, encode_command, pdvs

COMMANDS = st.fixed_dictionaries(
    {"CommandField": st.integers(0, 0xFFFF), "CommandDataSetType": st.sampled_from([NO_DATASET, DATASET_FOLLOWS])},
    optional={
        "MessageID": st.integers(0, 0xFFFF),
        "AffectedSOPClassUID": st.from_regex(r"[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){1,6}", fullmatch=True),
        "MoveDestination": st.from_regex(r"[A-Z]([A-Z_ ]{0,14}[A-Z])?", fullmatch=True),
        "ErrorComment": st.from_regex(r"[a-z]([a-z :]{0,62}[a-z])?", fullmatch=True),
        "AttributeIdentifierList": st.lists(st.integers(0, 0xFFFFFFFF), min_size=2, max_size=4),
        "NumberOfFailedSuboperations": st.integers(0, 0xFFFF),
    },
)


def _refusal(action: Callable[[], object]) -> str:
    """The code of the PermanentError that ``action`` raises, "" when it raises none; any other error fails the test."""
    try:
        action()
    except PermanentError as error:
        return error.code
    return ""


@given(COMMANDS)
def test_a_command_set_is_read_as_it_was_written_by_us_and_by_pynetdicom(command: dict[str, object]) -> None:
    encoded = encode_command(command)
    assert decode_command(encoded) == command
    theirs = decode(BytesIO(encoded), True, True)
    for keyword, value in command.items():
        assert (list(theirs[keyword].value) if isinstance(value, list) else theirs[keyword].value) == value


def test_a_command_set_of_pynetdicom_is_read() -> None:
    theirs = Dataset()
    theirs.CommandGroupLength = 0
    theirs.CommandField, theirs.CommandDataSetType, theirs.Status = 0x8001, NO_DATASET, 0xA700
    theirs.AffectedSOPInstanceUID = "1.2.3"
    encoded = encode(theirs, True, True)
    assert encoded is not None
    assert decode_command(encoded) == {
        "CommandField": 0x8001,
        "CommandDataSetType": NO_DATASET,
        "Status": 0xA700,
        "AffectedSOPInstanceUID": "1.2.3",
    }


@given(st.binary(max_size=200))
def test_a_command_set_of_rubbish_is_read_or_refused_by_name(data: bytes) -> None:
    assert _refusal(lambda: decode_command(data)) in ("", "invalid-command")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\0\0\0\1\2\0", "breaks off"),
        (struct.pack("<HHL", 0, 0x0100, 0xFFFFFFFF), "longer than"),
        (struct.pack("<HHL", 8, 0x0100, 2) + b"\1\0", "group 0008"),
        (struct.pack("<HHL", 0, 0x0100, 4) + b"\1\0\0\0", "CommandField has 4 bytes"),
        (b"", "CommandField is missing"),
    ],
)
def test_a_lying_command_set_is_refused_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(PermanentError, match=why):
        decode_command(data)


@given(st.integers(0, 127), st.binary(max_size=300), st.integers(8, 64), st.booleans())
def test_fragments_fit_the_peers_pdus_and_join_to_the_data(
    number: int, data: bytes, largest: int, is_command: bool
) -> None:
    context_id = 2 * number + 1
    pieces = []
    for pdu in upper_layer.fragments(context_id, data, largest, is_command=is_command):
        kind, length = struct.unpack(">BxL", pdu[:6])
        assert (kind, length) == (upper_layer.P_DATA_TF, len(pdu) - 6)
        assert length <= largest
        theirs = P_DATA_TF()
        theirs.decode(pdu)
        (item,) = theirs.presentation_data_value_items
        (ours,) = pdvs(pdu[6:])
        assert item.presentation_context_id == ours.context_id == context_id
        assert item.presentation_data_value[1:] == bytes(ours.data)
        assert ours.is_command is is_command
        pieces.append(ours)
    assert b"".join(bytes(piece.data) for piece in pieces) == data
    assert [piece.is_last for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@given(st.binary(max_size=60))
def test_fragments_of_rubbish_are_read_within_bounds_or_refused_by_name(payload: bytes) -> None:
    sizes: list[int] = []
    if refusal := _refusal(lambda: sizes.extend(len(piece.data) + 6 for piece in pdvs(payload))):
        assert refusal == "invalid-pdu"
    else:
        assert sum(sizes) == len(payload)


def test_an_unlimited_peer_gets_large_pdus_and_a_small_one_even_pieces() -> None:
    assert upper_layer.fragment_bytes(0) == (1 << 20) - 6
    assert upper_layer.fragment_bytes(0xFFFFFFFF) == (1 << 20) - 6
    assert upper_layer.fragment_bytes(16384) == 16378
    assert upper_layer.fragment_bytes(16383) == 16376
    assert upper_layer.fragment_bytes(1) == 2


def test_release_and_abort_are_those_of_pynetdicom() -> None:
    A_RELEASE_RQ().decode(upper_layer.RELEASE_RQ_PDU)
    assert A_RELEASE_RQ().encode() == upper_layer.RELEASE_RQ_PDU
    assert A_RELEASE_RP().encode() == upper_layer.RELEASE_RP_PDU
    theirs = A_ABORT_RQ()
    theirs.decode(upper_layer.abort(2, upper_layer.UNEXPECTED_PDU))
    assert (theirs.source, theirs.reason_diagnostic) == (2, upper_layer.UNEXPECTED_PDU)
    assert theirs.encode() == upper_layer.abort(2, upper_layer.UNEXPECTED_PDU)


def test_a_pdu_is_read_whole_however_it_dribbles_in() -> None:
    ours, theirs = socket.socketpair()
    pdu = upper_layer.message(3, {"CommandField": 0x30, "CommandDataSetType": NO_DATASET})
    with ours, theirs:
        thread = threading.Thread(target=lambda: [theirs.send(pdu[at : at + 1]) for at in range(len(pdu))])
        thread.start()
        read = upper_layer.read_pdu(ours, 1000, time.monotonic() + 10)
        thread.join()
        assert read is not None
        (piece,) = pdvs(read[1])
        assert decode_command(piece.data)["CommandField"] == 0x30
        theirs.close()
        assert upper_layer.read_pdu(ours, 1000, time.monotonic() + 10) is None


def test_a_pdu_that_breaks_off_dallies_or_is_too_large_is_refused_by_name() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            upper_layer.read_pdu(ours, 100, time.monotonic() + 0.05)
        theirs.send(upper_layer.pdu_header(4, 0xFFFFFFFF))
        with pytest.raises(PermanentError, match="pdu-too-large"):
            upper_layer.read_pdu(ours, 100, time.monotonic() + 10)
        theirs.send(upper_layer.pdu_header(4, 50) + b"half")
        theirs.close()
        with pytest.raises(TransientError, match="connection-lost"):
            upper_layer.read_pdu(ours, 100, time.monotonic() + 10)


@pytest.mark.parametrize(
    ("kind", "length", "reason"),
    [
        (0x00, 0, upper_layer.UNRECOGNISED_PDU),
        (0x08, 4, upper_layer.UNRECOGNISED_PDU),
        (upper_layer.ASSOCIATE_RQ, 200, upper_layer.UNEXPECTED_PDU),
        (upper_layer.ASSOCIATE_AC, 200, upper_layer.UNEXPECTED_PDU),
        (upper_layer.ASSOCIATE_RJ, 4, upper_layer.UNEXPECTED_PDU),
        (upper_layer.RELEASE_RP, 4, upper_layer.UNEXPECTED_PDU),
        (upper_layer.P_DATA_TF, 0, upper_layer.INVALID_PARAMETER_VALUE),
        (upper_layer.P_DATA_TF, 5, upper_layer.INVALID_PARAMETER_VALUE),
        (upper_layer.P_DATA_TF, 1001, upper_layer.INVALID_PARAMETER_VALUE),
        (upper_layer.P_DATA_TF, 0xFFFFFFFF, upper_layer.INVALID_PARAMETER_VALUE),
        (upper_layer.RELEASE_RQ, 0, upper_layer.INVALID_PARAMETER_VALUE),
        (upper_layer.ABORT, 5, upper_layer.INVALID_PARAMETER_VALUE),
    ],
)
def test_a_pdu_that_cannot_be_is_refused_with_the_reason_of_its_abort(kind: int, length: int, reason: int) -> None:
    with pytest.raises(PermanentError) as refused:
        upper_layer.check_header(kind, length, 1000)
    assert upper_layer.reason_of(refused.value) == reason
    assert upper_layer.abort(reason=reason)[-1] == reason


def test_before_an_association_only_a_request_of_sane_size_may_come() -> None:
    first = frozenset({upper_layer.ASSOCIATE_RQ, upper_layer.ABORT})
    upper_layer.check_header(upper_layer.ASSOCIATE_RQ, 205, 1000, first)
    upper_layer.check_header(upper_layer.ABORT, 4, 1000, first)
    for kind, length, code in [
        (upper_layer.P_DATA_TF, 100, "unexpected-pdu"),
        (upper_layer.ASSOCIATE_RQ, 67, "invalid-pdu"),
        (upper_layer.ASSOCIATE_RQ, 0xFFFFFFFF, "invalid-pdu"),
    ]:
        assert _refusal(partial(upper_layer.check_header, kind, length, 1000, first)) == code


@given(st.integers(0, 255), st.integers(0, 0xFFFFFFFF))
def test_what_passes_is_of_a_size_that_can_be_read(kind: int, length: int) -> None:
    if not _refusal(lambda: upper_layer.check_header(kind, length, 1000)):
        assert kind in upper_layer.ESTABLISHED
        assert length == 4 or (kind == upper_layer.P_DATA_TF and 6 <= length <= 1000)
