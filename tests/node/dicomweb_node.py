"""A node's HTTP side on a real port, and a client of it, for tests."""

import io
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.http import HttpResponse
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from gateway.models import JoinState
from pacs_node.study_index.actions import Ingested, ingest
from pacs_node.study_index.models import Instance
from standards.multipart import parse_related
from standards.tokens import generate_key, issue_image_token, public_key_to_text
from standards.uids import new_uid

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


def ct_slice(
    study: str,
    series: str,
    *,
    name: str = "Щёголев^Пётр^Ёжикович",
    patient_id: str = "A-0001",
    number: int = 1,
    sop: str = "",
    frames: int = 1,
    **values: object,
) -> bytes:
    """A made-up CT slice of 16 × 16 as a Part 10 file; ``values`` are further attributes."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = CT_IMAGE, sop or new_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = name, patient_id, "19700203"
    dataset.PatientSex, dataset.StudyDate, dataset.StudyTime = "M", "20260110", "1015"
    dataset.AccessionNumber, dataset.StudyID, dataset.Modality = "A1", "1", "CT"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.StudyDescription = "Грудная клетка"
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.PixelData = (np.arange(256 * frames, dtype="<u2") + number).tobytes()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    output = io.BytesIO()
    dataset.save_as(output, enforce_file_format=True)
    return output.getvalue()


def take_in(content: bytes) -> Ingested:
    """Store a Part 10 file as the node does."""
    return ingest(io.BytesIO(content), source_ae_title="TESTER")


@dataclass
class Centre:
    """What a node trusts: the name it was joined under and the key that signs image tokens."""

    key: Ed25519PrivateKey
    node: str = "clinic-a"

    def token(
        self,
        *studies: str,
        operations: tuple[str, ...] = ("read",),
        audience: str = "",
        ttl: int = 300,
        key: Ed25519PrivateKey | None = None,
    ) -> str:
        """An image token for these studies."""
        token, _ = issue_image_token(
            key or self.key,
            "k1",
            subject="dr-somova",
            audience=audience or self.node,
            studies=studies,
            operations=operations,
            ttl=ttl,
        )
        return token

    def bearer(self, *studies: str, **options: object) -> dict[str, str]:
        """The header with such a token."""
        return {"Authorization": f"Bearer {self.token(*studies, **options)}"}  # type: ignore[arg-type]


def join() -> Centre:
    """Join the node under test to a centre that has one key."""
    centre = Centre(generate_key())
    JoinState.objects.all().delete()
    JoinState.objects.create(
        name=centre.node,
        centre_url="https://centre.example",
        epoch="e1",
        directory={
            "peers": [],
            "mirror_to": [],
            "token_keys": {"k1": public_key_to_text(centre.key.public_key())},
            "site_name": "Клиника А",
        },
    )
    return centre


def body(response: HttpResponse) -> bytes:
    return b"".join(response.streaming_content) if response.streaming else response.content  # type: ignore[attr-defined]


def parts(response: HttpResponse) -> list[tuple[str, bytes]]:
    stream = io.BytesIO(body(response))
    return [(part.content_type, b"".join(part)) for part in parse_related(stream, response["Content-Type"])]


def place(instance: Instance) -> str:
    series = instance.series
    return (
        f"studies/{series.study.study_instance_uid}/series/{series.series_instance_uid}"
        f"/instances/{instance.sop_instance_uid}"
    )
