"""HL7 v2 at the centre: registering, booking, the right answer, once."""

import socket
import threading
from collections.abc import Iterator
from datetime import datetime
from zoneinfo import ZoneInfo

import hl7 as second_parser
import pytest
from django.utils import timezone

from ris_central.federation.models import Command, Node
from ris_central.integration.actions import receive
from ris_central.integration.listener import Connection, Listener
from ris_central.integration.models import Hl7Message, Hl7Outgoing, Hl7Receiver
from ris_central.integration.sender import deliver_due
from ris_central.orders.models import Device, ScheduledProcedureStep, ServiceRequest
from ris_central.orders.transitions import move
from ris_central.organizations.models import Site
from ris_central.patients.models import Patient, PatientIdentifier
from standards.hl7v2 import ack, parse
from standards.mllp import MllpReader, frame

NAME = "Щёголев^Пётр^Ёжикович"


@pytest.fixture
def site(db: None) -> Site:
    return Site.objects.create(
        code="clinic-a", name="Clinic A", kind="own_pacs", accession_prefix="A", issuer_of_patient_id="CLINIC-A"
    )


@pytest.fixture
def device(site: Site) -> Device:
    node = Node.objects.create(site=site, name="clinic-a", kind="clinic", joined_at=timezone.now())
    return Device.objects.create(site=site, node=node, name="CT", ae_title="CT_A", modality="CT")


def adt(control_id: str = "1", trigger: str = "A04", name: str = NAME, charset: str = "UNICODE UTF-8") -> str:
    return (
        f"MSH|^~\\&|HIS|CLINIC-A|REGIS|CENTRE|20261121100000||ADT^{trigger}|{control_id}|P|2.5||||||{charset}\r"
        f"PID|1||4711^^^CLINIC-A^MR||{name}||19700102|M\r"
    )


def orm(control_id: str = "10", control: str = "NW", order: str = "P-1", starts: str = "202611230930") -> str:
    return (
        f"MSH|^~\\&|HIS|CLINIC-A|REGIS|CENTRE|20261121100000||ORM^O01|{control_id}|P|2.5||||||UNICODE UTF-8\r"
        f"PID|1||4711^^^CLINIC-A^MR||{NAME}||19700102|M\r"
        f"ORC|{control}|{order}^HIS|||||^^^{starts}^^S\r"
        f"OBR|1|{order}^HIS||CT1^КТ головы{'|' * 20}CT\r"
    )


def omi(control_id: str = "20") -> str:
    return (
        f"MSH|^~\\&|HIS|CLINIC-A|REGIS|CENTRE|20261121100000||OMI^O23^OMI_O23|{control_id}|P|2.5.1||||||UNICODE UTF-8\r"
        f"PID|1||4711^^^CLINIC-A^MR||{NAME}||19700102|M\r"
        "ORC|NW|P-2^HIS\rTQ1|1||||||202611231000\rOBR|1|P-2^HIS||CT2^КТ груди\r"
        "IPC|||||CT||||CT_A\r"
    )


def code_of(answer: bytes) -> tuple[str, str]:
    parsed = second_parser.parse(answer.decode("utf-8"))
    return str(parsed["MSA"][0][1]), str(parsed["MSA"][0][2])


@pytest.mark.parametrize(
    ("charset", "codec"),
    [("UNICODE UTF-8", "utf-8"), ("8859/5", "iso8859_5"), ("WINDOWS-1251", "cp1251"), ("", "cp1251")],
)
def test_a_patient_is_registered_in_every_character_set(site: Site, charset: str, codec: str) -> None:
    answer = receive(adt(charset=charset).encode(codec))
    assert parse(answer).get("MSA-1") == "AA"
    assert Patient.objects.get().name == NAME
    assert PatientIdentifier.objects.get().issuer == "CLINIC-A"


def test_a_change_of_name_reaches_the_patient(site: Site) -> None:
    receive(adt().encode())
    receive(adt("2", "A08", "Щёголева^Мария").encode())
    assert Patient.objects.get().name == "Щёголева^Мария"


def test_the_same_control_id_gets_the_same_answer_and_changes_nothing(site: Site, device: Device) -> None:
    first = receive(orm().encode())
    again = receive(orm().replace("20261121100000", "20261121100500").encode())
    assert first == again
    assert ServiceRequest.objects.count() == 1
    assert Hl7Message.objects.count() == 1


def test_a_reused_control_id_with_other_content_is_rejected(site: Site) -> None:
    receive(adt().encode())
    assert code_of(receive(adt(name="Другой^Человек").encode())) == ("AR", "1")
    assert Patient.objects.get().name == NAME


def test_after_a_refusal_the_same_control_id_is_tried_again(site: Site) -> None:
    assert code_of(receive(orm().encode()))[0] == "AE"  # no device yet
    Device.objects.create(site=site, name="CT", ae_title="CT_A", modality="CT")
    assert code_of(receive(orm().encode()))[0] == "AA"


@pytest.mark.parametrize(("message", "order"), [(orm(), "P-1"), (omi(), "P-2")])
def test_an_order_is_booked_and_sent_to_the_device(site: Site, device: Device, message: str, order: str) -> None:
    assert code_of(receive(message.encode()))[0] == "AA"
    made = ServiceRequest.objects.get()
    assert made.placer_order_number == order
    step = ScheduledProcedureStep.objects.get()
    assert step.device == device
    assert step.slot.lower.astimezone(ZoneInfo(site.time_zone)).date() == datetime(2026, 11, 23).date()
    assert Command.objects.filter(node=device.node, type="schedule").exists()


