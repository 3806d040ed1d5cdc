"""The centre against a real archive node over TLS: images streamed to people, reports stored, a disc collected."""

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asgiref.sync import async_to_sync
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test import AsyncClient, Client
from pydicom import dcmread

from deploy.certificates import ensure_authority
from gateway.envelope import InstanceDescription
from ris_central.accounts.models import Role, User
from ris_central.catalogue import archive as archive_access
from ris_central.catalogue import reach
from ris_central.catalogue.archive import retrieve_series
from ris_central.catalogue.models import Study
from ris_central.discs import actions as discs
from ris_central.discs.tasks import run
from ris_central.federation.keys import token_keys
from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from ris_central.reporting import actions as reporting
from ris_central.reporting.tasks import store_document
from standards.digests import dataset_sha256
from tests.contract.parts import Part, succeed
from tests.contract.region import NodeUnderTest, Region, make_series
from tests.factories import region

pytestmark = [pytest.mark.django_db, pytest.mark.timeout(600)]
Browser = Callable[[User | None], Client]
COUNT = 3


class Held:
    """A real archive that holds a study which the catalogue knows."""

    def __init__(self, node: NodeUnderTest, url: str, files: Path, study_uid: str) -> None:
        self.process, self.files = node, files
        self.clinic = region.node("clinic", region.site("a"))
        self.node = region.node("archive", region.site("centre", Site.Kind.CENTRE), Node.Kind.ARCHIVE, url)
        made = region.Acquisition(patient_id="CONTRACT-1", images=0, study_uid=study_uid, name="Выдумкин^Пример")
        for path in sorted(files.glob("*.dcm")):
            header = dcmread(path, stop_before_pixels=True)
            made.series = made.series.model_copy(update={"series_instance_uid": str(header.SeriesInstanceUID)})
            made.images.append(
                InstanceDescription(
                    sop_instance_uid=str(header.SOPInstanceUID),
                    sop_class_uid=str(header.SOPClassUID),
                    transfer_syntax_uid=str(header.file_meta.TransferSyntaxUID),
                    dataset_sha256=dataset_sha256(path),
                    size=path.stat().st_size,
                    instance_number=int(header.InstanceNumber),
                )
            )
        made.arrive(self.clinic)
        made.arrive(self.node)
        self.made = made
        self.doctor = region.person("doctor", Role.RADIOLOGIST, self.clinic.site)
        self.clerk = region.person("clerk", Role.CLERK, self.clinic.site)

    @property
    def study(self) -> Study:
        return self.made.known()

    @property
    def series_path(self) -> str:
        return f"/dicom-web/studies/{self.study.study_instance_uid}/series/{self.made.series.series_instance_uid}"


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NodeUnderTest, str, Path, str, Path]]:
    """An archive process with three images; it trusts the key of the centre under test."""
    folder = tmp_path_factory.mktemp("real")
    authority = ensure_authority(folder / "tls")
    made = Region(folder, "", authority, Part("none", [], {}, folder / "none.log"), 0)
    node = made.add_node("archive", "archive")
    study, _ = make_series(COUNT, folder / "files")
    code = (
        "import django, json, sys; django.setup()\n"
        "from gateway.models import JoinState\n"
        "JoinState.objects.create(name='archive', centre_url='https://127.0.0.1:9', epoch='e',"
        " directory={'type': 'directory', 'peers': [], 'token_keys': json.loads(sys.argv[1]), 'mirror_to': []})"
    )
    succeed(["-c", code, json.dumps(token_keys())], node.environment)
    made.take_in(node, folder / "files")
    try:
        made.start_pacs(node)
        yield node, f"https://127.0.0.1:{node.https_port}", folder / "files", study, authority
    finally:
        node.pacs.kill()


@pytest.fixture
def held(
    real: tuple[NodeUnderTest, str, Path, str, Path],
    settings: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Held]:
    node, url, files, study, authority = real
    monkeypatch.setattr(reach, "CONNECT_SECONDS", 60.0)  # there is no other archive to ask on a busy machine
    changed = {"tls_ca": authority, "data_dir": tmp_path}
    settings.CONFIG = settings.CONFIG.model_copy(update=changed)  # type: ignore[attr-defined]
    archive_access.tls_context.cache_clear()
    yield Held(node, url, files, study)
    archive_access.tls_context.cache_clear()  # what comes next trusts what it is told to


