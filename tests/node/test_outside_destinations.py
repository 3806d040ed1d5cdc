"""Places outside the region: what they prove, by STOW-RS and by C-STORE with storage commitment."""

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.utils import timezone

from gateway import deliveries, registry
from gateway.envelope import Configuration, ForeignSource, OutsideDestination
from gateway.models import Delivery
from gateway.outside.commitments import Answer, Commitments, Reference
from gateway.outside.stow import StowCarrier, judged
from gateway.outside.web import authorization
from pacs_node.config import config
from pacs_node.dimse.commitment import keep_result
from pacs_node.dimse.models import Commitment
from pacs_node.dimse.outside import Scu, StoreCarrier
from pacs_node.study_index.actions import ingest
from standards.errors import PermanentError, RegisError, TransientError
from standards.uids import new_uid
from tests.contract.region import make_instance
from tests.factories.foreign_peers import Orthanc, dcmqrscp, orthanc

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as one:
        yield one


def held(tmp_path: Path, place: str, **changes: object) -> Delivery:
    """An instance in the store, and its row on the ledger."""
    image = make_instance(study=new_uid())
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    path = tmp_path / f"{new_uid()}.dcm"
    image.save_as(path, enforce_file_format=True)
    taken = ingest(path, source_ae_title="SCANNER").instance
    return Delivery.objects.create(
        instance_key=taken.pk,
        series_key=taken.series_id,
        study_instance_uid=image.StudyInstanceUID,
        sop_instance_uid=image.SOPInstanceUID,
        dataset_sha256=taken.dataset_sha256,
        destination=place,
        size=taken.size,
        next_attempt_at=timezone.now(),
    )


def stow(archive: Orthanc, **changes: object) -> OutsideDestination:
    return OutsideDestination.model_validate({"name": "far", "kind": "stow", "url": archive.dicomweb_url, **changes})


def test_what_orthanc_gives_back_byte_for_byte_is_proved_by_reading_it_back(archive: Orthanc, tmp_path: Path) -> None:
    row = held(tmp_path, "far")
    proof = StowCarrier().carry(row, stow(archive))
    assert proof.name == "read-back"
    assert proof.evidence["dataset_sha256"] == row.dataset_sha256
    assert proof.wire_bytes >= row.size
    deliveries.record_proof(row, proof)
    row.refresh_from_db()
    assert (row.status, row.proof) == ("delivered", "read-back"), "never taken for a receipt"


def test_without_reading_back_it_is_stored_and_listed_and_no_more(archive: Orthanc, tmp_path: Path) -> None:
    proof = StowCarrier().carry(held(tmp_path, "far"), stow(archive, read_back=False))
    assert (proof.name, proof.evidence["listed"]) == ("stored", True)


def test_other_pixels_that_lie_there_under_the_uid_are_found(archive: Orthanc, tmp_path: Path) -> None:
    row = held(tmp_path, "far")
    here = registry.store().describe_series(row.series_key)
    assert here is not None
    series = here.series.series_instance_uid
    other = make_instance(study=row.study_instance_uid, series=series, sop=row.sop_instance_uid, number=99)
    archive.take(other, tmp_path)
    with pytest.raises(PermanentError) as caught:
        StowCarrier().carry(row, stow(archive))
    assert caught.value.code == "other-content-there"


def test_a_destination_that_is_away_or_shut_pauses_as_a_whole(archive: Orthanc, tmp_path: Path) -> None:
    row = held(tmp_path, "far")
    with pytest.raises(TransientError) as caught:
        StowCarrier().carry(row, stow(archive, url="http://127.0.0.1:9/dicom-web"))
    assert caught.value.code == "unreachable"


def test_a_service_that_asks_for_a_password_gets_it_from_the_node_s_own_file(tmp_path: Path) -> None:
    name = f"shut{new_uid()[-8:]}"
    secret = config().data_dir / "secrets" / f"{name}.credentials"
    secret.parent.mkdir(parents=True, exist_ok=True)
    row = held(tmp_path, name)
    with orthanc(tmp_path / "shut", AuthenticationEnabled=True, RegisteredUsers={"regis": "sesame"}) as shut:
        place = stow(shut, name=name)
        try:
            secret.write_text("basic regis:wrong")
            with pytest.raises(TransientError, match="access-refused"):
                StowCarrier().carry(row, place)
            secret.write_text("basic regis:sesame")
            assert StowCarrier().carry(row, place).name == "read-back"
        finally:
            secret.unlink()


def item(uid: str, **more: object) -> dict[str, object]:
    said = {"00081155": {"vr": "UI", "Value": [uid]}}
    return said | {tag[1:]: {"vr": "US", "Value": [value]} for tag, value in more.items()}


