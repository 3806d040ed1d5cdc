"""Peers that break the upper layer, over real sockets against a real node."""

import contextlib
import socket
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from deploy.processes import wait_until
from standards import upper_layer
from standards.association import item
from standards.sop_classes import STORAGE_COMMITMENT_PUSH_MODEL
from tests.factories.dicom import compressed
from tests.node.conftest import AE_TITLE, NodeProcess
from tests.node.hostile_peers import (
    BOTH,
    explicit,
    lines_of,
    made,
    serves,
)
from tests.node.raw_association import (
    CT,
    EXPLICIT,
    IMPLICIT,
    JPEG_LS,
    VERIFICATION,
    Context,
    RawAssociation,
    aborted,
    all_ended,
    association_request,
    connect,
    logged,
    store_command,
)

# PDUs: the association ends with an A-ABORT that says why, in one line


def _pdu(kind: int, length: int, body: bytes = b"") -> bytes:
    return upper_layer.pdu_header(kind, length) + body


def _message(context_id: int, **command: Any) -> bytes:
    whole = {"CommandField": upper_layer.C_ECHO_RQ, "CommandDataSetType": upper_layer.NO_DATASET, "MessageID": 1}
    return upper_layer.message(context_id, {**whole, "AffectedSOPClassUID": VERIFICATION, **command})


def _data(context_id: int, data: bytes, *, is_last: bool = True) -> bytes:
    return upper_layer.pdv_header(context_id, len(data), is_command=False, is_last=is_last) + data


NOTHING = upper_layer.pdv_header(1, 0, is_command=False, is_last=False)
STORE = upper_layer.message(1, store_command(CT, "1.2.3"))
PDUS: dict[str, tuple[bytes, int]] = {
    "an unknown type": (_pdu(0x42, 4, bytes(4)), upper_layer.UNRECOGNISED_PDU),
    "type 0 and nothing": (_pdu(0, 0), upper_layer.UNRECOGNISED_PDU),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", upper_layer.UNRECOGNISED_PDU),
    "a second request": (association_request([(VERIFICATION, IMPLICIT)]), upper_layer.UNEXPECTED_PDU),
    "an acceptance": (_pdu(2, 4, bytes(4)), upper_layer.UNEXPECTED_PDU),
    "a rejection": (_pdu(3, 4, b"\0\1\1\1"), upper_layer.UNEXPECTED_PDU),
    "an answer to a release": (upper_layer.RELEASE_RP_PDU, upper_layer.UNEXPECTED_PDU),
    "data of 0 bytes": (_pdu(4, 0), upper_layer.INVALID_PARAMETER_VALUE),
    "data of 4 GB": (_pdu(4, 0xFFFFFFFF, bytes(100_000)), upper_layer.INVALID_PARAMETER_VALUE),
    "a release of 0 bytes": (_pdu(5, 0), upper_layer.INVALID_PARAMETER_VALUE),
    "an abort of 4 GB": (_pdu(7, 0xFFFFFFFF), upper_layer.INVALID_PARAMETER_VALUE),
    "a fragment longer than its PDU": (
        _pdu(4, 6, struct.pack(">LBB", 5000, 1, 3)),
        upper_layer.INVALID_PARAMETER_VALUE,
    ),
    "a fragment of 4 GB": (_pdu(4, 6, struct.pack(">LBB", 0xFFFFFFFF, 1, 3)), upper_layer.INVALID_PARAMETER_VALUE),
    "a fragment of nothing": (_pdu(4, 6, struct.pack(">LBB", 0, 1, 3)), upper_layer.INVALID_PARAMETER_VALUE),
    "a context that was not agreed": (_message(201), upper_layer.INVALID_PARAMETER_VALUE),
    "an even context": (_message(2), upper_layer.INVALID_PARAMETER_VALUE),
    "a data set without a command": (_data(1, bytes(20)), upper_layer.INVALID_PARAMETER_VALUE),
    "a command in place of a data set": (STORE + _message(1), upper_layer.INVALID_PARAMETER_VALUE),
    "a data set in another context": (STORE + _data(3, bytes(20)), upper_layer.INVALID_PARAMETER_VALUE),
    "a data set that changes its context": (
        STORE + _data(1, bytes(20), is_last=False) + _data(3, bytes(20)),
        upper_layer.INVALID_PARAMETER_VALUE,
    ),
    "a command of rubbish": (
        upper_layer.pdv_header(1, 20, is_command=True, is_last=True) + b"\xff" * 20,
        upper_layer.INVALID_PARAMETER_VALUE,
    ),
    "a command without a number": (_message(3, MessageID=None), upper_layer.INVALID_PARAMETER_VALUE),
    "a data set of nothing that never ends": (STORE + NOTHING * 2000, upper_layer.INVALID_PARAMETER_VALUE),
    "a command of nothing that never ends": (
        upper_layer.pdv_header(1, 0, is_command=True, is_last=False) * 2000,
        upper_layer.INVALID_PARAMETER_VALUE,
    ),
    "a data set of nothing after a piece": (
        STORE + _data(1, bytes(20), is_last=False) + NOTHING * 2000,
        upper_layer.INVALID_PARAMETER_VALUE,
    ),
    "a command that never ends": (
        (upper_layer.pdv_header(1, 60_000, is_command=True, is_last=False) + bytes(60_000)) * 18,
        upper_layer.INVALID_PARAMETER_VALUE,
    ),
}