def fetch(user: User, path: str, accept: str = "*/*") -> tuple[HttpResponseBase, bytes]:
    """An answer and its whole streamed body, in one event loop and on this test's database connection."""

    async def go() -> tuple[HttpResponseBase, bytes]:
        client = AsyncClient()
        await client.aforce_login(user, backend="django.contrib.auth.backends.ModelBackend")
        answer: HttpResponseBase = await client.get(path, headers={"Accept": accept})
        if isinstance(answer, StreamingHttpResponse):
            return answer, b"".join([piece async for piece in answer])
        assert isinstance(answer, HttpResponse)
        return answer, answer.content

    return async_to_sync(go)()


def test_metadata_and_frames_come_from_the_archive_as_ohif_asks(held: Held) -> None:
    answer, text = fetch(held.doctor, f"{held.series_path}/metadata", "application/dicom+json")
    assert (answer.status_code, answer["X-Regis-Holder"]) == (200, "archive")
    rows = json.loads(text)
    assert len(rows) == COUNT
    assert f"127.0.0.1:{held.process.https_port}".encode() not in text, "the node's own address is rewritten"
    uid = rows[0]["00080018"]["Value"][0]
    accept = "multipart/related; type=application/octet-stream; transfer-syntax=*"
    frame, pixels = fetch(held.doctor, f"{held.series_path}/instances/{uid}/frames/1", accept)
    assert frame.status_code == 200
    assert frame["Content-Type"].startswith("multipart/related")
    assert dcmread(held.files / f"{uid}.dcm").PixelData in pixels


def test_the_archive_gives_a_stranger_nothing(held: Held, browser_of: Browser) -> None:
    stranger = region.person("stranger", Role.RADIOLOGIST, region.site("b"))
    assert browser_of(stranger).get(f"{held.series_path}/metadata").status_code == 404


def test_a_series_is_read_back_instance_by_instance(held: Held) -> None:
    parts = [
        dcmread(io.BytesIO(b"".join(part)))
        for part in retrieve_series(held.node, held.study.study_instance_uid, held.made.series.series_instance_uid)
    ]
    assert sorted(str(one.SOPInstanceUID) for one in parts) == sorted(one.sop_instance_uid for one in held.made.images)


def test_a_signed_report_is_stored_in_the_archive_as_pdf_and_sr_once(held: Held) -> None:
    report = reporting.sign(held.study, held.doctor, version=0, findings="Лёгкие чистые.", conclusion="Норма.")
    documents = list(report.documents.all())
    for document in documents:
        assert store_document(document.pk), report.documents.get(pk=document.pk).last_error
    for document in documents:
        document.stored_at, document.next_attempt_at = None, document.created_at
        document.save()
        assert store_document(document.pk), "a repeated delivery is a success"
    rows = held.process.query(
        "SELECT sop_class_uid FROM study_index_instance WHERE sop_instance_uid IN (?, ?)",
        *(document.sop_instance_uid for document in documents),
    )
    assert sorted(str(row[0]) for row in rows) == ["1.2.840.10008.5.1.4.1.1.104.1", "1.2.840.10008.5.1.4.1.1.88.11"]


def test_a_disc_is_collected_built_verified_and_downloaded(held: Held, browser_of: Browser) -> None:
    reporting.sign(held.study, held.doctor, version=0, findings="Лёгкие чистые.", conclusion="Норма.")
    job = discs.order([held.study], held.clerk, medium="cd")
    began = time.monotonic()
    done = run(job.pk)
    assert done is not None
    job.refresh_from_db()
    assert job.status == "completed", f"{job.error_code} {job.error_detail} after {time.monotonic() - began:.0f} s"
    assert job.report["instances"] == COUNT + 2
    assert run(job.pk) is None, "a job that is done is not done again"
    answer, image = fetch(held.clerk, f"/discs/{job.pk}/disc.iso")
    assert (answer.status_code, len(image)) == (200, job.image_bytes)
    assert browser_of(held.doctor).get(f"/discs/{job.pk}/disc.iso").status_code == 403
