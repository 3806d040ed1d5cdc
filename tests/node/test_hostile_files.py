"""Broken files, by DIMSE, by STOW-RS and by import: each one named, its neighbours stored, nothing of it left."""

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pacs_node.dimse.statuses import STATUS_OF
from pacs_node.study_index.attributes import index_rows
from standards.digests import dataset_sha256
from standards.errors import PermanentError
from standards.file_meta import read_file_meta
from standards.part10 import Header, read_header
from standards.tokens import generate_key, public_key_to_text
from standards.uids import new_uid
from tests.factories.dicom import ct_instance, part10
from tests.node.conftest import NodeProcess
from tests.node.dicomweb_node import Centre, ct_slice
from tests.node.raw_association import (
    CT,
    EXPLICIT,
    FIND,
    IMPLICIT,
    VERIFICATION,
    Context,
    RawAssociation,
    logged,
)

JOIN = """
from gateway.models import JoinState
JoinState.objects.create(name="clinic-a", centre_url="https://centre.example", epoch="e1", directory={
    "peers": [], "mirror_to": [], "token_keys": {"k1": "%s"}})
"""
NAMED = set(STATUS_OF) - {"storage-full", "database-busy", "not-authorised", "storage-damaged", "instance-gone"}
SECRET = "SECRETOV^NIKITA"


@pytest.fixture(scope="session")
def corrupt(sample_data: Path) -> list[Path]:
    """Every broken sample."""
    files = sorted(path for path in (sample_data / "corrupt").rglob("*") if path.is_file())
    if not files:
        pytest.skip(f"no broken samples in {sample_data / 'corrupt'}")
    return files


WHOLE = ct_slice("1.2.3", "1.2.3.4", sop="1.2.3.4.5", name=SECRET)
"""A small whole file of a patient whose name must not be seen in a log; always the same, so that the cuts are too."""


def data_set(whole: bytes) -> bytes:
    return whole[144 + struct.unpack("<L", whole[140:144])[0] :]


