"""Verify and reindex: what rots is found and healed, what lies about is explained, and nothing is thrown away."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories.dicom import Study, ct_series, encapsulated_pdf, write, write_all
from tests.node.conftest import NodeProcess

FINDINGS = "SELECT kind, path, detail, resolution FROM storage_finding ORDER BY id"


@pytest.fixture
def filled(make_node: Callable[..., NodeProcess], tmp_path: Path) -> tuple[NodeProcess, Study]:
    """A node, not running, that holds a study of four instances and a conflict."""
    node, study = make_node(start=False), Study()
    series = ct_series(3, study=study)
    write_all([*series, encapsulated_pdf(study=study)], tmp_path / "a")
    series[0].StudyDescription = "Другое содержание"
    write(series[0], tmp_path / "b" / "conflict.dcm")
    node.command("import", str(tmp_path / "a"))
    node.command("import", str(tmp_path / "b"))
    return node, study


def plain_file(node: NodeProcess, study: Study) -> Path:
    return next(path for path in node.files(study.study_instance_uid) if "variants" not in path.parts)


def verify(node: NodeProcess, *arguments: str) -> tuple[int, str]:
    done = node.command("verify", "--settled", "0", *arguments, check=False)  # one round, then it ends
    return done.returncode, done.stdout + done.stderr


def rot(path: Path, at: int = -10) -> bytes:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x01
    path.write_bytes(content)
    return bytes(content)


def test_a_whole_storage_is_said_to_be_whole(filled: tuple[NodeProcess, Study]) -> None:
    node, _ = filled
    code, said = verify(node)
    assert (code, node.sql(FINDINGS)) == (0, [])
    assert "5 files" in said


@pytest.mark.parametrize("at", [-10, 400])
def test_one_flipped_bit_is_found_and_the_file_stays_for_a_person(filled: tuple[NodeProcess, Study], at: int) -> None:
    node, study = filled
    victim = plain_file(node, study)
    damaged = rot(victim, at)
    code, said = verify(node)
    assert code == 1
    assert victim.name in said
    assert "no-other-copy" in said
    ((kind, path, detail, _),) = node.sql(FINDINGS)
    assert (kind, node.storage / path) == ("damaged", victim)
    assert "not healed" in detail
    assert victim.read_bytes() == damaged  # better than nothing, until there is a good copy
    assert verify(node)[0] == 1
    assert len(node.sql(FINDINGS)) == 1


def test_a_flipped_bit_in_the_file_meta_group_is_found(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    victim = plain_file(node, study)
    content = victim.read_bytes()
    victim.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0", 1))
    code, said = verify(node)
    assert code == 1
    assert "transfer syntax" in said


def test_a_file_that_is_gone_is_found_and_seen_when_it_is_back(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    victim = plain_file(node, study)
    content = victim.read_bytes()
    victim.unlink()
    assert verify(node)[0] == 1
    assert verify(node)[0] == 1
    assert [row[0] for row in node.sql(FINDINGS)] == ["missing"]
    victim.write_bytes(content)
    assert verify(node)[0] == 0
    assert [row[3] for row in node.sql(FINDINGS)] == ["the file is whole again"]


def test_a_study_without_its_folder_is_missed(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    shutil.rmtree(plain_file(node, study).parent.parent)
    assert verify(node)[0] == 1
    assert len(node.sql(FINDINGS)) == 5


def test_a_file_that_a_crash_kept_out_of_the_index_is_brought_in(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    name = plain_file(node, study).stem
    node.python(
        "from pacs_node.study_index.models import Instance\n"
        f"Instance.objects.get(sop_instance_uid={name!r}, is_variant=False).delete()"
    )
    code, said = verify(node)
    assert code == 0
    assert "before the index commit" in said
    assert "brought into the index" in said
    assert name in {uid for uid, _, variant in node.held(study.study_instance_uid) if not variant}


def test_a_broken_file_that_nobody_knows_is_put_aside_and_not_deleted(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    stray = plain_file(node, study).parent / "1.2.3.dcm"
    stray.write_bytes(b"half a file")
    odd = plain_file(node, study).parent / "notes.txt"
    odd.write_text("left by a person")
    (node.storage / "incoming" / "999999999-x.dcm").write_bytes(b"half received")
    code, said = verify(node)
    assert code == 1  # what a person left there, a person must judge
    assert "notes.txt" in said
    assert "half received" in said
    assert not stray.exists()
    (kept,) = (node.storage / "aside").rglob("1.2.3.dcm.*")
    assert kept.read_bytes() == b"half a file"
    assert odd.exists()


def test_a_young_unknown_file_is_left_to_the_process_that_brings_it(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    stray = plain_file(node, study).parent / "1.2.3.dcm"
    stray.write_bytes(b"being written")
    done = node.command("verify", "--once")
    assert stray.exists()
    assert done.returncode == 0
    os.utime(stray, (0, 0))
    node.command("verify", "--once")
    assert not stray.exists()


def test_a_walk_keeps_to_its_pace(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    size = sum(path.stat().st_size for path in node.files(study.study_instance_uid))
    began = time.monotonic()
    verify(node, "--pace", str(size / 1e6 / 8))
    assert time.monotonic() - began > 5.0, "eight seconds for all of them"


def test_a_round_goes_on_where_it_was_after_a_restart(filled: tuple[NodeProcess, Study]) -> None:
    node, _ = filled
    said = node.python(
        "from pacs_node.study_index.rounds import *\n"
        "from pacs_node.study_index import rounds\n"
        "from pacs_node.storage.layout import study_key\n"
        "r = begin_round()\n"
        "steps = rounds.verify()\n"
        "one = next(step for step in steps if step.study)\n"
        "note(r, [one])\n"
        "print(current_round().after == one.study)\n"
        "print([s.study for s in rounds.verify(current_round().after) if s.study])\n"
    )
    assert said.splitlines() == ["True", "[]"]


def test_the_index_restored_from_files_is_the_index_that_was(filled: tuple[NodeProcess, Study]) -> None:
    node, study = filled
    for path in node.files(study.study_instance_uid):
        os.utime(path, (WRITTEN, WRITTEN))
    node.python(AGED)
    node.python(LET_GO.format(study=study.study_instance_uid))
    before = every_row(node)
    assert sum(row["holding"] is not None for row in before) == 1
    node.python(WIPE)
    assert every_row(node) == []
    done = node.command("reindex")
    assert "4 added to the index" in done.stdout
    for was, now in zip(before, every_row(node), strict=True):
        assert now == was


WRITTEN = 1_700_000_000
AGED = f"""
from datetime import UTC, datetime
from pacs_node.study_index.models import Instance, Study
for model in (Instance, Study):
    model.objects.update(created_at=datetime.fromtimestamp({WRITTEN}, UTC))