@BOTH
@pytest.mark.parametrize("what", PDUS)
def test_a_wrong_pdu_is_answered_with_the_abort_that_says_why(
    node_process: NodeProcess, what: str, contexts: tuple[Context, ...]
) -> None:
    wrong, reason = PDUS[what]
    with logged(node_process) as log, RawAssociation(node_process, contexts) as association:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            association.plain.sendall(wrong)
        assert aborted(association.plain) == (2, reason)
    (line,) = lines_of(log)
    assert (line["event"], line["calling_ae_title"]) == ("association-ended", "MODALITY")
    assert line["code"]
    wait_until(lambda: not list((node_process.storage / "incoming").iterdir()), 120, "what was half received is gone")
    serves(node_process)


@pytest.mark.parametrize("what", [what for what in PDUS if what != "a second request"])
def test_a_wrong_pdu_before_an_association_is_answered_with_an_abort(node_process: NodeProcess, what: str) -> None:
    wrong, _ = PDUS[what]
    with logged(node_process) as log, connect(node_process) as plain:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            plain.sendall(wrong)
        assert aborted(plain) == (0, 0)
    (line,) = lines_of(log)
    assert line["event"] == "association-ended"
    assert line["code"] in ("unrecognised-pdu", "unexpected-pdu", "invalid-pdu")


REQUEST = association_request([(CT, EXPLICIT)])


def requested(
    *,
    version: int = 1,
    pad: bytes = b" ",
    application: bytes = b"1.2.840.10008.3.1.1.1",
    items: bytes = b"",
    contexts: bytes = item(0x20, bytes([1, 0, 0, 0]) + item(0x30, CT.encode()) + item(0x40, EXPLICIT.encode())),
    user: bytes = b"",
) -> bytes:
    """An A-ASSOCIATE-RQ in a form that the standard allows, or that devices use all the same."""
    titles = AE_TITLE.encode().ljust(16, pad) + b"MODALITY".ljust(16, pad)
    body = struct.pack(">H2x", version) + titles + bytes(32) + item(0x10, application) + items + contexts
    body += item(0x50, item(0x51, struct.pack(">L", 1 << 16)) + item(0x52, b"2.25.1") + user)
    return _pdu(upper_layer.ASSOCIATE_RQ, len(body), body)


@pytest.mark.parametrize(
    "request_pdu",
    [
        requested(version=3),
        requested(pad=b"\0"),
        requested(items=item(0x77, b"of a later standard")),
        requested(user=item(0x5F, b"of a later standard")),
        requested(user=item(0x55, b"A NAME OF MORE THAN 16")),
    ],
    ids=["a later version too", "titles padded by NUL", "an unknown item", "an unknown user item", "a long name"],
)
def test_a_request_in_an_odd_form_is_accepted_and_served(node_process: NodeProcess, request_pdu: bytes) -> None:
    association = RawAssociation(node_process, [(CT, EXPLICIT)])
    with contextlib.closing(connect(node_process)) as association.plain:
        association.plain.sendall(request_pdu)
        answer = association.pdu()
        assert answer is not None
        assert answer[0] == upper_layer.ASSOCIATE_AC
        image = made()
        assert association.store(CT, image.SOPInstanceUID, explicit(image))["Status"] == 0
        association.release()


@pytest.mark.parametrize(
    ("request_pdu", "refusal"),
    [(requested(application=b"1.2.3"), (1, 1, 2)), (requested(version=2), (1, 2, 2))],
    ids=["another application context", "another version"],
)
def test_a_request_of_another_protocol_is_rejected(
    node_process: NodeProcess, request_pdu: bytes, refusal: tuple[int, int, int]
) -> None:
    with connect(node_process) as plain:
        plain.sendall(request_pdu)
        answer = upper_layer.read_pdu(plain, 1 << 16, time.monotonic() + 60)
    assert answer is not None
    assert (answer[0], *answer[1][1:4]) == (upper_layer.ASSOCIATE_RJ, *refusal)