def cut(whole: bytes) -> dict[str, bytes]:
    """The file cut at each sixteenth."""
    return {f"{part}/16": whole[: len(whole) * part // 16] for part in range(16)}


def endless(whole: bytes) -> dict[str, bytes]:
    """The file with each of its lengths as 0xFFFFFFFF, one at a time; short ones as 0xFFFF."""
    found = {}
    position = 144 + struct.unpack("<L", whole[140:144])[0]
    while position < len(whole):
        tag = whole[position : position + 4].hex()
        vr = whole[position + 4 : position + 6]
        if vr in (b"OW", b"OB", b"UN", b"SQ", b"UT"):
            (length,) = struct.unpack("<L", whole[position + 8 : position + 12])
            found[tag] = whole[: position + 8] + b"\xff" * 4 + whole[position + 12 :]
            position += 12 + length
        else:
            (length,) = struct.unpack("<H", whole[position + 6 : position + 8])
            found[tag] = whole[: position + 6] + b"\xff" * 2 + whole[position + 8 :]
            position += 8 + length
    return found


def broken() -> dict[str, bytes]:
    """Made files that nobody may take for whole."""
    everywhere = bytearray(WHOLE)
    start = 144 + struct.unpack("<L", WHOLE[140:144])[0]
    for position in range(start + 6, len(WHOLE) - 4, 64):
        everywhere[position : position + 4] = b"\xff" * 4
    return {
        **{f"cut at {name}": content for name, content in cut(WHOLE).items()},
        **{f"endless {name}": content for name, content in endless(WHOLE).items()},
        "endless everywhere": bytes(everywhere),
    }


# DIMSE


def as_sent(path: Path) -> tuple[str, str, str, bytes]:
    """Class, instance, transfer syntax and data set as a sender would announce a file, guessed where it is mute."""
    raw = path.read_bytes()
    try:
        meta = read_file_meta(io.BytesIO(raw))
    except PermanentError:
        return CT, "1.2.3", IMPLICIT, raw
    sop_class, syntax = meta.uid(0x0002), meta.transfer_syntax_uid
    return sop_class or CT, meta.sop_instance_uid or "1.2.3", syntax or IMPLICIT, raw[meta.dataset_offset :]


def counted(node: NodeProcess) -> tuple[int, int]:
    """Rows in the index, and files in the storage."""
    (rows,) = node.sql("SELECT count(*) FROM study_index_instance")
    return rows[0], len([path for path in node.storage.rglob("*") if path.is_file() and path.name != "journal.jsonl"])


def json_lines(log: list[str]) -> list[dict[str, Any]]:
    assert SECRET not in "".join(log)
    return [json.loads(line) for line in log]


@pytest.mark.parametrize("mixed", [False, True])
def test_each_broken_sample_is_stored_or_refused_by_its_status_on_a_live_association(
    make_node: Callable[..., NodeProcess], corrupt: list[Path], mixed: bool
) -> None:
    node = make_node()
    other: tuple[Context, ...] = ((VERIFICATION, IMPLICIT), *(((FIND, IMPLICIT),) if mixed else ()))
    outcomes = {}
    for path in corrupt:
        sop_class, sop_instance, syntax, encoded = as_sent(path)
        before = counted(node)
        with logged(node) as log, RawAssociation(node, ((sop_class, syntax), (CT, EXPLICIT), *other)) as association:
            if 1 not in association.accepted:
                outcomes[path.name] = -1
                continue
            answer = association.store(sop_class, sop_instance, encoded)
            good = ct_instance(size=16)
            stored = association.store(CT, str(good.SOPInstanceUID), data_set(part10(good)), context_id=3)
            assert stored["Status"] == 0, path
            association.release()
        status = outcomes[path.name] = answer["Status"]
        refusals = [line for line in json_lines(log) if line["event"] != "instance-duplicate"]
        rows, files = counted(node)
        if status:
            assert status in {0xA700, 0xA900, 0x0122} or status & 0xF000 == 0xC000, (path, status)
            assert [(line["event"], bool(line["code"])) for line in refusals] == [("instance-refused", True)], path
            assert (rows, files) == (before[0] + 1, before[1] + 1), path
        else:
            assert [line["event"] for line in refusals if line["event"] != "instance-conflict"] == [], path
    assert outcomes["MR_truncated.dcm"] == 0xC002
    assert outcomes["bad_sequence.dcm"] in (0xA900, 0xC007)
    assert 0 in outcomes.values()
    assert node.command("verify", "--once", "--settled", "0", check=False).returncode == 0


@pytest.mark.parametrize("mixed", [False, True])
def test_a_file_cut_at_any_sixteenth_or_with_an_endless_length_leaves_no_trace(
    node_process: NodeProcess, mixed: bool
) -> None:
    contexts: tuple[Context, ...] = ((CT, EXPLICIT), (VERIFICATION, IMPLICIT), *(((FIND, IMPLICIT),) if mixed else ()))
    before = counted(node_process)
    files = broken()
    statuses = {}
    with logged(node_process) as log, RawAssociation(node_process, contexts) as association:
        for what, content in files.items():
            encoded = data_set(content) if len(content) > 400 else b""
            statuses[what] = association.store(CT, "1.2.3", encoded)["Status"]
        assert association.echo() == 0
        good = ct_instance(size=16)
        assert association.store(CT, str(good.SOPInstanceUID), data_set(part10(good)))["Status"] == 0
        association.release()
    assert {what: hex(status) for what, status in statuses.items() if status & 0xF000 != 0xC000} == {}
    lines = json_lines(log)
    assert [line["event"] for line in lines] == ["instance-refused"] * len(files)
    assert {line["code"] for line in lines} <= NAMED
    assert counted(node_process) == (before[0] + 1, before[1] + 1)


# STOW-RS and import


def with_neighbours(files: dict[str, bytes]) -> tuple[list[bytes], set[str]]:
    """These files, a good one behind each; and the UIDs of the good ones."""
    items, uids = [], set()
    for content in files.values():
        uid = new_uid()
        items += [content, ct_slice(new_uid(), new_uid(), sop=uid)]
        uids.add(uid)
    return items, uids


def all_broken(corrupt: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in corrupt} | broken()


def test_stow_answers_for_each_broken_file_and_stores_its_neighbours(
    make_node: Callable[..., NodeProcess], corrupt: list[Path]
) -> None:
    node, centre = make_node(), Centre(generate_key())
    node.python(JOIN % public_key_to_text(centre.key.public_key()))
    address = f"http://127.0.0.1:{node.http_port}"
    files = all_broken(corrupt)
    items, good = with_neighbours(files)
    body = b"".join(b"--b0\r\nContent-Type: application/dicom\r\n\r\n" + item + b"\r\n" for item in items)
    with logged(node) as log:
        response = httpx.post(
            f"{address}/dicom-web/studies",
            content=body + b"--b0--\r\n",
            headers={
                "Content-Type": 'multipart/related; type="application/dicom"; boundary=b0',
                "Accept": "application/dicom+json",
                **centre.bearer("*", operations=("store",)),
            },
            timeout=120,
        )
    assert response.status_code == 202, response.text
    answer = response.json()
    stored = [item["00081155"]["Value"][0] for item in answer["00081199"]["Value"]]
    failed = answer.get("00081198", {}).get("Value", []) + answer.get("0008119A", {}).get("Value", [])
    reasons = [item["00081197"]["Value"][0] for item in failed]
    assert len(stored) + len(failed) == len(items)
    assert good <= set(stored)
    assert len(failed) >= len(broken())
    assert {hex(reason) for reason in reasons if reason & 0xF000 != 0xC000} <= {"0x122", "0xa900"}
    lines = [line for line in json_lines(log) if line["event"] == "stow.item_refused"]
    assert len(lines) == len(failed)
    assert {line["code"] for line in lines} <= NAMED
    indexed = {uid for (uid,) in node.sql("SELECT sop_instance_uid FROM study_index_instance")}
    assert indexed == set(stored)
    assert {path.name for path in (node.storage / "incoming").iterdir()} == set()
    assert node.command("verify", "--once", "--settled", "0", check=False).returncode == 0


def test_import_names_each_broken_file_and_stores_its_neighbours(
    make_node: Callable[..., NodeProcess], corrupt: list[Path], tmp_path: Path
) -> None:
    node = make_node(start=False)
    names = {}
    for number, (name, content) in enumerate(all_broken(corrupt).items()):
        names[f"{number:03}a"] = name
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number:03}a").write_bytes(content)
        (tmp_path / "in" / f"{number:03}b").write_bytes(ct_slice(new_uid(), new_uid()))
    done = node.command("import", str(tmp_path / "in"), "--report", str(tmp_path / "report.jsonl"), check=False)
    assert SECRET not in done.stdout + done.stderr
    report = {
        Path(line["path"]).name: line for line in map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines())
    }
    assert len(report) == 2 * len(names)
    assert {line["outcome"] for name, line in report.items() if name.endswith("b")} == {"stored"}
    refusals = {names[name]: line["code"] for name, line in report.items() if line["outcome"] == "refused"}
    assert set(refusals.values()) <= NAMED
    assert set(broken()) <= set(refusals)
    held = sum(line["outcome"] in ("stored", "conflict") for line in report.values())
    assert counted(node) == (held, held)
    assert node.command("verify", "--once", "--settled", "0", check=False).returncode == 0


