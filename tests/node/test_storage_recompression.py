"""Recompression: nothing is replaced before all of it was had back, and everybody reads what is stored."""

import hashlib
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.test import Client
from pydicom import dcmread
from pydicom.dataset import FileDataset
from pydicom.uid import ImplicitVRLittleEndian

from pacs_node.study_index.recompressing import recompress_one
from standards.digests import digests
from standards.errors import PermanentError
from standards.lossless import ENCODINGS
from standards.recompression import chunks, received, recompress
from standards.uids import new_uid
from tests.factories.dicom import Study, ct_series, encapsulated_pdf, part10, secondary_capture, write_all
from tests.node.conftest import NodeProcess, need
from tests.node.dicomweb_node import ct_slice, join, take_in

JPEG_LS = ENCODINGS["jpeg-ls"]


def image(kind: str) -> bytes:
    """A Part 10 file of an image of this kind."""
    (dataset,) = ct_series(1)
    generator = np.random.default_rng(7)
    if kind == "unsigned 12 in 16":
        pass
    elif kind == "signed 16":
        values = (dataset.pixel_array.astype(np.int16) - 1024) * 15
        dataset.PixelData, dataset.PixelRepresentation = values.astype("<i2").tobytes(), 1
        dataset.BitsStored, dataset.HighBit = 16, 15
    elif kind == "signed 12 in 16":
        values = np.clip(dataset.pixel_array.astype(np.int16) - 1024, -2048, 2047)
        dataset.PixelData, dataset.PixelRepresentation = values.astype("<i2").tobytes(), 1
    elif kind == "unsigned 16 noise":
        dataset.PixelData = generator.integers(0, 65536, (64, 64), dtype="<u2").tobytes()
        dataset.BitsStored, dataset.HighBit = 16, 15
    elif kind == "unsigned 8":
        dataset = secondary_capture()
    elif kind.startswith("colour"):
        dataset = secondary_capture()
        rows = np.indices((32, 32)).sum(axis=0)
        values = np.stack([rows * 3 % 256, rows * 5 % 256, rows * 7 % 256], axis=-1).astype(np.uint8)
        if kind == "colour by plane":
            values = np.ascontiguousarray(values.transpose(2, 0, 1))
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, int(kind == "colour by plane")
        dataset.PhotometricInterpretation = "RGB"
        dataset.PixelData = values.tobytes()
    elif kind == "multi-frame":
        frames = np.stack([frame.pixel_array for frame in ct_series(7)])
        dataset.NumberOfFrames = 7
        dataset.PixelData = frames.astype("<u2").tobytes()
    elif kind == "odd length with padding":
        dataset.Rows = dataset.Columns = 5
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = bytes(range(25)) + b"\0"
    elif kind == "implicit":
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return part10(dataset)