@pytest.mark.parametrize(
    ("status", "failed", "stored", "outcome"),
    [
        (200, [], [item("1.2")], ""),
        (202, [item("1.9", t00081197=0xA900)], [item("1.2", t00081196=0xB000)], "warning reason B000"),
        (202, [item("1.2", t00081197=0xA900)], [item("1.9")], "stow-refused"),
        (409, [item("1.2", t00081197=0xA700)], [], "storage-full"),
        (409, [], [], "stow-refused"),
        (503, [], [], "stow-failed"),
        (200, [], [item("1.9")], "stow-refused"),
    ],
)
def test_the_answer_for_each_instance_counts_whatever_the_status(
    status: int, failed: list[object], stored: list[object], outcome: str
) -> None:
    body = json.dumps({"00081198": {"vr": "SQ", "Value": failed}, "00081199": {"vr": "SQ", "Value": stored}})
    try:
        said = judged(status, body.encode(), "1.2")
    except RegisError as error:
        said = error.code
    assert said == outcome


def test_credentials_come_from_a_file_of_the_node_alone() -> None:
    folder = config().data_dir / "secrets"
    folder.mkdir(parents=True, exist_ok=True)
    assert authorization("nobody", "https://a/") == {}
    name = f"t{new_uid()[-8:]}"
    path = folder / f"{name}.credentials"
    try:
        path.write_text("bearer abc.def\n")
        assert authorization(name, "https://pacs.example/dicom-web") == {"Authorization": "Bearer abc.def"}
        path.write_text("basic user:pässword")
        encoded = base64.b64encode("user:pässword".encode()).decode()
        assert authorization(name, "https://pacs.example/dicom-web") == {"Authorization": f"Basic {encoded}"}
        path.write_text("bearer abc.def\nhttps://pacs.example/\n")
        assert authorization(name, "https://pacs.example/dicom-web") == {"Authorization": "Bearer abc.def"}
        with pytest.raises(PermanentError, match=r"is for https://pacs\.example/"):
            authorization(name, "https://elsewhere.example/dicom-web")
        path.write_text("abc")
        with pytest.raises(PermanentError):
            authorization(name, "https://pacs.example/dicom-web")
    finally:
        path.unlink()


def test_dcmtk_takes_an_instance_by_c_store_and_its_word_is_called_stored(tmp_path: Path) -> None:
    with dcmqrscp(tmp_path / "pacs", {}) as port:
        place = OutsideDestination(name="old", kind="dicom", ae_title="OLDPACS", host="127.0.0.1", port=port)
        carrier = StoreCarrier()
        for _ in range(2):  # the second over the same association
            proof = carrier.carry(held(tmp_path, "old"), place)
            assert (proof.name, proof.evidence["commitment"]) == ("stored", "to be asked")
        carrier.tidy(0)
        files = [path for path in (tmp_path / "pacs" / "store").iterdir() if path.name != "index.dat"]
        assert len(files) == 2
    with pytest.raises(TransientError) as caught:
        StoreCarrier().carry(held(tmp_path, "old"), place)
    assert caught.value.code == "unreachable"


class Answers:
    """A peer whose answers a test gives."""

    def __init__(self) -> None:
        self.asked: list[list[Reference]] = []
        self.answers: dict[str, Answer] = {}

    def ask(self, destination: OutsideDestination, instances: list[Reference]) -> str:
        self.asked.append(instances)
        return f"1.2.{len(self.asked)}"

    def answer(self, transaction_uid: str) -> Answer | None:
        return self.answers.get(transaction_uid)


