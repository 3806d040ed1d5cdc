"""Mishaps of a node's life: an index older than its files, a share that was not mounted, hands in the storage."""

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pacs_node.storage.models import VerifyRound
from pacs_node.study_index import rounds
from tests.factories.dicom import Study, ct_series, encapsulated_pdf, part10, write, write_all
from tests.node.conftest import NodeProcess

# What the scripts below share: commands without their output, and the received bytes of everything that is held.
TOOLS = """
import hashlib, io, json
from pathlib import Path
from django.core.management import CommandError, call_command
from django.utils import timezone
from pacs_node.storage.models import Finding, Holding, Recompression
from pacs_node.storage.stores import storage
from pacs_node.study_index import actions
from pacs_node.study_index.copies import as_received, open_received
from pacs_node.study_index.models import Instance, Study
from pacs_node.study_index.recompressing import remove_originals
from pacs_node.study_index.removing_pixels import remove_pixels

def run(*words, **options):
    said = io.StringIO()
    try:
        call_command(*words, **options, stdout=said, stderr=said)
        return 0, said.getvalue()
    except CommandError as error:
        return 1, said.getvalue() + str(error)

def verify():
    return run("verify", settled=0.0)

def contents():
    found = {}
    for instance in Instance.objects.order_by("pk"):
        with open_received(instance) as file:
            found[instance.sop_instance_uid] = hashlib.sha256(file.read()).hexdigest()
    return found
"""


@pytest.fixture
def filled(make_node: Callable[..., NodeProcess], tmp_path: Path) -> tuple[NodeProcess, Study]:
    """A node, not running, that holds three images and a document."""
    node, study = make_node(start=False), Study()
    write_all([*ct_series(3, study=study, size=128), encapsulated_pdf(study=study)], tmp_path / "in")
    node.command("import", str(tmp_path / "in"))
    return node, study


@pytest.mark.parametrize("mend", ["verify", "reindex"])
def test_an_index_older_than_recompression_takes_over_the_only_files_there_are(
    mend: str, filled: tuple[NodeProcess, Study]
) -> None:
    node, study = filled
    said = node.python(
        f"{TOOLS}\n"
        "before = contents()\n"
        f"run('recompress', {study.study_instance_uid!r}, originals_now=True)\n"
        "stored = sorted(Instance.objects.values_list('path', 'transfer_syntax_uid', 'size'))\n"
        "as_received(Instance.objects.all())\n"  # as a backup from before has it
        f"code = run({mend!r}, **({{'settled': 0.0}} if {mend!r} == 'verify' else {{}}))[0]\n"
        "same = stored == sorted(Instance.objects.values_list('path', 'transfer_syntax_uid', 'size'))\n"
        "print(code, same, contents() == before, Recompression.objects.filter(left_alone='').count(), verify()[0])"
    )
    assert said.splitlines()[-1] == "0 True True 3 0"
    assert sum("~jpeg-ls" in path.name for path in node.files(study.study_instance_uid)) == 3


def test_an_index_that_knows_of_a_recompression_which_the_storage_has_not_takes_over_the_received_files(
    filled: tuple[NodeProcess, Study],
) -> None:
    node, study = filled
    said = node.python(
        f"{TOOLS}\n"
        "before = contents()\n"
        f"run('recompress', {study.study_instance_uid!r})\n"
        "for path in Instance.objects.filter(path__contains='~').values_list('path', flat=True):\n"
        "    storage().remove(path)\n"
        "Recompression.objects.update(former_path='')\n"
        "print(verify()[0], contents() == before, Recompression.objects.filter(left_alone='').count())"
    )
    assert said.splitlines()[-1] == "0 True 0"