# Fuzzed


def _mutations() -> st.SearchStrategy[list[tuple[float, str, bytes]]]:
    pieces = st.one_of(
        st.binary(min_size=1, max_size=4),
        st.sampled_from([b"\xff" * 4, b"\0" * 8, b"SQ", b"UN", b"OB", b"PN", b"DS", b"FD", b"US", b"AT", b"UI", b"DT"]),
        st.sampled_from([b"\xfe\xff\0\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0", b"\xe0\x7f\x10\0", b"\\" * 9]),
    )
    where = st.floats(0, 1, exclude_max=True)
    return st.lists(st.tuples(where, st.sampled_from(["over", "in", "out"]), pieces), min_size=1, max_size=6)


def mutated(changes: list[tuple[float, str, bytes]], start: int = 132) -> bytes:
    """The file with these changes between ``start`` and its pixels."""
    content = bytearray(WHOLE)
    for where, how, piece in changes:
        end = max(start + 1, min(len(content), len(WHOLE) - 520))
        at = start + int(where * (end - start))
        content[at : at + (0 if how == "in" else len(piece))] = b"" if how == "out" else piece
    return bytes(content)


def read(content: bytes) -> tuple[Header | None, PermanentError | None]:
    try:
        return read_header(io.BytesIO(content)), None
    except PermanentError as error:
        return None, error


