"""What the tests of hostile peers share: the two ways that associations are served, and what must hold after each."""

import json
import struct
from typing import Any

import pytest

from tests.factories.dicom import Patient, Study, ct_instance, part10
from tests.node.conftest import NodeProcess
from tests.node.raw_association import (
    CT,
    EXPLICIT,
    FIND,
    IMPLICIT,
    VERIFICATION,
    Context,
    RawAssociation,
)

STORING: tuple[Context, ...] = ((CT, EXPLICIT), (VERIFICATION, IMPLICIT))
"""Served by the node's own loop."""
MIXED: tuple[Context, ...] = (*STORING, (FIND, IMPLICIT))
"""Served by pynetdicom, because it is not for storing alone."""
BOTH = pytest.mark.parametrize("contexts", [STORING, MIXED], ids=["storing", "mixed"])

NAME = "SECRETOV^NIKITA"


def made(**values: Any) -> Any:
    """A small CT slice of a patient whose name must not be seen in a log."""
    dataset = ct_instance(study=Study(patient=Patient(name=NAME)), size=16)
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def data_set(whole: bytes) -> bytes:
    """What follows the file meta group of a Part 10 file of ours."""
    length = struct.unpack("<L", whole[140:144])[0]
    return whole[144 + length :]


def explicit(dataset: Any) -> bytes:
    return data_set(part10(dataset))


def lines_of(log: list[str]) -> list[dict[str, Any]]:
    """The lines of a log: JSON each, none of them with the patient's name."""
    said = [json.loads(line) for line in log]
    assert not [line for line in log if "SECRETOV" in line]
    return said


def traces(node: NodeProcess, study: str) -> list[str]:
    """Whatever index and storage hold of a study."""
    rows = node.sql("SELECT study_instance_uid FROM study_index_study WHERE study_instance_uid = ?", study)
    files = list(node.storage.glob(f"studies/*/{study}")) + list((node.storage / "incoming").iterdir())
    return [*(str(row) for row in rows), *map(str, files)]


def serves(node: NodeProcess) -> None:
    """A C-ECHO and a good C-STORE on a new association."""
    good = made()
    with RawAssociation(node) as association:
        assert association.echo() == 0
        assert association.store(CT, good.SOPInstanceUID, explicit(good))["Status"] == 0
        association.release()
    assert len(node.held(good.StudyInstanceUID)) == 1
