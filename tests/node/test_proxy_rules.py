"""Rules at work between real peers: drop, route, coerce, mend, copy, de-identify; and how copies enter the node."""

import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import FileDataset
from pydicom.filereader import dcmread

from deploy.processes import free_port, wait_until
from tests.factories.dicom import Patient, Study, ct_series, part10
from tests.node.conftest import NodeProcess
from tests.node.proxied import COPY_ALL, Orthanc, Proxy, dcmtk
from tests.unit.gateway.test_proxy_rewriting import lie

pytest_plugins = ["tests.node.old_pacs"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """Another archive, for routes and copies."""
    one = Orthanc(tmp_path_factory.mktemp("other"))
    one.start()
    yield one
    one.stop()


@pytest.fixture
def proxy(tmp_path: Path, pacs: Orthanc, other: Orthanc) -> Iterator[Proxy]:
    pacs.delete_all()
    other.delete_all()
    one = Proxy(tmp_path / "proxy", pacs.port)
    one.rules = f'[destinations.OTHER]\nae_title = "OLDPACS"\nhost = "127.0.0.1"\nport = {other.port}\n'
    yield one
    one.stop()


def uid_of(path: Path) -> str:
    """The SOP Instance UID of a tapped file."""
    return str(dcmread(path, stop_before_pixels=True).SOPInstanceUID)


def write(folder: Path, *sets: FileDataset) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for dataset in sets:
        paths.append(folder / f"{dataset.SOPInstanceUID}.dcm")
        paths[-1].write_bytes(part10(dataset))
    return paths


def read(stored: bytes) -> FileDataset:
    return dcmread(io.BytesIO(stored))


def test_what_is_dropped_is_answered_and_does_not_arrive(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.rules += """
    [[rule]]
    name = "phantoms stop here"
    when = { PatientID = "PHANTOM*" }
    drop = true
    [[rule]]
    name = "not from this one"
    when = { PatientID = "REFUSED*" }
    drop = 0xA700
    """
    proxy.start()
    phantom, refused = (
        ct_series(1, study=Study(patient=Patient(patient_id=one)))[0] for one in ("PHANTOM-1", "REFUSED-1")
    )
    (patient,) = ct_series(1)
    taken = dcmtk("storescu", proxy.port, *write(tmp_path / "in", phantom, patient))
    assert taken.returncode == 0, taken.stderr
    answer = dcmtk("storescu", proxy.port, "-v", *write(tmp_path / "no", refused)).stderr
    assert "Refused: OutOfResources" in answer
    assert set(pacs.files()) == {patient.SOPInstanceUID}


def test_what_is_routed_arrives_elsewhere_with_that_answer(
    proxy: Proxy, pacs: Orthanc, other: Orthanc, tmp_path: Path
) -> None:
    proxy.rules += '[[rule]]\nname = "away"\nwhen = { PatientID = "AWAY*" }\nroute = "OTHER"\n'
    proxy.start()
    (away,) = ct_series(1, study=Study(patient=Patient(patient_id="AWAY-1")), size=1600)  # more than is held in memory
    (here,) = ct_series(1)
    assert dcmtk("storescu", proxy.port, *write(tmp_path / "in", away, here)).returncode == 0
    assert (set(pacs.files()), set(other.files())) == ({here.SOPInstanceUID}, {away.SOPInstanceUID})


def test_where_the_route_fails_the_old_pacs_has_it(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.rules = (
        f'[destinations.GONE]\nhost = "127.0.0.1"\nport = {free_port()}\n[[rule]]\nname = "a"\nroute = "GONE"\n'
    )
    proxy.start()
    (one,) = ct_series(1)
    assert dcmtk("storescu", proxy.port, *write(tmp_path / "in", one)).returncode == 0
    assert set(pacs.files()) == {one.SOPInstanceUID}
    assert [line["error"] for line in proxy.events() if line["event"] == "passed-unchanged"]


def test_what_is_coerced_arrives_changed_and_the_node_gets_the_original(
    proxy: Proxy, pacs: Orthanc, tmp_path: Path
) -> None:
    proxy.rules += COPY_ALL
    proxy.rules += '[[rule]]\nname = "b"\nset = { InstitutionName = "Больница" }\nremove = "PatientSex"\n'
    proxy.start()
    sets = [*ct_series(1), *ct_series(1, size=1600)]
    paths = write(tmp_path / "in", *sets)
    sent = dcmtk("storescu", proxy.port, *paths)
    assert sent.returncode == 0, sent.stderr
    for dataset in sets:
        stored = read(pacs.files()[dataset.SOPInstanceUID])
        assert stored.InstitutionName == "Больница"
        assert "PatientSex" not in stored
        assert stored.PixelData == dataset.PixelData
    wait_until(lambda: len(proxy.waiting()) == 2, 60, "the copies are made")
    for path in proxy.waiting():
        copied = read(path.read_bytes())
        assert copied.PatientSex == "M"
        assert part10(copied).endswith(bare(tmp_path / "in" / f"{copied.SOPInstanceUID}.dcm")[-1000:])


def bare(path: Path) -> bytes:
    whole = path.read_bytes()
    return whole[144 + int.from_bytes(whole[140:144], "little") :]


@pytest.mark.parametrize("written_in", ["cp1251", "koi8_r", "utf_8"])
def test_lying_characters_arrive_mended(proxy: Proxy, pacs: Orthanc, tmp_path: Path, written_in: str) -> None:
    proxy.rules += COPY_ALL + '[[rule]]\nname = "mend"\nwhen = { calling_ae = "US1" }\ncharset = "repair"\n'
    proxy.start()
    (dataset,) = ct_series(1)
    data = lie(written_in, "ISO_IR 100")
    uid = dcmread(io.BytesIO(data), force=True).SOPInstanceUID
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    whole = part10(dataset)
    path = tmp_path / "lie.dcm"
    path.write_bytes(whole[: 144 + int.from_bytes(whole[140:144], "little")] + data)
    assert dcmtk("storescu", proxy.port, path, calling="US1").returncode == 0
    mended = read(pacs.files()[uid])
    assert (mended.SpecificCharacterSet, mended.PatientName) == ("ISO_IR 192", "Щёголев^Пётр")
    wait_until(lambda: len(proxy.waiting()) == 1, 60, "the copy is made")
    assert bare(proxy.waiting()[0]) == data
    wait_until(lambda: bool(proxy.charsets()), 60, "the lie is counted")
    (told,) = proxy.charsets()
    assert (told["source"], told["declared"], told["instances"], told["unsure"]) == ("US1", "ISO_IR 100", 1, 0)
    assert told["preview"] == "Щёголев^Пётр"


def test_copies_fan_out_and_research_gets_no_names(proxy: Proxy, pacs: Orthanc, other: Orthanc, tmp_path: Path) -> None:
    proxy.rules += COPY_ALL + '[[rule]]\nname = "research"\ncopy = "OTHER"\ndeidentify = true\n'
    proxy.start()
    (plain,) = ct_series(1)
    (burned,) = ct_series(1)
    burned.BurnedInAnnotation = "YES"
    assert dcmtk("storescu", proxy.port, *write(tmp_path / "in", plain, burned)).returncode == 0
    wait_until(lambda: len(other.files()) == 1, 60, "the copy arrives")
    wait_until(lambda: any(line["event"] == "copy-withheld" for line in proxy.events()), 60, "the other is withheld")
    (stored,) = other.files().values()
    assert "Щёголев".encode() not in stored
    assert read(stored).PatientIdentityRemoved == "YES"
    assert read(stored).PixelData == plain.PixelData
    assert set(pacs.files()) == {plain.SOPInstanceUID, burned.SOPInstanceUID}
    wait_until(lambda: len(proxy.waiting()) == 2, 60, "the node gets both")


def test_devices_that_send_at_once_do_not_mix(proxy: Proxy, pacs: Orthanc, tmp_path: Path) -> None:
    proxy.rules += COPY_ALL + '[[rule]]\nname = "b"\nwhen = { calling_ae = "CT2" }\nset = { StationName = "TWO" }\n'
    proxy.start()
    batches = {title: write(tmp_path / title, *ct_series(8, size=200)) for title in ("CT1", "CT2", "CT3")}
    threads = [
        threading.Thread(target=dcmtk, args=("storescu", proxy.port, *paths), kwargs={"calling": title})
        for title, paths in batches.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    stored = pacs.files()
    for title, paths in batches.items():
        for path in paths:
            arrived = read(stored[path.stem])
            assert (arrived.get("StationName", "") == "TWO") == (title == "CT2")
            if title != "CT2":
                assert bare(path) in stored[path.stem]
    wait_until(lambda: len(proxy.waiting()) == 24, 60, "all are copied")


# Into the node


def test_the_node_takes_in_what_was_tapped_once_whatever_is_killed_when(
    proxy: Proxy, pacs: Orthanc, tmp_path: Path, node_process: NodeProcess
) -> None:
    proxy.folder = node_process.data_dir
    proxy.rules += COPY_ALL
    proxy.start()
    node_process.admit("CT1", issuer_of_patient_id="CLINIC-7")
    sets = ct_series(12, size=200)
    paths = write(tmp_path / "in", *sets)
    assert dcmtk("storescu", proxy.port, *paths[:6]).returncode == 0
    proxy.kill_worker()
    proxy.wait_for_worker(times=2)
    assert dcmtk("storescu", proxy.port, *paths[6:]).returncode == 0
    later = {str(dataset.SOPInstanceUID) for dataset in sets[6:]}
    wait_until(lambda: later <= {uid_of(path) for path in proxy.waiting()}, 60, "those after the kill are copied")
    assert any("worker-died" in line["reason"] for line in proxy.events("missing"))
    waiting = len(proxy.waiting())
    study = str(sets[0].StudyInstanceUID)
    again = proxy.waiting()[0].read_bytes()
    take_in = "from pacs_node.dimse.proxied import take_in_tapped\n"
    dies = "import os\nfrom pathlib import Path\nPath.unlink = lambda *a, **k: os.kill(os.getpid(), 9)\n"
    with pytest.raises(AssertionError):
        node_process.python(take_in + dies + "take_in_tapped()")  # killed between the commit and the removal
    assert len(proxy.waiting()) == waiting
    node_process.python(take_in + "take_in_tapped()")
    assert proxy.waiting() == []
    held = node_process.held(study)
    assert len(held) == len({uid for uid, _, _ in held}) == waiting
    assert not any(is_variant for _, _, is_variant in held)
    assert later <= {uid for uid, _, _ in held} <= {str(dataset.SOPInstanceUID) for dataset in sets}
    issuer = "SELECT issuer_of_patient_id FROM study_index_study WHERE study_instance_uid = ?"
    assert node_process.sql(issuer, study) == [("CLINIC-7",)]
    (proxy.state_folder / "spool" / "to" / "node" / "0-1-2-31.dcm").write_bytes(again)
    node_process.python(take_in + "take_in_tapped()")  # a copy that comes twice is no second instance
    assert node_process.held(study) == held


def test_what_was_not_copied_is_fetched_from_the_old_pacs(
    proxy: Proxy, pacs: Orthanc, tmp_path: Path, node_process: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named instances, and a time in which there was no worker at all."""
    proxy.folder = node_process.data_dir / "catching-up"
    proxy.rules += COPY_ALL
    proxy.settings["queue_bytes"] = 1000
    proxy.start()
    named, blind = ct_series(3), ct_series(2)
    assert dcmtk("storescu", proxy.port, *write(tmp_path / "in", *named)).returncode == 0
    wait_until(lambda: len(proxy.missing()) == 3, 60, "they are named")
    assert {line["study_instance_uid"] for line in proxy.events("missing")} == {str(named[0].StudyInstanceUID)}
    proxy.stop()
    proxy.worker = ["/bin/false"]
    proxy.start()
    assert dcmtk("storescu", proxy.port, *write(tmp_path / "blind", *blind)).returncode == 0
    monkeypatch.setitem(node_process.settings, "REGIS_NODE_PROXY_PACS_HOST", "127.0.0.1")
    monkeypatch.setitem(node_process.settings, "REGIS_NODE_PROXY_PACS_PORT", str(pacs.port))
    shutil.rmtree(node_process.data_dir / "proxy", ignore_errors=True)
    (node_process.data_dir / "proxy").symlink_to(proxy.state_folder)
    done = node_process.command("proxy", "fetch", "OLDPACS", check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    for series in (named, blind):
        study = str(series[0].StudyInstanceUID)
        assert f"{study}: {len(series)} fetched, 0 still lack" in said
        assert {uid for uid, _, _ in node_process.held(study)} == {str(one.SOPInstanceUID) for one in series}
    assert "0 lines are left." in said
    assert proxy.events("missing") == []
    assert node_process.command("proxy", "fetch", "OLDPACS").stdout == "0 lines are left.\n"