"""
LET_GO = """
from django.utils import timezone
from gateway.models import Delivery
from pacs_node.storage.models import Holding
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from pacs_node.study_index.snapshots import let_go_lines
i = Instance.objects.filter(is_variant=False).order_by('pk').first()
Delivery.objects.create(instance_key=i.pk, series_key=i.series_id, study_instance_uid={study!r},
    sop_instance_uid=i.sop_instance_uid, dataset_sha256=i.dataset_sha256, destination='archive', status='receipted',
    receipt={{'signature': 'x'}}, receipted_at=timezone.now(), next_attempt_at=timezone.now())
now = timezone.now()
storage().append_journal({study!r}, *let_go_lines('tiered', [i], now))
Holding.objects.create(instance=i, away_at=now)
storage().remove(i.path)
"""

WIPE = """
from pacs_node.study_index.models import Study
from gateway.models import Delivery, OutboxEntry
Study.objects.all().delete(); Delivery.objects.all().delete(); OutboxEntry.objects.all().delete()
"""

ROWS = """
import json
from pacs_node.study_index.models import Instance
from gateway.models import Delivery
skip = {'id', 'study', 'series', 'created_at', 'updated_at', 'digests_done', 'pixel_sha256', 'frames_sha256'}
def text(v): return json.dumps(v, sort_keys=True) if isinstance(v, dict) else str(v)
def row(o): return {f.name: text(f.value_from_object(o)) for f in o._meta.concrete_fields if f.name not in skip}
print(json.dumps([{
    **row(i), 'series': row(i.series), 'study': row(i.series.study),
    'holding': str(i.holding.away_at) if hasattr(i, 'holding') else None,
    'came': [round(o.created_at.timestamp(), -1) for o in (i, i.series.study)],
    'receipts': [str(d.receipt) for d in Delivery.objects.filter(instance_key=i.pk)],
} for i in Instance.objects.order_by('sop_instance_uid', 'dataset_sha256')]))
"""


def every_row(node: NodeProcess) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = json.loads(node.python(ROWS))
    return rows