@settings(max_examples=400)
@given(_mutations())
@example([(0.5, "over", b"\xff" * 4)])
def test_a_fuzzed_file_is_refused_by_name_or_can_be_indexed(changes: list[tuple[float, str, bytes]]) -> None:
    content = mutated(changes)
    header, refusal = read(content)
    if refusal is not None:
        assert refusal.code in NAMED
        assert "SECRETOV" not in str(refusal)
    if header is None:
        return
    rows = index_rows(header)
    json.dumps([rows.study, rows.series, rows.instance], allow_nan=False).encode()
    # The reader that verify trusts must see the same data set as the one that stored it.
    assert read_file_meta(io.BytesIO(content)).dataset_offset == header.dataset_offset
    assert len(dataset_sha256(io.BytesIO(content))) == 64


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(_mutations(), min_size=1, max_size=3), st.booleans())
@example([[(0.0, "over", b"\xff" * 4)]], True)
def test_fuzzed_data_sets_are_answered_one_by_one_on_one_association(
    node_process: NodeProcess, several: list[list[tuple[float, str, bytes]]], mixed: bool
) -> None:
    contexts: tuple[Context, ...] = ((CT, EXPLICIT), (VERIFICATION, IMPLICIT), *(((FIND, IMPLICIT),) if mixed else ()))
    start = 144 + struct.unpack("<L", WHOLE[140:144])[0]
    with logged(node_process) as log, RawAssociation(node_process, contexts) as association:
        statuses = [
            association.store(CT, "1.2.3.4.5", mutated(changes, start)[start:])["Status"] for changes in several
        ]
        assert association.echo() == 0
        association.release()
    lines = [line for line in json_lines(log) if line["event"] == "instance-refused"]
    assert len(lines) == sum(status != 0 for status in statuses)
    assert {line["code"] for line in lines} <= NAMED
    assert {status & 0xF000 for status in statuses} <= {0, 0xA000, 0xC000}


def test_what_is_stored_of_damaged_data_sets_is_what_verify_finds(make_node: Callable[..., NodeProcess]) -> None:
    node, dice = make_node(), random.Random(20261121)
    start = 144 + struct.unpack("<L", WHOLE[140:144])[0]
    stored = 0
    with RawAssociation(node) as association:
        for _ in range(150):
            damaged = bytearray(WHOLE[start:])
            at = dice.randrange(len(damaged) - 520)
            damaged[at : at + 2] = dice.randbytes(2)
            stored += association.store(CT, "1.2.3.4.5", bytes(damaged))["Status"] == 0
        association.release()
    assert 5 < stored < 150
    done = node.command("verify", "--once", "--settled", "0", check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"{counted(node)[0]} files" in done.stdout + done.stderr
