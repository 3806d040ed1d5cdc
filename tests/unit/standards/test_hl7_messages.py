"""MLLP framing, and HL7 v2 messages in the character sets of Russian hospitals."""

from pathlib import Path

import hl7
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standards.errors import PermanentError
from standards.hl7v2 import Message, MllpReader, ack, decode, escape, frame, parse

TEXT = st.binary(min_size=1, max_size=60).map(lambda raw: raw.replace(b"\x0b", b"").replace(b"\x1c", b""))
NAME = "Щёголев-Ящуржинский^Пётр^Ёжикович"


def message_bytes(charset: str, codec: str, name: str = NAME) -> bytes:
    """An ADT^A04."""
    lines = [
        f"MSH|^~\\&|HIS|ClinicA|REGIS|Centre|20261121100000||ADT^A04^ADT_A01|MSG-1|P|2.5.1||||||{charset}",
        "EVN|A04|20261121100000",
        f"PID|1||К-1^^^HIS&1.2.3&ISO~777^^^SNILS||{name}||19800229|M|||ул. Ежовая\\T\\Ко 5^^Тула",
        "PV1|1|O",
        "OBX|1|TX|note||первая\\.br\\вторая \\X41\\ \\S\\||||||F",
        "OBX|2|TX|note||другая||||||F",
        "ZXX|1|своё",
    ]
    return "\r".join(lines).encode(codec) + b"\r"


def parsed_or_code(raw: bytes) -> Message | str:
    """The message, or the code with which it is refused."""
    try:
        return parse(raw)
    except PermanentError as error:
        return error.code


