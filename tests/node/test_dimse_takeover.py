"""Between pynetdicom, which negotiates, and the loop that receives, no association may be lost."""

import time
from collections.abc import Iterator

import pytest
from pynetdicom.fsm import StateMachine

from deploy.processes import free_port
from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import NodeConfig, config
from pacs_node.dimse import server as server_module
from pacs_node.dimse.calling import Address, associate
from pacs_node.dimse.server import DimseServer
from standards import upper_layer
from standards.sop_classes import VERIFICATION

pytestmark = pytest.mark.django_db(transaction=True)
HELD_UP_SECONDS = 1.0


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[NodeConfig]:
    """Of a server that runs in this process, which other tests share: pynetdicom's settings stay as they are."""
    monkeypatch.setattr(server_module, "prepare_pynetdicom", lambda: None)
    ApplicationEntity.objects.create(ae_title="MODALITY")
    settings = NodeConfig(**{**config().model_dump(), "dicom_port": free_port(), "dicom_tls_port": 0})
    server = DimseServer(settings)
    server.start()
    yield settings
    server.stop()


@pytest.mark.parametrize("left", ["Sta2", "Sta3"])
def test_an_association_is_accepted_however_late_its_state_changes(
    left: str, settings: NodeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    transition = StateMachine.transition

    def late(machine: StateMachine, state: str) -> None:
        if machine.current_state == left:
            time.sleep(HELD_UP_SECONDS)
        transition(machine, state)

    monkeypatch.setattr(StateMachine, "transition", late)
    channel = associate(
        Address(settings.ae_title, "127.0.0.1", settings.dicom_port),
        calling="MODALITY",
        contexts=[(VERIFICATION, ("1.2.840.10008.1.2",))],
        timeout=60,
    )
    command = {"CommandField": upper_layer.C_ECHO_RQ, "MessageID": 1, "AffectedSOPClassUID": VERIFICATION}
    channel.send(channel.contexts[0].context_id, command)
    assert channel.receive().command["Status"] == 0
    channel.release()