def test_commitment_is_asked_a_study_at_a_time_and_a_refusal_sends_the_instance_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = OutsideDestination(name="old", kind="dicom", ae_title="OLDPACS", host="127.0.0.1", port=9)
    told = Configuration.model_validate({"mirror": {"outside": [place.model_dump()]}})
    monkeypatch.setattr("gateway.outside.commitments.queries.configuration", lambda: told)
    monkeypatch.setattr("gateway.outside.commitments.QUIET", timedelta(0))
    rows = [held(tmp_path, "old") for _ in range(2)]
    Delivery.objects.update(
        study_instance_uid="1.2.3",
        status="delivered",
        proof="stored",
        receipted_at=timezone.now(),
        receipt={"commitment": "to be asked"},
    )
    peer = Answers()
    look = Commitments(peer)
    look.run()
    assert [len(instances) for instances in peer.asked] == [2]
    look.run()
    assert len(peer.asked) == 1, "what is asked is not asked again"
    uids = [row.sop_instance_uid for row in rows]
    peer.answers["1.2.1"] = Answer(frozenset(uids[:1]), {uids[1]: 0x0112})
    look.run()
    safe, refused = (Delivery.objects.get(pk=row.pk) for row in rows)
    assert (safe.status, safe.proof) == ("delivered", "committed")
    assert (refused.status, refused.proof) == ("waiting", "")
    assert refused.last_error == "commitment-refused: 0112 no such object instance"


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Delivery]:
    """Two instances that a PACS took, and the request to answer for them is on its way to it."""
    place = OutsideDestination(name="old", kind="dicom", ae_title="OLDPACS", host="127.0.0.1", port=9)
    told = Configuration.model_validate({"mirror": {"outside": [place.model_dump()]}})
    monkeypatch.setattr("gateway.outside.commitments.queries.configuration", lambda: told)
    monkeypatch.setattr("gateway.outside.commitments.QUIET", timedelta(0))
    rows = [held(tmp_path, "old") for _ in range(2)]
    evidence = {"commitment": "to be asked"}
    Delivery.objects.update(
        study_instance_uid="1.2.3", status="delivered", proof="stored", receipted_at=timezone.now(), receipt=evidence
    )
    Commitments(Scu()).run()
    assert {row.receipt["commitment"] for row in Delivery.objects.all() if row.receipt} == {"asked"}
    return rows


def proofs() -> list[tuple[str, str, str]]:
    return [
        (row.status, row.proof, str((row.receipt or {}).get("commitment")))
        for row in Delivery.objects.order_by("pk").filter(destination="old")
    ]


def test_commitment_that_comes_after_the_gateway_began_again_counts(asked: list[Delivery]) -> None:
    request = Commitment.objects.get(role="scu")
    Commitments(Scu()).run()
    assert proofs() == [("delivered", "stored", "asked")] * 2, "no answer yet, and nothing stronger is claimed"
    assert keep_result("OLDPACS", request.transaction_uid, {"committed": request.instances, "failed": []})
    Commitments(Scu()).run()
    assert proofs() == [("delivered", "committed", "committed")] * 2
    assert Commitment.objects.filter(role="scu").count() == 1, "and nothing is asked twice"


def test_a_report_that_names_something_else_proves_nothing(asked: list[Delivery]) -> None:
    request = Commitment.objects.get(role="scu")
    strange = [[request.instances[0][0], "1.2.3.4"]]
    assert not keep_result("ANOTHER", request.transaction_uid, {"committed": request.instances, "failed": []})
    assert not keep_result("OLDPACS", "1.2.3.99", {"committed": request.instances, "failed": []})
    assert keep_result("OLDPACS", request.transaction_uid, {"committed": strange, "failed": []})
    Commitments(Scu()).run()
    assert proofs() == [("delivered", "stored", "no answer: not in the report")] * 2


def test_a_pacs_that_knows_no_commitment_is_said_to_have_stored_and_no_more(asked: list[Delivery]) -> None:
    Commitment.objects.update(attempts=3, last_error="commitment-refused: no such service")
    Commitments(Scu()).run()
    assert proofs() == [("delivered", "stored", "no answer: commitment-refused: no such service")] * 2


def test_what_came_from_a_foreign_pacs_is_known_to_be_there_whatever_it_is_called() -> None:
    source = ForeignSource(name="old-pacs", ae_title="ORTHANC", host="10.0.0.5", port=104)
    told = Configuration(foreign=[source])
    for place in (
        OutsideDestination(name="backup", kind="dicom", ae_title="OTHER", host="10.0.0.5", port=104),
        OutsideDestination(name="old-pacs", kind="stow", url="https://pacs.example/dicom-web"),
    ):
        assert "ORTHANC" in told.titles_at(place)
    elsewhere = OutsideDestination(name="else", kind="dicom", ae_title="ELSE", host="10.0.0.6", port=104)
    assert told.titles_at(elsewhere) == {"else", "ELSE"}


def test_the_node_s_page_names_what_a_place_outside_proves_and_never_calls_it_safe(
    tmp_path: Path, client: Client
) -> None:
    for proof in ("stored", "committed", "committed"):
        row = held(tmp_path, "vault")
        Delivery.objects.filter(pk=row.pk).update(status="delivered", proof=proof)
    held(tmp_path, "vault")
    client.force_login(User.objects.create_user("anna"))
    page = client.get("/state/").content.decode()
    assert "3 of 4" in page
    assert "at vault, outside the region" in page
    assert "stored, by its own word: 1" in page
    assert "storage committed: 2" in page
    assert "safe at vault" not in page
