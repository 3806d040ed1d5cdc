"""The sending end of a large instance: what it asks for, and what it makes of no answer."""

import socket
from collections import deque
from pathlib import Path

import httpx
import pytest
from django.utils import timezone

from gateway import actions, deliveries, encoding, registry
from gateway.envelope import Directory, InstanceDescription, JoinAnswer, Peer
from gateway.models import Delivery, JoinState
from gateway.sending import Large, Line
from pacs_node.study_index.actions import ingest
from pacs_node.study_index.models import Instance
from standards.errors import PermanentError, TransientError
from tests.contract.region import make_instance

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def large(tmp_path: Path) -> Large:
    """An instance of which all chunks are there."""
    image = make_instance()
    path = tmp_path / "image.dcm"
    image.save_as(path, enforce_file_format=True)
    taken = ingest(path, source_ae_title="SCANNER").instance
    row = Delivery.objects.create(
        instance_key=taken.pk,
        series_key=taken.series_id,
        study_instance_uid=image.StudyInstanceUID,
        sop_instance_uid=image.SOPInstanceUID,
        dataset_sha256=taken.dataset_sha256,
        destination="archive",
        size=taken.size,
        next_attempt_at=timezone.now(),
    )
    told = InstanceDescription(
        sop_instance_uid=str(image.SOPInstanceUID),
        sop_class_uid=str(image.SOPClassUID),
        transfer_syntax_uid=str(image.file_meta.TransferSyntaxUID),
        dataset_sha256=taken.dataset_sha256,
        size=taken.size,
    )
    return Large(row, told, taken.size, encoding.NO_PIXELS, deque())


def line_to(port: int) -> Line:
    url = f"http://127.0.0.1:{port}"
    peer = Peer(name="archive", kind="archive", ae_title="ARCHIVE", url=url, public_key="A" * 43)
    directory = Directory(peers=[peer], token_keys={}, mirror_to=["archive"])
    state: JoinState = actions.record_join(JoinAnswer(name="clinic", directory=directory), "https://127.0.0.1:8")
    return Line(state, peer, httpx.Client(base_url=url, timeout=httpx.Timeout(0.3), trust_env=False))


def test_a_receiver_that_checks_for_long_is_asked_again_and_that_is_no_failed_attempt(large: Large) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        line = line_to(silent.getsockname()[1])
        with pytest.raises(TransientError) as caught:
            line.finish(large)
    assert caught.value.code == "still-checking"
    deliveries.record_failure(large.delivery, caught.value)
    row = Delivery.objects.get()
    assert (row.status, row.attempts) == ("waiting", 0)


def test_a_large_file_that_rotted_is_named_so_and_never_taken_in(large: Large) -> None:
    path = registry.node().data_dir / "storage" / Instance.objects.get().path
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)
    with pytest.raises(PermanentError) as caught:
        line_to(9).finish(large)
    assert caught.value.code == "source-damaged"


def test_a_receiver_that_is_away_is_away(large: Large) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(TransientError) as caught:
        line_to(port).finish(large)
    assert caught.value.code == "unreachable"