def test_a_taken_slot_is_refused_with_the_reason(site: Site, device: Device) -> None:
    receive(orm().encode())
    answer = receive(orm("11", order="P-9").encode())
    assert code_of(answer)[0] == "AE"
    assert parse(answer).get("ERR-5") == "slot-taken"
    assert ServiceRequest.objects.count() == 1


def test_an_order_is_moved_and_cancelled(site: Site, device: Device) -> None:
    receive(orm().encode())
    receive(orm("12", "XO", starts="202611231100").encode())
    step = ScheduledProcedureStep.objects.get()
    assert step.slot.lower.astimezone(ZoneInfo(site.time_zone)).hour == 11
    assert code_of(receive(orm("13", "CA").encode()))[0] == "AA"
    assert ServiceRequest.objects.get().status == "revoked"


def test_an_order_without_a_time_takes_the_first_free_slot(site: Site, device: Device) -> None:
    receive(orm(starts="").encode())
    receive(orm("14", order="P-5", starts="").encode())
    assert ScheduledProcedureStep.objects.count() == 2


def test_the_time_of_a_step_that_is_to_be_booked_anew_is_free(site: Site, device: Device) -> None:
    receive(orm(starts="").encode())
    first = ScheduledProcedureStep.objects.get()
    move(first, ScheduledProcedureStep.Status.REBOOK)
    receive(orm("14", order="P-5", starts="").encode())
    second = ScheduledProcedureStep.objects.exclude(pk=first.pk).get()
    assert second.slot.lower < first.slot.upper


@pytest.mark.parametrize(
    ("message", "code", "error"),
    [
        ("hello", "AR", "not-hl7"),
        (adt(trigger="A99"), "AR", "unsupported-message"),
        (adt(charset="MARTIAN"), "AR", "unknown-character-set"),
        (adt().replace("CLINIC-A", "NOWHERE"), "AE", "unknown-facility"),
        (adt().replace("4711", ""), "AE", "identifier-missing"),
        (adt().replace(NAME, ""), "AE", "name-missing"),
        (orm(control="ZZ"), "AR", "unsupported-message"),
        (orm(control="CA", order="P-77"), "AE", "order-unknown"),
        (orm(starts="20269999"), "AE", "time-invalid"),
    ],
)
def test_bad_messages_are_answered_by_name_and_leave_nothing(
    site: Site, device: Device, message: str, code: str, error: str
) -> None:
    answer = parse(receive(message.encode()))
    assert (answer.get("MSA-1"), answer.get("ERR-5")) == (code, error)
    assert not Patient.objects.exists()
    assert not ServiceRequest.objects.exists()


@pytest.fixture
def port() -> Iterator[int]:
    with Listener(("127.0.0.1", 0), Connection) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield listener.server_address[1]
        listener.shutdown()
        thread.join()


def read_one(link: socket.socket, reader: MllpReader) -> bytes:
    while True:
        found = reader.feed(link.recv(65536))
        if found:
            return found[0]


@pytest.mark.django_db(transaction=True)
def test_fragments_garbage_and_several_messages_a_connection_are_all_answered(port: int, site: Site) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as link:
        reader = MllpReader()
        message = b"noise" + frame(adt().encode())
        for start in range(0, len(message), 11):
            link.sendall(message[start : start + 11])
        assert code_of(read_one(link, reader)) == ("AA", "1")
        link.sendall(frame(b"garbage"))
        assert parse(read_one(link, reader)).get("MSA-1") == "AR"
        link.sendall(frame(adt("3", "A08").encode()))
        assert code_of(read_one(link, reader)) == ("AA", "3")


class Receiver(threading.Thread):
    """A real receiver of results on a free port, answering with the codes it is given."""

    def __init__(self, *codes: str) -> None:
        super().__init__(daemon=True)
        self.codes, self.got = list(codes), list[bytes]()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]

    def run(self) -> None:
        for code in self.codes:
            link, _ = self.server.accept()
            with link:
                raw = read_one(link, MllpReader())
                self.got.append(raw)
                link.sendall(frame(ack(parse(raw), code)))


@pytest.fixture
def outgoing(db: None) -> Hl7Outgoing:
    receiver = Hl7Receiver.objects.create(name="his", host="127.0.0.1", port=1)
    payload = adt("M1").encode()
    return Hl7Outgoing.objects.create(receiver=receiver, key="report:1:0", message_control_id="M1", payload=payload)


def test_a_result_waits_until_the_receiver_takes_it(outgoing: Hl7Outgoing) -> None:
    assert deliver_due(outgoing.receiver) == 0  # nobody listens
    outgoing.refresh_from_db()
    assert "receiver-unreachable" in outgoing.last_error
    peer = Receiver("AE", "AA")
    peer.start()
    outgoing.receiver.port = peer.port
    outgoing.receiver.save()
    for expected in (0, 1):
        Hl7Outgoing.objects.update(next_attempt_at=timezone.now())
        assert deliver_due(Hl7Receiver.objects.get()) == expected
    outgoing.refresh_from_db()
    assert outgoing.delivered_at is not None
    assert peer.got == [bytes(outgoing.payload)] * 2