@pytest.mark.parametrize(
    "wrong",
    [
        _pdu(1, 0),
        _pdu(1, 0xFFFFFFFF, bytes(1000)),
        _pdu(1, 200, b"\xff" * 200),
        _pdu(1, 68, REQUEST[6:74]),
        REQUEST[:74] + b"\x10\0\xff\xff" + REQUEST[78:],
        requested(contexts=item(0x20, bytes([1, 0, 0, 0]) + item(0x30, CT.encode()))),
    ],
    ids=["0 bytes", "4 GB", "rubbish", "no items", "an item longer than it", "a context without syntaxes"],
)
def test_a_request_for_an_association_that_is_none_ends_the_connection(node_process: NodeProcess, wrong: bytes) -> None:
    with logged(node_process) as log, connect(node_process) as plain:
        plain.sendall(wrong)
        assert aborted(plain) == (0, 0)
    (line,) = lines_of(log)
    assert (line["event"], line["code"]) == ("association-ended", "invalid-pdu")
    serves(node_process)


@BOTH
def test_a_report_that_nobody_waits_for_is_answered_on_either_path(
    node_process: NodeProcess, contexts: tuple[Context, ...]
) -> None:
    offered = (*contexts, (STORAGE_COMMITMENT_PUSH_MODEL, IMPLICIT))
    command = {
        "AffectedSOPClassUID": STORAGE_COMMITMENT_PUSH_MODEL,
        "CommandField": upper_layer.N_EVENT_REPORT_RQ,
        "MessageID": 5,
        "CommandDataSetType": upper_layer.DATASET_FOLLOWS,
        "AffectedSOPInstanceUID": "1.2.840.10008.1.20.1.1",
        "EventTypeID": 1,
    }
    context_id = 2 * len(contexts) + 1
    with RawAssociation(node_process, offered) as association:
        association.send_fragments(context_id, upper_layer.encode_command(command), is_command=True)
        association.send_fragments(context_id, struct.pack("<HHL6s", 8, 0x1195, 6, b"1.2.3\0"), is_command=False)
        answer = association.answer()
        assert answer["CommandField"] == upper_layer.N_EVENT_REPORT_RQ | upper_layer.RESPONSE
        assert answer["MessageIDBeingRespondedTo"] == 5
        assert association.echo() == 0
        association.release()


STAGES = {
    "connected": b"",
    "half a request": b"",
    "accepted": b"",
    "half a header": b"\4\0",
    "half a command": upper_layer.pdv_header(1, 8, is_command=True, is_last=False) + bytes(8),
    "a command": STORE,
    "half a fragment": STORE + upper_layer.pdv_header(1, 5000, is_command=False, is_last=False) + bytes(100),
    "half a data set": STORE + _data(1, bytes(5000), is_last=False),
}


@BOTH
@pytest.mark.parametrize("how", ["abort", "close", "reset"])
def test_a_peer_that_goes_at_any_stage_leaves_nothing(
    node_process: NodeProcess, how: str, contexts: tuple[Context, ...]
) -> None:
    before = node_process.sql("SELECT count(*) FROM study_index_instance")
    with logged(node_process) as log:
        for stage, sent in STAGES.items():
            plain = connect(node_process)
            request = association_request(contexts)
            plain.sendall(request[:50] if stage == "half a request" else b"" if stage == "connected" else request)
            if stage not in ("connected", "half a request"):
                assert (upper_layer.read_pdu(plain, 1 << 20, None) or (0,))[0] == upper_layer.ASSOCIATE_AC
            plain.sendall(sent)
            if how == "abort":
                plain.sendall(upper_layer.abort(0))
            if how == "reset":
                plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            plain.close()
        wait_until(
            lambda: not list((node_process.storage / "incoming").iterdir()), 120, "nothing half received is left"
        )
        all_ended(node_process)
    lines_of(log)
    assert node_process.sql("SELECT count(*) FROM study_index_instance") == before
    serves(node_process)


# Fuzzed