def test_an_original_stays_when_its_recompressed_file_is_gone(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    said = node.python(
        f"{TOOLS}\n"
        "from datetime import timedelta\n"
        "before = contents()\n"
        f"run('recompress', {study.study_instance_uid!r})\n"
        "lost = Instance.objects.filter(path__contains='~').first()\n"
        "storage().remove(lost.path)\n"
        "removed = remove_originals(grace=timedelta(0))\n"
        "print(removed, verify()[0], contents() == before)"
    )
    assert said.splitlines()[-1] == "2 0 True"


def test_what_came_back_after_the_backup_is_not_taken_for_what_is_being_let_go_of(
    filled: tuple[NodeProcess, Study], tmp_path: Path
) -> None:
    node, study = filled
    said = node.python(
        f"{TOOLS}\n"
        "before = contents()\n"
        f"remove_pixels({study.study_instance_uid!r}, even_the_last_copy=True)\n"
        "gone = list(Instance.objects.filter(released_at__isnull=False).values_list('pk', flat=True))\n"
        f"for path in Path({str(tmp_path / 'in')!r}).rglob('*.dcm'):\n"
        "    actions.ingest(path, source_ae_title='CT')\n"
        "seen = []\n"
        "for mend in (lambda: run('reindex'), verify):\n"
        "    Instance.objects.filter(pk__in=gone).update(released_at=timezone.now())\n"  # as the backup has it
        "    code = mend()[0]\n"
        "    seen.append([code, contents() == before, Instance.objects.filter(released_at=None).count()])\n"
        "print(json.dumps([len(gone), *seen]))"
    )
    assert json.loads(said.splitlines()[-1]) == [3, [0, True, 4], [0, True, 4]]


def test_a_reindex_names_who_brought_the_stored_file_and_not_who_brought_another_like_it(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    node = make_node(start=False)
    first, second, third = ct_series(3, study=Study(), size=128)
    paths = [str(write(one, tmp_path / f"{number}.dcm")) for number, one in enumerate((first, second, third))]
    other = tmp_path / "other.dcm"
    first.StudyDescription = "Other"
    other.write_bytes(part10(first))
    said = node.python(
        f"{TOOLS}\n"
        f"first, second, third = [Path(path) for path in {paths!r}]\n"
        "from standards.file_meta import read_file_meta\n"
        "def by_dicom(path):\n"
        "    with path.open('rb') as file:\n"
        "        meta = read_file_meta(file)\n"
        "        file.seek(meta.dataset_offset)\n"
        "        ids = meta.uid(0x0002), meta.uid(0x0003)\n"
        "        actions.ingest(file, source_ae_title='CT', expected_sop_class=ids[0], expected_sop_instance=ids[1],\n"
        "            transfer_syntax=meta.transfer_syntax_uid)\n"
        "by_dicom(first)\n"
        "actions.ingest(first, source_ae_title='LATER')\n"
        f"actions.ingest(Path({str(other)!r}), source_ae_title='OTHER')\n"
        "row = actions.ingest(second, source_ae_title='WEB').instance\n"
        "run('recompress', row.series.study.study_instance_uid, originals_now=True)\n"
        # A crash between journal and file, and then other content under the same UID.
        "actions.ingest(third, source_ae_title='WEB')\n"
        f"third_uid = {str(third.SOPInstanceUID)!r}\n"
        "journal = next(storage().root.joinpath('studies').rglob('journal.jsonl'))\n"
        "kept = journal.read_text().splitlines(True)\n"
        "cut_short = next(json.loads(line) for line in kept if third_uid in line and '\"stored\"' in line)\n"
        "cut_short.update(dataset_sha256='0' * 64, source_ae_title='CRASHED')\n"
        "journal.write_text(json.dumps(cut_short) + '\\n' + ''.join(kept))\n"
        "def told():\n"
        "    return sorted(Instance.objects.values_list('path', 'source_ae_title', 'is_variant'))\n"
        "before = told()\n"
        "Study.objects.all().delete()\n"
        "code = run('reindex')[0]\n"
        "print(json.dumps([code, told() == before, sorted(source for _, source, _ in before)]))"
    )
    assert json.loads(said.splitlines()[-1]) == [0, True, ["CT", "OTHER", "WEB", "WEB"]]


def test_copies_at_a_share_that_was_not_mounted_for_a_while_are_found_again(
    filled: tuple[NodeProcess, Study], tmp_path: Path
) -> None:
    node, study = filled
    share = tmp_path / "share"
    node.settings["REGIS_NODE_INSTITUTION_URL"] = share.as_uri()
    node.settings["REGIS_NODE_TIER_AFTER_DAYS"] = "1"
    said = node.python(
        f"{TOOLS}\n"
        "from datetime import timedelta\n"
        "from pacs_node.study_index.recalling import recall_study\n"
        "from pacs_node.study_index.tiering import copy_to_institution\n"
        "before = contents()\n"
        f"run('recompress', {study.study_instance_uid!r}, originals_now=True)\n"
        "for model in (Instance, Study):\n"
        "    model.objects.update(created_at=timezone.now() - timedelta(days=9))\n"
        "copy_to_institution()\n"
        # The index made anew knows of copies of what is recompressed by now.
        "Study.objects.all().delete()\n"
        "run('reindex')\n"
        "copies = Holding.objects.filter(institution_verified_at__isnull=False).count()\n"
        "for model in (Instance, Study):\n"
        "    model.objects.update(created_at=timezone.now() - timedelta(days=9))\n"
        "run('tier')\n"
        f"share, away = Path({str(share)!r}), Path({str(tmp_path / 'away')!r})\n"
        f"uid = {study.study_instance_uid!r}\n"
        "share.rename(away)\n"
        "(share / 'incoming').mkdir(parents=True)\n"
        "code, back = verify()[0], recall_study(uid)[0]\n"
        "(share / 'incoming').rmdir()\n"
        "share.rmdir()\n"
        "away.rename(share)\n"
        "print(json.dumps([copies, code, back, recall_study(uid)[0], contents() == before, verify()[0]]))"
    )
    assert json.loads(said.splitlines()[-1]) == [4, 1, 0, 4, True, 0]


def test_what_a_hand_put_among_the_studies_is_named_and_stops_nobody(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    studies = node.storage / "studies"
    folder = next(studies.glob(f"??/{study.study_instance_uid}"))
    (studies / "zz").write_text("a file where folders are")
    shutil.copytree(folder, folder.with_name(f"{folder.name} (copy)"))
    other = next(name for name in ("00", "01") if name != folder.parent.name)
    shutil.copytree(folder, studies / other / folder.name)
    (folder.parent / "New folder").mkdir()  # with nothing in it, so it is nothing
    Path(os.fsdecode(os.fsencode(folder) + b"/\xcd\xe5.dcm")).write_bytes(b"a name in another encoding")
    (folder / "unreadable.dcm").symlink_to("/proc/self/mem")  # reading it is an error of input and output
    (node.storage / "incoming" / "folder").mkdir()
    said = node.python(
        f"{TOOLS}\n"
        "codes = [verify()[0], run('reindex')[0], storage().clean_incoming()]\n"
        "print(json.dumps([codes, sorted(Finding.objects.values_list('kind', 'path', 'detail'))]))"
    )
    codes, findings = json.loads(said.splitlines()[-1])
    assert codes == [1, 1, 0]
    key = folder.relative_to(node.storage).as_posix()
    assert [(kind, path) for kind, path, _ in findings] == sorted(
        [
            ("foreign", f"studies/{other}/{folder.name}"),
            ("foreign", f"{key} (copy)"),
            ("foreign", f"{key}/\\udccd\\udce5.dcm"),
            ("foreign", "studies/zz"),
            ("orphan", f"{key}/unreadable.dcm"),
        ]
    )
    assert "cannot be read" in findings[-1][2]
    assert len(node.held(study.study_instance_uid)) == 4
    shutil.rmtree(folder.with_name(f"{folder.name} (copy)"))
    shutil.rmtree(studies / other / folder.name)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xcd\xe5.dcm")).unlink()
    (folder / "unreadable.dcm").unlink()
    assert node.command("verify", check=False).returncode == 1  # one is left
    (studies / "zz").unlink()
    assert node.command("verify").returncode == 0


def test_a_damaged_line_of_a_journal_costs_a_reindex_no_more_than_itself(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    said = node.python(
        f"{TOOLS}\n"
        f"remove_pixels({study.study_instance_uid!r}, even_the_last_copy=True)\n"
        "journal = next(storage().root.joinpath('studies').rglob('journal.jsonl'))\n"
        "lines = journal.read_text().splitlines(True)\n"
        "gone = [number for number, line in enumerate(lines) if '\"pixels-removed\"' in line]\n"
        "lines[gone[0]] = lines[gone[0]].replace('\"series\": {', '\"serjes\": {')\n"
        'lines[gone[1]] = lines[gone[1]].replace(\'"columns": 128\', \'"columns": "q"\')\n'
        "journal.write_text(''.join(lines))\n"
        "Study.objects.all().delete()\n"
        "code, said = run('reindex')\n"
        "print(json.dumps([code, said.count('the journal'), Instance.objects.count()]))"
    )
    assert json.loads(said.splitlines()[-1]) == [1, 2, 2]


def test_pixels_of_a_pinned_study_stay_until_it_is_let_go_of(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    said = node.python(
        f"{TOOLS}\n"
        f"uid = {study.study_instance_uid!r}\n"
        "run('pin', uid, reason='teaching')\n"
        "refused = run('remove_pixels', uid, even_the_last_copy=True)\n"
        "held = Instance.objects.filter(released_at=None).count()\n"
        "run('pin', uid, off=True)\n"
        "print(json.dumps([*refused, held, run('remove_pixels', uid, even_the_last_copy=True)[0]]))"
    )
    code, why, held, done = json.loads(said.splitlines()[-1])
    assert (code, held, done) == (1, 4, 0)
    assert "teaching" in why


def test_a_clock_that_was_ahead_does_not_keep_verify_from_its_next_round() -> None:
    now = datetime.now(UTC)
    assert rounds._is_due(VerifyRound(finished_at=now + timedelta(days=400)), now)
    assert rounds._is_due(VerifyRound(finished_at=now - timedelta(days=1)), now)
    assert not rounds._is_due(VerifyRound(finished_at=now - timedelta(minutes=1)), now)
