"""What tests of C-MOVE and C-GET share: storing, receiving, asking."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from tests.node.conftest import AE_TITLE, NodeProcess

MOVE, GET = StudyRootQueryRetrieveInformationModelMove, StudyRootQueryRetrieveInformationModelGet
UNCOMPRESSED = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]


def store(node: NodeProcess, sets: Sequence[Dataset]) -> None:
    """By one association for each class and syntax, as a modality would."""
    kinds = sorted({(str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID)) for dataset in sets})
    for start in range(0, len(kinds), 120):
        entity = AE(ae_title="MODALITY")
        for sop_class, syntax in kinds[start : start + 120]:
            entity.add_requested_context(sop_class, syntax)
        association = entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE)
        assert association.is_established
        for dataset in sets:
            if (str(dataset.SOPClassUID), str(dataset.file_meta.TransferSyntaxUID)) in kinds[start : start + 120]:
                assert association.send_c_store(dataset).Status == 0
        association.release()


@dataclass
class Receiver:
    """A Storage SCP that keeps what it gets and behaves as it is told."""

    node: NodeProcess
    ae_title: str
    sets: list[Dataset] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)
    associations: int = 0
    status: Callable[[evt.Event], int] = lambda event: 0
    server: Any = None

    def listen(
        self, contexts: list[tuple[str, list[UID]]], *, max_pdu: int = 16382, handlers: Sequence[Any] = ()
    ) -> None:
        entity = AE(ae_title=self.ae_title)
        entity.maximum_pdu_size = max_pdu
        for sop_class, syntaxes in contexts:
            entity.add_supported_context(sop_class, syntaxes)
        own = [(evt.EVT_C_STORE, self._keep), (evt.EVT_ESTABLISHED, self._count)]
        self.server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[*own, *handlers])
        self.node.admit(self.ae_title, host="127.0.0.1", port=self.server.server_address[1])

    def _count(self, _event: evt.Event) -> None:
        self.associations += 1

    def _keep(self, event: evt.Event) -> int:
        status = self.status(event)
        if status in (0, 0xB000):
            dataset = event.dataset
            dataset.file_meta = event.file_meta
            self.sets.append(dataset)
            self.requests.append(event.request)
        return status


@contextmanager
def receivers(node: NodeProcess) -> Iterator[Callable[..., Receiver]]:
    """Make receivers that ``node`` knows, for as long as the context lasts."""
    made: list[Receiver] = []

    def make(ae_title: str, contexts: list[tuple[str, list[UID]]] | None = None, **more: Any) -> Receiver:
        one = Receiver(node, ae_title)
        one.listen(contexts or [(CTImageStorage, UNCOMPRESSED)], **more)
        made.append(one)
        return one

    yield make
    for one in made:
        one.server.shutdown()


def after_a_while(_event: evt.Event) -> int:
    """Success, but not at once."""
    time.sleep(0.1)
    return 0


def keys(level: str = "STUDY", **values: str) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in values.items():
        setattr(query, keyword, value)
    return query


def open_association(node: NodeProcess, model: UID = MOVE, calling: str = "MODALITY", **more: Any) -> Association:
    entity = AE(ae_title=calling)
    entity.add_requested_context(model)
    for sop_class, syntax in more.pop("storage", []):
        entity.add_requested_context(sop_class, syntax)
    association = entity.associate("127.0.0.1", node.dicom_port, ae_title=AE_TITLE, **more)
    assert association.is_established
    return association


def move(node: NodeProcess, query: Dataset, destination: str, model: UID = MOVE) -> list[tuple[Dataset, Any]]:
    association = open_association(node, model)
    responses = list(association.send_c_move(query, destination, model))
    association.release()
    return responses


def counts(status: Dataset) -> tuple[int | None, int, int, int]:
    """Remaining, completed, failed, warning."""
    return (
        status.get("NumberOfRemainingSuboperations"),
        status.NumberOfCompletedSuboperations,
        status.NumberOfFailedSuboperations,
        status.NumberOfWarningSuboperations,
    )