_GOOD = explicit(made(SOPInstanceUID="1.2.3.4", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.3.1"))
_STREAM = (
    STORE + _data(1, _GOOD[:600], is_last=False) + _data(1, _GOOD[600:]) + _message(3) + upper_layer.RELEASE_RQ_PDU
)


@BOTH
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(_STREAM) - 1),
            st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\xff" * 4, bytes(4), b"\4\0", b"\7\0"])),
        ),
        min_size=1,
        max_size=4,
    )
)
@example([(2, b"\xff" * 4)])
@example([(2, bytes(4))])
@example([(11, b"\0")])
def test_a_fuzzed_stream_of_pdus_ends_by_itself_in_named_lines(
    node_process: NodeProcess, contexts: tuple[Context, ...], changes: list[tuple[int, bytes]]
) -> None:
    stream = bytearray(_STREAM)
    for at, piece in changes:
        stream[at : at + len(piece)] = piece
    with logged(node_process) as log, RawAssociation(node_process, contexts) as association:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            association.plain.sendall(stream)
            association.plain.shutdown(socket.SHUT_WR)
        ended = False
        with contextlib.suppress(ConnectionResetError):
            while (read := association.pdu()) is not None:
                assert not ended
                assert read[0] in (upper_layer.P_DATA_TF, upper_layer.RELEASE_RP, upper_layer.ABORT)
                ended = read[0] != upper_layer.P_DATA_TF
    lines = lines_of(log)
    events = [line["event"] for line in lines]
    assert events.count("association-ended") <= 1
    assert {line.get("code") for line in lines}.isdisjoint({"unexpected", "storage-failed"})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(6, len(REQUEST) - 1),
            st.one_of(
                st.binary(min_size=1, max_size=4), st.sampled_from([b"\xff" * 4, bytes(4), b"\x20\0", b"\x54\0"])
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 3),
)
@example([(74, b"\x77")], 0)
@example([(95, b"\x77")], 0)
def test_a_fuzzed_request_is_accepted_rejected_or_aborted(
    node_process: NodeProcess, changes: list[tuple[int, bytes]], cut: int
) -> None:
    body = bytearray(REQUEST[: len(REQUEST) - 4 * cut])
    for at, piece in changes:
        body[at : at + len(piece)] = piece
    with logged(node_process) as log, connect(node_process) as plain:
        plain.sendall(upper_layer.pdu_header(upper_layer.ASSOCIATE_RQ, len(body) - 6) + body[6:])
        answer = upper_layer.read_pdu(plain, 1 << 20, None)
        assert answer is not None
        kind, _ = answer
        assert kind in (upper_layer.ASSOCIATE_AC, upper_layer.ASSOCIATE_RJ, upper_layer.ABORT)
        if kind == upper_layer.ASSOCIATE_AC:
            plain.sendall(upper_layer.RELEASE_RQ_PDU)
            assert (upper_layer.read_pdu(plain, 1 << 20, None) or (0,))[0] == upper_layer.RELEASE_RP
    lines = lines_of(log)
    ours = [line["event"] for line in lines if not line.get("logger", "").startswith("pynetdicom")]
    assert len(lines) <= 1
    assert not [line for line in lines if "exception" in line]
    assert set(ours) <= {"association-ended", "association-refused"}


def _held(node: NodeProcess) -> int:
    """Threads and open files of the node."""
    assert node.process is not None
    return sum(len(list(Path(f"/proc/{node.process.pid}/{what}").iterdir())) for what in ("task", "fd"))


@pytest.mark.parametrize(
    "sent",
    [b"", REQUEST[:50], b"GET / HTTP/1.1\r\n\r\n", _pdu(1, 200, b"\xff" * 200), REQUEST[:6] + b"\0\0" + REQUEST[8:]],
    ids=["nothing", "half a request", "HTTP", "rubbish", "another version"],
)
def test_a_peer_that_never_asked_rightly_is_given_back_at_once(node_process: NodeProcess, sent: bytes) -> None:
    serves(node_process)
    before = _held(node_process)
    for _ in range(10):
        with connect(node_process) as plain:
            plain.sendall(sent)
            if len(sent) > 50 or sent.startswith(b"GET"):
                assert upper_layer.read_pdu(plain, 1 << 20, None) is not None
    # pynetdicom by itself would wait for thirty seconds.
    wait_until(lambda: _held(node_process) < before + 8, 25, "threads and sockets are given back")


@BOTH
def test_the_node_serves_after_all_of_it(node_process: NodeProcess, contexts: tuple[Context, ...]) -> None:
    good = compressed(made())
    with RawAssociation(node_process, (*contexts, (CT, JPEG_LS))) as association:
        assert association.echo() == 0
        stored = association.store(CT, good.SOPInstanceUID, explicit(good), context_id=2 * len(contexts) + 1)
        assert stored["Status"] == 0
        association.release()
    assert node_process.held(good.StudyInstanceUID)
