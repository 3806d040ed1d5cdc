"""Trying a foreign PACS out because a person asked: each step with its answer, by real peers."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from deploy.processes import free_port
from gateway.actions import apply_configuration, record_join
from gateway.envelope import Configuration, Directory, ForeignSource, JoinAnswer, Probe, ProbeSource
from gateway.foreign import actions
from gateway.foreign.loops import Attendant
from gateway.foreign.models import ForeignPacs
from gateway.foreign.pacs import pacs_of
from gateway.foreign.probing import probe, with_patience
from gateway.models import OutboxEntry
from standards.errors import PermanentError
from standards.uids import new_uid
from tests.factories.foreign_peers import orthanc
from tests.node.conftest import AE_TITLE
from tests.node.foreign_looking import NOW, at_once, image, quirky_source

pytestmark = pytest.mark.django_db(transaction=True)


def probed(source: ForeignSource) -> dict[str, tuple[str, str]]:
    pacs = pacs_of(with_patience(source), at_once)
    try:
        found = probe(source, pacs, asked_at=NOW, today=timezone.localdate())
    finally:
        pacs.close()
    return {one.step: (one.outcome, one.detail) for one in found.steps}


class _AtOnce(Attendant):
    """Does in this thread what it would begin in others."""

    @staticmethod
    def _start(name: str, work: Callable[[], None]) -> None:
        work()


@pytest.mark.parametrize(
    ("kind", "retrieve"), [("dicom", "c-get"), ("dicom", "c-move"), ("dicom", "wado-rs"), ("dicomweb", "wado-rs")]
)
def test_orthanc_answers_every_step_and_what_it_leaves_open_is_unclear(
    tmp_path: Path, kind: str, retrieve: str
) -> None:
    with orthanc(tmp_path / "pacs", {"node": (AE_TITLE, 104)}) as archive:
        archive.take(image(new_uid(), date=f"{timezone.localdate():%Y%m%d}"), tmp_path)
        steps = probed(archive.source(kind=kind, retrieve=retrieve))
    assert steps["echo"] == steps["find"] == ("ok", "")
    # Of a study that does not exist Orthanc says by DIMSE no more than that.
    unclear = ("unclear", "retrieve-failed: the PACS answered C000")
    assert steps["retrieve"] == (unclear if retrieve in ("c-get", "c-move") else ("ok", ""))


def test_a_pacs_that_names_the_destination_as_unknown_fails_before_anybody_needs_an_image() -> None:
    entity = AE(ae_title="QUIRKY")
    for sop_class in (Verification, StudyRootQueryRetrieveInformationModelFind):
        entity.add_supported_context(sop_class)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    port = free_port()
    handlers = [(evt.EVT_C_FIND, lambda event: iter(())), (evt.EVT_C_MOVE, lambda event: iter([(None, None)]))]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
    try:
        steps = probed(quirky_source(port))
    finally:
        server.shutdown()
    assert (steps["echo"], steps["find"]) == (("ok", ""), ("ok", ""))
    assert steps["retrieve"][0] == "failed"
    assert steps["retrieve"][1].startswith("move-destination-unknown")


def test_a_pacs_that_is_away_is_asked_nothing_more() -> None:
    assert probed(quirky_source(9)).keys() == {"echo"}
    assert probed(quirky_source(9))["echo"][0] == "failed"


def test_what_a_person_asked_for_is_tried_at_once_and_told_also_while_the_source_is_not_in_use(tmp_path: Path) -> None:
    join = JoinAnswer(name="clinic", directory=Directory(peers=[], token_keys={}, mirror_to=[]))
    record_join(join, "https://127.0.0.1:9")
    with orthanc(tmp_path / "pacs") as archive:
        source = archive.source(enabled=False, hours=["00:00-00:00"])
        apply_configuration(Configuration(version=1, foreign=[source]))
        attendant = _AtOnce()
        attendant.run()
        assert not ForeignPacs.objects.exists(), "what is not in use is not polled"
        actions.apply_probe(ProbeSource(source=source.name, asked_at=NOW))
        attendant.run()
    row = ForeignPacs.objects.get()
    assert (row.probe_asked_at, row.polled_at) == (None, None)
    told = [entry.body for entry in OutboxEntry.objects.filter(kind="foreign.source")]
    kept = Probe.model_validate(told[-1]["probe"])
    assert kept.asked_at == NOW
    assert {one.step for one in kept.steps} == {"echo", "find", "retrieve"}


def test_a_source_that_was_left_out_during_its_poll_stays_left_out() -> None:
    record_join(JoinAnswer(name="clinic", directory=Directory(peers=[], token_keys={}, mirror_to=[])), "https://x:9")
    source, attendant = quirky_source(9), _AtOnce()
    apply_configuration(Configuration(version=1, foreign=[source]))
    attendant.run()
    assert ForeignPacs.objects.get().retired_at is None
    apply_configuration(Configuration(version=2))
    attendant.run()
    actions.record_poll(source, now=NOW, due=NOW, swept=False, quirks=None, error="it ended late")
    attendant.run()
    assert ForeignPacs.objects.get().retired_at is not None


def test_a_source_that_nobody_configured_is_not_tried() -> None:
    with pytest.raises(PermanentError, match="unknown-source"):
        actions.apply_probe(ProbeSource(source="nowhere", asked_at=NOW))


def test_the_centre_hears_every_few_minutes_that_a_pacs_still_answers() -> None:
    source = quirky_source(9)
    record_join(JoinAnswer(name="clinic", directory=Directory(peers=[], token_keys={}, mirror_to=[])), "https://x:9")

    def polled_at(minutes: float) -> bool:
        """Whether a poll then is told."""
        moment = timezone.now() + timedelta(minutes=minutes)
        actions.record_poll(source, now=moment, due=moment, swept=False, quirks=set())
        return actions.tell() > 0

    assert [polled_at(minutes) for minutes in (0, 1, 6)] == [True, False, True]
