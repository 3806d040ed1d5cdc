"""Taking a folder in, restoring the index from files, and bringing a node back from a backup."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories.dicom import Study, ct_series, encapsulated_pdf, part10, write, write_all
from tests.node.conftest import NodeProcess, need

ROWS = "SELECT sop_instance_uid, dataset_sha256, path, source_ae_title, is_variant FROM study_index_instance"


@pytest.fixture
def filled(make_node: Callable[..., NodeProcess], tmp_path: Path) -> tuple[NodeProcess, Study]:
    """A node, not running, that imported a study with a conflict, and a folder with odd files beside it."""
    node, study = make_node(start=False), Study()
    series = ct_series(3, study=study)
    folder = tmp_path / "disc"
    write_all([*series, encapsulated_pdf(study=study)], folder / "a")
    series[0].StudyDescription = "Другое содержание"
    write(series[0], folder / "b" / "conflict.dcm")
    shutil.copy(folder / "a" / "0002.dcm", folder / "b" / "same again")
    (folder / "README.TXT").write_text("not an image")
    (folder / "empty").touch()
    (folder / "b" / "truncated.dcm").write_bytes(part10(ct_series(1)[0])[:-500])
    done = node.command("import", str(folder), "--report", str(tmp_path / "report.jsonl"))
    assert "9 files: 4 stored, 1 here already, 1 kept aside" in done.stdout
    assert "3 refused" in done.stdout
    return node, study


def test_every_file_of_a_folder_is_accounted_for(filled: tuple[NodeProcess, Study], tmp_path: Path) -> None:
    node, study = filled
    report = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    codes = {Path(line["path"]).name: line["code"] for line in report if line["outcome"] == "refused"}
    assert codes == {"README.TXT": "not-dicom", "empty": "not-dicom", "truncated.dcm": "truncated"}
    assert len(node.held(study.study_instance_uid)) == 5
    assert list((node.storage / "incoming").iterdir()) == []


def test_the_index_is_restored_from_the_files_alone(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    before = sorted(node.sql(ROWS))
    if node.database_url:
        node.python(
            "from pacs_node.study_index.models import Study\nfrom gateway.models import OutboxEntry\n"
            "Study.objects.all().delete()"
        )
    else:
        for path in node.data_dir.glob("node.sqlite3*"):
            path.unlink()
        node.command("migrate", "-v0")
    assert node.held(study.study_instance_uid) == []
    assert "5 added to the index, 0 damaged, 0 gone" in node.command("reindex").stdout
    assert sorted(node.sql(ROWS)) == before
    assert "0 added to the index" in node.command("reindex").stdout


def test_a_file_damaged_on_the_storage_is_named_by_reindex(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    victim = next(path for path in node.files(study.study_instance_uid) if "variants" not in path.parts)
    content = bytearray(victim.read_bytes())
    content[-10] ^= 0xFF
    victim.write_bytes(content)
    done = node.command("reindex", check=False)
    assert done.returncode == 1
    assert victim.name in done.stderr
    assert "digest-mismatch" in done.stderr


def test_a_backup_brings_the_node_back_and_finds_what_came_after_it(
    filled: tuple[NodeProcess, Study], make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node, _ = filled
    archive = tmp_path / "node.tar"
    node.command("backup", str(archive))
    assert archive.stat().st_mode & 0o777 == 0o600
    later = Study()
    write(ct_series(1, study=later)[0], tmp_path / "later" / "1.dcm")
    node.command("import", str(tmp_path / "later"))
    everything = sorted(node.sql(ROWS))

    fresh = make_node(start=False)
    shutil.copytree(node.storage, fresh.storage, dirs_exist_ok=True)
    fresh.python(
        "from gateway.models import JoinState\n"
        "JoinState.objects.create(name='x', centre_url='https://c.example', epoch='other')"
    )
    done = fresh.command("restore", str(archive))
    assert "names 5 instances, 0 of them are missing; 1 newer" in done.stdout
    assert sorted(fresh.sql(ROWS)) == everything
    assert fresh.sql("SELECT ae_title FROM clinic_applicationentity") == [("MODALITY",)]
    secret = Path("secrets", "django.key")
    assert (fresh.data_dir / secret).read_text() == (node.data_dir / secret).read_text()
    again = fresh.command("restore", str(archive), check=False)
    assert again.returncode == 1
    assert "node-not-empty" in again.stderr


def test_a_restored_node_begins_a_new_epoch(make_node: Callable[..., NodeProcess], tmp_path: Path) -> None:
    node = make_node(start=False)
    node.python(
        "from gateway.models import JoinState\n"
        "JoinState.objects.create(name='a', centre_url='https://c.example', epoch='first', acknowledged_seq=7)"
    )
    node.command("backup", str(tmp_path / "node.tar"), "--with-instances")
    fresh = make_node(start=False)
    fresh.command("restore", str(tmp_path / "node.tar"))
    ((epoch, acknowledged),) = fresh.sql("SELECT epoch, acknowledged_seq FROM gateway_joinstate")
    assert epoch != "first"
    assert acknowledged == 0


def test_doctor_says_in_sentences_what_is_wrong(make_node: Callable[..., NodeProcess]) -> None:
    node = make_node(start=False)
    done = node.command("doctor", check=False)
    assert done.returncode == 1
    assert f"Nothing answers on 127.0.0.1:{node.dicom_port} (DICOM port)" in done.stdout
    assert "The database" in done.stdout


def test_a_restore_is_on_the_disk_when_it_says_so(
    filled: tuple[NodeProcess, Study], make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    need("strace")
    node, study = filled
    archive, trace = tmp_path / "node.tar", tmp_path / "trace"
    node.command("backup", str(archive), "--with-instances")
    fresh = make_node(start=False)
    calls = "trace=rename,renameat,renameat2,sync"
    fresh.command("restore", str(archive), prefix=("strace", "-f", "-e", calls, "-o", str(trace)))
    assert len(fresh.files(study.study_instance_uid)) == 5
    steps = trace.read_text(errors="replace").splitlines()
    placed = [number for number, line in enumerate(steps) if ".dcm" in line]
    flushed = [number for number, line in enumerate(steps) if "sync(" in line]
    assert len(placed) == 5
    assert max(placed) < max(flushed)