KINDS = [
    "unsigned 12 in 16", "signed 16", "signed 12 in 16", "unsigned 16 noise", "unsigned 8", "colour", "colour by plane",
    "multi-frame", "odd length with padding", "implicit",
]  # fmt: skip


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("kind", KINDS)
def test_the_received_file_comes_back_byte_for_byte(kind: str, encoding: str, tmp_path: Path) -> None:
    original, path = image(kind), tmp_path / "stored.dcm"
    if encoding == "jpeg-xl" and kind.startswith("signed"):
        with pytest.raises(PermanentError, match="JPEG XL has no signed samples"):
            recompress(io.BytesIO(original), io.BytesIO(), ENCODINGS[encoding])
        return
    with path.open("w+b") as target:
        recompress(io.BytesIO(original), target, ENCODINGS[encoding])
    with received(path.open("rb")) as again:
        assert b"".join(chunks(again)) == original
        again.seek(len(original) // 2)
        assert again.read(17) == original[len(original) // 2 :][:17]
    whole = tmp_path / "original.dcm"
    whole.write_bytes(original)
    assert digests(path).frames == digests(whole).frames
    stored, was = dcmread(path), dcmread(whole)
    assert stored.file_meta.TransferSyntaxUID == ENCODINGS[encoding]
    differing = {element.keyword for element in was if stored.get(element.tag) != element} - {"PixelData"}
    assert differing <= {"PlanarConfiguration"}


def test_dcmtk_reads_the_same_pixels_from_jpeg_ls(tmp_path: Path) -> None:
    need("dcmdjpls")
    kinds = ["signed 12 in 16", "signed 16", "colour by plane", "multi-frame", "unsigned 16 noise"]
    for number, kind in enumerate(kinds):
        path, back = tmp_path / f"{number}.dcm", tmp_path / f"{number}-back.dcm"
        with path.open("w+b") as target:
            recompress(io.BytesIO(image(kind)), target, JPEG_LS)
        subprocess.run(["dcmdjpls", str(path), str(back)], check=True, capture_output=True)
        expected = dcmread(io.BytesIO(image(kind))).pixel_array
        assert np.array_equal(dcmread(back).pixel_array, expected), kind


@pytest.mark.parametrize("kind", ["signed 16", "colour", "multi-frame"])
def test_a_big_endian_file_comes_back_byte_for_byte(kind: str, tmp_path: Path) -> None:
    need("dcmconv")
    (tmp_path / "little.dcm").write_bytes(image(kind))
    subprocess.run(["dcmconv", "+tb", str(tmp_path / "little.dcm"), str(tmp_path / "big.dcm")], check=True)
    original, path = (tmp_path / "big.dcm").read_bytes(), tmp_path / "stored.dcm"
    with path.open("w+b") as target:
        recompress(io.BytesIO(original), target, JPEG_LS)
    with received(path.open("rb")) as again:
        assert b"".join(chunks(again)) == original
    assert np.array_equal(dcmread(path).pixel_array, dcmread(tmp_path / "little.dcm").pixel_array)


def test_bits_above_the_stored_ones_are_not_lost_silently(tmp_path: Path) -> None:
    (dataset,) = ct_series(1)
    dataset.PixelData = (dataset.pixel_array | 0x8000).astype("<u2").tobytes()
    original, path = part10(dataset), tmp_path / "x.dcm"
    with path.open("w+b") as target:
        recompress(io.BytesIO(original), target, JPEG_LS)
    with received(path.open("rb")) as again:
        assert b"".join(chunks(again)) != original  # so the policy, which compares, leaves it alone


def overlaid(study: Study) -> FileDataset:
    (dataset,) = ct_series(1, study=study)
    dataset.PixelData = (dataset.pixel_array | 0x8000).astype("<u2").tobytes()
    return dataset


@pytest.fixture
def filled(make_node: Callable[..., NodeProcess], tmp_path: Path) -> tuple[NodeProcess, Study]:
    """A node, not running, with images, a document and an image whose unused bits are used."""
    node, study = make_node(start=False), Study()
    datasets = [*ct_series(3, study=study, size=128), overlaid(study), encapsulated_pdf(study=study)]
    write_all(datasets, tmp_path / "in")
    node.command("import", str(tmp_path / "in"))
    return node, study


def test_the_policy_replaces_what_survives_and_leaves_the_rest_with_a_reason(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    before = node.sql("SELECT id, dataset_sha256 FROM study_index_instance ORDER BY id")
    received_before = node.python(RECEIVED)
    done = node.command("recompress", study.study_instance_uid, "--originals-now").stdout
    assert "3 recompressed" in done
    assert "1 left alone: cannot-recompress: the received bytes cannot be made again from it" in done
    assert node.sql("SELECT id, dataset_sha256 FROM study_index_instance ORDER BY id") == before
    assert node.python(RECEIVED) == received_before  # what the gateway mirrors, and how it describes it
    files = node.files(study.study_instance_uid)
    assert len(files) == 5
    assert sum(str(dcmread(path).file_meta.TransferSyntaxUID) == JPEG_LS for path in files) == 3
    assert node.command("verify", "--once").returncode == 0
    assert "0 recompressed" in node.command("recompress", study.study_instance_uid).stdout
    node.start()
    need("getscu")
    got = node.data_dir / "got"
    got.mkdir()
    out = node.dcmtk(
        "getscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k",
        f"StudyInstanceUID={study.study_instance_uid}", "-od", str(got),
    )  # fmt: skip
    assert (out.returncode, len(list(got.iterdir()))) == (0, 5), out.stderr


RECEIVED = """
import hashlib, json
from gateway import registry
from pacs_node.study_index.models import Instance
store, found = registry.store(), []
for key in Instance.objects.order_by('pk').values_list('pk', flat=True):
    described = store.describe_instances([key])[0].model_dump(mode='json')
    described.pop('pixel_sha256'); described.pop('frames_sha256')
    with store.open(key) as file:
        found.append([described, hashlib.sha256(file.read()).hexdigest()])
print(json.dumps(found))
"""


def test_a_recompressed_node_is_reindexed_from_its_files_alone(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    node.command("recompress", study.study_instance_uid, "--originals-now")
    rows = "SELECT sop_instance_uid, dataset_sha256, path, transfer_syntax_uid, size FROM study_index_instance"
    kept = "SELECT stored_sha256, original_transfer_syntax_uid, original_size FROM storage_recompression"
    before = sorted(node.sql(rows)), sorted(row for row in node.sql(kept) if row[0])
    node.python(
        "from pacs_node.study_index.models import Study\nfrom gateway.models import OutboxEntry\n"
        "Study.objects.all().delete(); OutboxEntry.objects.all().delete()"
    )
    assert "5 added to the index, 0 damaged" in node.command("reindex").stdout
    assert (sorted(node.sql(rows)), sorted(node.sql(kept))) == before


def test_a_crash_between_the_new_file_and_the_index_leaves_nothing_unexplained(
    filled: tuple[NodeProcess, Study],
) -> None:
    node, study = filled
    node.python(
        "import os\n"
        "from pacs_node.study_index import recompressing\n"
        "recompressing._switch = lambda *a: os._exit(0)\n"
        f"i = recompressing.waiting('jpeg-ls', 1, study_instance_uid={study.study_instance_uid!r})[0]\n"
        "recompressing.recompress_one(i, 'jpeg-ls')\n"
    )
    assert any("~jpeg-ls" in path.name for path in node.files(study.study_instance_uid))
    assert "made from an instance" in node.command("verify", "--once", "--settled", "0").stdout
    assert not any("~jpeg-ls" in path.name for path in node.files(study.study_instance_uid))
    assert "3 recompressed" in node.command("recompress", study.study_instance_uid, "--originals-now").stdout


def test_real_images_of_every_kind_survive_or_are_left_alone(sample_data: Path, tmp_path: Path) -> None:
    survived = 0
    for folder in ("ct/siemens_gantry_tilt", "ct/single", "transfer_syntaxes/colour", "us_cine", "mr", "cr_dx"):
        for path in sorted((sample_data / folder).rglob("*.dcm")):
            original, stored = path.read_bytes(), tmp_path / "stored.dcm"
            try:
                with stored.open("w+b") as target:
                    recompress(io.BytesIO(original), target, JPEG_LS)
            except PermanentError:
                continue
            with received(stored.open("rb")) as again:
                assert hashlib.sha256(again.read()).digest() == hashlib.sha256(original).digest(), path
            survived += 1
    assert survived > 20


def test_what_leaves_after_recompression_leaves_and_comes_back_as_it_was_received(
    filled: tuple[NodeProcess, Study], tmp_path: Path
) -> None:
    node, study = filled
    node.settings["REGIS_NODE_INSTITUTION_URL"] = (tmp_path / "institution").as_uri()
    node.settings["REGIS_NODE_TIER_AFTER_DAYS"] = "1"
    received_before = node.python(RECEIVED)
    node.command("recompress", study.study_instance_uid)
    assert len(node.files(study.study_instance_uid)) == 8  # originals stay for a while
    node.python(
        "from datetime import timedelta\nfrom django.utils import timezone\n"
        "from pacs_node.study_index.models import Instance, Study\n"
        "for model in (Instance, Study):\n"
        "    model.objects.update(created_at=timezone.now() - timedelta(days=9))"
    )
    assert "1 studies left" in node.command("tier").stdout
    assert node.files(study.study_instance_uid) == []
    assert "5 instances are back" in node.command("recall", study.study_instance_uid).stdout
    assert json.loads(node.python(RECEIVED).splitlines()[-1]) == json.loads(received_before)
    assert node.command("verify", "--once").returncode == 0


def test_a_rotten_recompressed_file_is_healed_by_the_received_one(
    filled: tuple[NodeProcess, Study], tmp_path: Path
) -> None:
    node, study = filled
    node.settings["REGIS_NODE_INSTITUTION_URL"] = (tmp_path / "institution").as_uri()
    received_before = node.python(RECEIVED)
    node.python(
        "from datetime import timedelta\nfrom django.utils import timezone\n"
        "from pacs_node.study_index.models import Instance, Study\n"
        "for model in (Instance, Study):\n"
        "    model.objects.update(created_at=timezone.now() - timedelta(days=9))"
    )
    node.command("tier")
    node.command("recompress", study.study_instance_uid, "--originals-now")
    victim = next(path for path in node.files(study.study_instance_uid) if "~jpeg-ls" in path.name)
    content = bytearray(victim.read_bytes())
    content[-50] ^= 1
    victim.write_bytes(content)
    assert "healed from institution" in node.command("verify", "--once").stdout
    assert not victim.exists()
    assert json.loads(node.python(RECEIVED).splitlines()[-1]) == json.loads(received_before)


@pytest.mark.django_db
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_dicomweb_serves_what_is_stored_and_shows_the_same_picture(client: Client, encoding: str) -> None:
    centre, study, series = join(), new_uid(), new_uid()
    pixels = (np.arange(2 * 64 * 64, dtype="<u2") % 64 * 3).tobytes()
    instance = take_in(ct_slice(study, series, frames=2, Rows=64, Columns=64, PixelData=pixels)).instance
    at = f"/dicom-web/studies/{study}/series/{series}/instances/{instance.sop_instance_uid}"
    headers = centre.bearer(study)

    def get(path: str, accept: str) -> Any:
        answer = client.get(at + path, headers={**headers, "Accept": accept})
        assert answer.status_code == 200, answer.content
        return answer

    native = "application/octet-stream; transfer-syntax=1.2.840.10008.1.2.1"
    frame = get("/frames/2", native).getvalue()
    picture = get("/rendered", "image/png").content
    get("/metadata", "application/dicom+json").getvalue()  # is remembered, and must be forgotten
    outcome = recompress_one(instance, encoding)
    assert outcome.left_alone == ""
    metadata = get("/metadata", "application/dicom+json").json()
    assert metadata[0]["00083002"]["Value"] == [ENCODINGS[encoding]]
    as_stored = get("/frames/2", 'multipart/related; type="application/octet-stream"; transfer-syntax=*')
    assert len(as_stored.getvalue()) < 64 * 64
    assert get("/frames/2", native).getvalue() == frame
    assert get("/rendered", "image/png").content == picture