@given(st.lists(TEXT, max_size=5), st.lists(st.integers(1, 30), max_size=40))
def test_messages_come_out_whole_however_the_stream_is_cut(messages: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(b"noise" + frame(message) for message in messages)
    reader = MllpReader()
    received = []
    for cut in cuts:
        received += reader.feed(stream[:cut])
        stream = stream[cut:]
    received += reader.feed(stream)
    assert received == messages
    assert reader.dropped == 5 * len(messages)
    assert not reader.is_inside


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_no_bytes_crash_the_reader(pieces: list[bytes]) -> None:
    reader = MllpReader(max_message=1000)
    for piece in pieces:
        for message in reader.feed(piece):
            assert b"\x0b" not in message
            assert b"\x1c\r" not in message


def test_a_message_without_end_is_refused_before_it_eats_memory() -> None:
    reader = MllpReader(max_message=1000)
    reader.feed(b"\x0b" + b"a" * 990)
    with pytest.raises(PermanentError, match="message-too-large"):
        reader.feed(b"a" * 20)


def test_a_sender_that_starts_anew_loses_only_the_message_it_gave_up() -> None:
    assert MllpReader().feed(b"\x0bMSH|hal\x0bMSH|whole\x1c\r") == [b"MSH|whole"]


@pytest.mark.parametrize(
    ("charset", "codec"),
    [
        ("UNICODE UTF-8", "utf-8"),
        ("8859/5", "iso8859_5"),
        ("WINDOWS-1251", "cp1251"),
        ("CP1251", "cp1251"),
        ("windows 1251~ASCII", "cp1251"),
        ("", "utf-8"),
        ("", "cp1251"),
    ],
)
def test_a_name_arrives_in_any_character_set_and_is_answered_in_it(charset: str, codec: str) -> None:
    message = parse(message_bytes(charset, codec))
    assert message.type == "ADT^A04"
    assert [message.get(f"PID-5.{part}") for part in (1, 2, 3)] == NAME.split("^")
    answer = ack(message, "AE", "Пациент «Щёголев» — не найден", error="unknown-patient")
    assert b"?" not in answer
    read = parse(answer)
    assert read.get("MSA-1") == "AE"
    assert "Пациент" in read.get("MSA-3")
    assert read.get("MSH-18") == charset.split("~")[0]


def test_paths_reach_components_subcomponents_and_repetitions() -> None:
    message = parse(message_bytes("UNICODE UTF-8", "utf-8"))
    assert message.get("PID-3") == "К-1"
    assert message.get("PID-3.4.2") == "1.2.3"
    assert message.get("PID-3[2].1") == "777"
    assert message.get("PID-3[9].1") == ""
    assert message.get("PID-11.1") == "ул. Ежовая&Ко 5"
    assert message.get("OBX-5") == "первая\nвторая A ^"
    assert message.get("OBX[2]-5") == "другая"
    assert message.get("ZXX-2") == "своё"
    assert message.get("MSH-1") == "|"
    assert message.get("MSH-2") == "^~\\&"
    assert message.get("NTE-3", "none") == "none"
    segment = message.segment("PID")
    assert segment is not None
    assert [repetition[0] for repetition in segment.repetitions(3)] == ["К-1", "777"]


def test_another_parser_reads_the_same() -> None:
    raw = message_bytes("UNICODE UTF-8", "utf-8")
    theirs = hl7.parse(raw.decode())
    ours = parse(raw)
    assert str(theirs["PID.5.1.2"]) == ours.get("PID-5.2")
    assert str(theirs["PID.3.2.1"]) == ours.get("PID-3[2].1")
    assert len(theirs) == len(ours.segments)


def test_the_standards_structure_is_there_for_who_wants_it() -> None:
    tree = parse(message_bytes("UNICODE UTF-8", "utf-8").replace(b"ZXX|1|" + "своё".encode() + b"\r", b"")).structured()
    assert tree.pid.pid_5.pid_5_1.value == "Щёголев-Ящуржинский"


def test_an_acknowledgement_goes_back_where_the_message_came_from() -> None:
    answer = parse(ack(parse(message_bytes("UNICODE UTF-8", "utf-8")), "AA", "ok"))
    addresses = [answer.get(f"MSH-{number}") for number in (3, 4, 5, 6)]
    assert addresses == ["REGIS", "Centre", "HIS", "ClinicA"]
    assert (answer.get("MSA-1"), answer.get("MSA-2")) == ("AA", "MSG-1")
    assert answer.get("MSH-9.1") == "ACK"
    assert answer.get("MSH-9.2") == "A04"
    assert answer.segment("ERR") is None
    assert answer.control_id != "MSG-1"


def test_other_delimiters_are_respected_both_ways() -> None:
    raw = b"MSH#*~!@#HIS#A#REGIS#B#2026##ADT*A04#7#P#2.3\rPID#1##9*a@b##Doe!F!*J\r"
    message = parse(raw)
    assert message.get("PID-5.1") == "Doe#"
    assert message.get("PID-3.2.2") == "b"
    assert parse(ack(message, "AR", "a#b")).get("MSA-3") == "a#b"


def test_an_answer_to_garbage_is_still_a_message() -> None:
    answer = parse(ack(None, "AR", "not HL7"))
    assert (answer.get("MSA-1"), answer.get("MSA-3")) == ("AR", "not HL7")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "not-hl7"),
        (b"<?xml version='1.0'?><a/>", "not-hl7"),
        (b"MSH", "not-hl7"),
        (b"MSH|AAAA|HIS|", "not-hl7"),
        (b"MSH|^~\\&|A\rhello|world", "not-hl7"),
        (message_bytes("KLINGON", "utf-8"), "unknown-character-set"),
        (message_bytes("UNICODE UTF-8", "cp1251"), "undecodable-text"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(raw: bytes, code: str) -> None:
    with pytest.raises(PermanentError, match=code):
        parse(raw)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(tail: bytes) -> None:
    for raw in (tail, b"MSH|^~\\&|" + tail):
        message = parsed_or_code(raw)
        if isinstance(message, Message):
            assert isinstance(parse(ack(message, "AE", "x", error="e")), Message)
        else:
            assert message in {"not-hl7", "unknown-character-set", "undecodable-text"}


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=40))
def test_what_is_escaped_is_read_back(text: str) -> None:
    raw = f"MSH|^~\\&|A|B|C|D|2026||ADT^A04|1|P|2.5||||||UNICODE UTF-8\rNTE|1||x{escape(text)}x\r".encode()
    assert parse(raw).get("NTE-3") == f"x{text}x"


def test_the_default_character_set_can_be_set() -> None:
    raw = message_bytes("", "iso8859_5")
    assert parse(raw, "8859/5").get("PID-5.2") == "Пётр"
    assert decode(raw, "8859/5")[1] == "iso8859_5"


def test_the_samples_are_read_or_refused_by_name(sample_data: Path) -> None:
    read = {}
    for path in sorted((sample_data / "hl7").rglob("*")):
        if path.is_file():
            try:
                read[path.name] = parse(path.read_bytes(), "8859/1").type
            except PermanentError as error:
                read[path.name] = error.code
    assert read["OMI^O23-ImagingOrder.hl7"] == "OMI^O23"
    assert read["ADT-A40-01.hl7"] == "ADT^A40"
    assert read["xml-with-xxe.xml"] == "not-hl7"
    assert sum("^" in kind for kind in read.values()) > 60
