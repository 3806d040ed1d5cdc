"""Studies leave the local disk only when enough others have them, and come back when somebody asks."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

from gateway.keys import node_key, public_text
from standards.uids import new_uid
from tests.factories.dicom import Study, _base, ct_series, encapsulated_pdf, write_all
from tests.node.conftest import NodeProcess, need

JOIN = """
import json, sys
from gateway.models import JoinState
JoinState.objects.all().delete()
JoinState.objects.create(name={name!r}, centre_url='http://127.0.0.1:9', epoch='e', directory=json.loads({directory!r}))
"""
DELIVER = """
from gateway import client, deliveries, relay
from gateway.models import JoinState
from gateway.sending import Line
while relay.number(with_progress=True):
    pass
state = JoinState.objects.get()
while (delivery := deliveries.next_waiting()):
    peer = deliveries.peer_named(state, delivery.destination)
    with client.connect(peer.url) as connection:
        deliveries.record_proof(delivery, Line(state, peer, connection).whole(delivery))
"""
AGE = """
from datetime import timedelta
from django.utils import timezone
from pacs_node.study_index.models import Instance, Study
old = timezone.now() - timedelta(days=400)
Instance.objects.update(created_at=old)
Study.objects.update(created_at=old)
"""

FETCH = """
import io, json
from gateway import encoding, fetching
from pacs_node.study_index.models import Instance
{spoil}
wire, download = [], fetching._download
fetching._download = lambda *a: wire.append(came := download(*a)) or came
for instance in Instance.objects.order_by('path'):
    fetching.fetch(instance.pk, instance.sop_instance_uid, instance.dataset_sha256, target := io.BytesIO())
    wire[-1] += (len(target.getvalue()),)
print(json.dumps(wire))
"""
"""Everything that left is fetched; how each answer came, and how long its file is."""
NO_ENCODING = "encoding.NAME = 'regis-0'  # which the peer does not know"
DAMAGED = """
restore = encoding.restore
def damaged(pieces, target):
    restore(pieces, target)
    target.seek(-1, 2)
    target.write(b'!')
encoding.restore = damaged
"""

STOW = """
from pathlib import Path
from django.test import Client
from tests.node.dicomweb_node import join
body = b'--b\\r\\nContent-Type: application/dicom\\r\\n\\r\\n' + Path({path!r}).read_bytes() + b'\\r\\n--b--\\r\\n'
kind = 'multipart/related; type="application/dicom"; boundary=b'
headers = join().bearer('*', operations=('store',))
print(Client().post('/dicom-web/studies', body, content_type=kind, headers=headers).status_code)
"""


@dataclass
class Region:
    """An archive that serves, and a clinic that mirrors to it and is told by commands what to do."""

    archive: NodeProcess
    clinic: NodeProcess
    study: Study

    @property
    def uid(self) -> str:
        return self.study.study_instance_uid

    def deliver(self) -> None:
        self.clinic.python(DELIVER)

    def tier(self, *arguments: str) -> str:
        done = self.clinic.command("tier", *arguments)
        return done.stdout

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.clinic.held(self.uid)]

    def content(self) -> dict[str, bytes]:
        """The stored bytes by path, of what is here."""
        return {
            path: (self.clinic.storage / path).read_bytes()
            for path in self.paths()
            if (self.clinic.storage / path).exists()
        }


@pytest.fixture
def region(make_node: Callable[..., NodeProcess], tmp_path: Path) -> Region:
    archive = make_node(REGIS_NODE_KIND="archive", REGIS_NODE_NAME="archive")
    clinic = make_node(start=False, REGIS_NODE_NAME="clinic", REGIS_NODE_TIER_AFTER_DAYS="30")
    peers = [
        {"name": name, "kind": kind, "ae_title": "X", "url": f"http://127.0.0.1:{node.http_port}",
         "public_key": public_text(node_key(node.data_dir))}
        for name, kind, node in (("archive", "archive", archive), ("clinic", "clinic", clinic))
    ]  # fmt: skip
    study = Study()
    write_all([*ct_series(3, study=study), encapsulated_pdf(study=study)], tmp_path / "in")
    clinic.command("import", str(tmp_path / "in"))
    for name, node, mirror, more in (("archive", archive, [], ""), ("clinic", clinic, ["archive"], AGE)):
        directory = json.dumps({"peers": peers, "token_keys": {}, "mirror_to": mirror})
        node.python(JOIN.format(name=name, directory=directory) + more)
    return Region(archive, clinic, study)


def test_nothing_leaves_before_it_is_receipted_and_the_dry_run_says_so(region: Region) -> None:
    said = region.tier("--dry-run")
    assert f"stays {region.uid}: 4 of 4 instances have fewer than 1 verified copies elsewhere" in said
    assert "0 studies (0.0 MB) go, 1 stay" in region.tier()
    assert len(region.content()) == 4


def test_a_receipted_old_study_leaves_and_comes_back_byte_for_byte_when_asked_for(region: Region) -> None:
    region.deliver()
    before = region.content()
    assert re.search(
        rf"goes  {region.uid}: it came 400 days ago; 400 days, 4 instances, .* archive \(proved",
        region.tier("--dry-run"),
    )
    assert len(region.content()) == 4  # a dry run changes nothing
    assert "1 studies left the disk" in region.tier()
    assert region.content() == {}
    assert region.clinic.command("verify", "--once").returncode == 0  # away is not missing
    region.clinic.start()
    need("getscu")
    got = region.clinic.data_dir / "got"
    got.mkdir()
    done = region.clinic.dcmtk("getscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={region.uid}",
                               "-od", str(got))  # fmt: skip
    assert (done.returncode, len(list(got.iterdir()))) == (0, 4), done.stderr
    assert [strip(content) for content in region.content().values()] == [strip(content) for content in before.values()]
    assert "0 studies" in region.tier("--dry-run")  # what was recalled is not old


def strip(content: bytes) -> bytes:
    """The data set of a file of these tests: the file meta may say who sent it."""
    return content[content.index(b"\x08\x00\x05\x00") :]


def test_many_who_ask_at_once_share_one_fetch(region: Region) -> None:
    region.deliver()
    region.tier()
    said = region.clinic.python(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from gateway import fetching\n"
        "from pacs_node.storage.stores import storage\n"
        "from pacs_node.study_index.models import Instance\n"
        "calls, plain = [], fetching.fetch\n"
        "def counted(*a):\n    calls.append(a)\n    return plain(*a)\n"
        "fetching.fetch = counted\n"
        "path = Instance.objects.first().path\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    sizes = list(pool.map(lambda _: len(storage().open(path).read()), range(8)))\n"
        "print(len(calls), len(set(sizes)), sizes[0] > 100)\n"
    )
    assert said.splitlines()[-1] == "1 1 True"


def fetched(region: Region, spoil: str = "") -> list[tuple[bool, int, int]]:
    """``(encoded, bytes of the wire, bytes of the file)`` of each file that came back from the archive."""
    said = region.clinic.python(FETCH.format(spoil=spoil)).splitlines()[-1]
    return [tuple(one) for one in json.loads(said)]


def test_what_comes_back_is_encoded_for_the_wire_where_the_peer_can(region: Region) -> None:
    region.deliver()
    sizes = sorted(len(content) for content in region.content().values())
    region.tier()
    encoded = fetched(region)
    assert all(one[0] for one in encoded)
    assert sum(one[1] for one in encoded) < 0.7 * sum(sizes)
    plain = fetched(region, NO_ENCODING)
    assert not any(one[0] for one in plain), "a peer of a version before sends the file"
    assert sorted(one[1] for one in plain) == sorted(one[2] for one in plain) == sizes
    assert sorted(one[2] for one in encoded) == sizes
    twice = fetched(region, DAMAGED)
    assert [one[0] for one in twice] == [True, False] * 4, "what was not given back exactly is asked for as it is"


def test_an_archive_that_is_away_is_a_named_error_and_a_study_that_is_pinned_stays(region: Region) -> None:
    region.deliver()
    region.clinic.command("pin", region.uid, "--reason", "teaching")
    assert f"stays {region.uid}: it is pinned: teaching" in region.tier()
    region.clinic.command("pin", region.uid, "--off")
    region.tier()
    region.archive.stop()
    done = region.clinic.command("recall", region.uid, check=False)
    assert done.returncode == 1
    assert done.stderr.count("recall-failed") == 4
    region.archive.start()
    assert "4 instances are back" in region.clinic.command("recall", region.uid).stdout
    assert len(region.content()) == 4


def test_the_archive_gives_an_instance_back_to_nobody_but_its_sender(region: Region) -> None:
    region.deliver()
    ((sop, digest),) = region.clinic.sql("SELECT sop_instance_uid, dataset_sha256 FROM study_index_instance LIMIT 1")
    url = f"http://127.0.0.1:{region.archive.http_port}/gateway/v1/instances/{sop}?to=archive&dataset={digest}"
    with pytest.raises(Exception, match="401"):
        urlopen(Request(url))
    region.archive.python("from gateway.models import IssuedReceipt\nIssuedReceipt.objects.update(sender='other')")
    region.tier()
    done = region.clinic.command("recall", region.uid, check=False)
    assert "never-delivered" in done.stderr


def test_verify_heals_bit_rot_and_lost_files_from_the_archive(region: Region) -> None:
    region.deliver()
    before = region.content()
    rotten, lost, *_ = region.paths()
    damaged = bytearray(before[rotten])
    damaged[-5] ^= 4
    (region.clinic.storage / rotten).write_bytes(damaged)
    (region.clinic.storage / lost).unlink()
    done = region.clinic.command("verify", "--once")
    assert done.stdout.count("healed from archive") == 2
    assert {path: strip(content) for path, content in region.content().items()} == {
        path: strip(content) for path, content in before.items()
    }
    (aside,) = (region.clinic.storage / "aside").rglob("*.dcm.*")
    assert aside.read_bytes() == damaged
    assert "0 damaged" in region.clinic.command("reindex").stdout


def test_the_institution_has_a_verified_copy_before_the_disk_lets_go(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    institution = tmp_path / "institution"
    node = make_node(start=False, REGIS_NODE_INSTITUTION_URL=institution.as_uri(), REGIS_NODE_TIER_AFTER_DAYS="30")
    study = Study()
    write_all(ct_series(2, study=study), tmp_path / "in")
    node.command("import", str(tmp_path / "in"))
    node.python(AGE)
    assert "stays" in node.command("tier", "--dry-run").stdout
    before = {path: path.read_bytes() for path in node.files(study.study_instance_uid)}
    assert "2 instances copied to the institution" in node.command("tier").stdout
    assert node.files(study.study_instance_uid) == []
    copies = sorted(institution.rglob("*.dcm"))
    assert [path.read_bytes() for path in copies] == list(before.values())
    node.python(
        "from pacs_node.storage.models import Holding\n"
        "from pacs_node.study_index.models import Study\nfrom gateway.models import OutboxEntry\n"
        "Study.objects.all().delete(); OutboxEntry.objects.all().delete()"
    )
    assert "0 added" in node.command("reindex").stdout
    content = bytearray(copies[0].read_bytes())
    content[-3] ^= 1
    copies[0].write_bytes(content)
    found = node.command("verify", "--once", check=False)
    assert found.returncode == 1
    assert "the copy is damaged" in found.stderr
    done = node.command("recall", study.study_instance_uid, check=False)
    assert done.stderr.count("no-other-copy") == 1
    assert len(node.files(study.study_instance_uid)) == 1


def key_object_selection(study: Study, *chosen: Dataset) -> FileDataset:
    selection = _base(study, "1.2.840.10008.5.1.4.1.1.88.59", "KO", new_uid(), 1)
    items = []
    for image in chosen:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        item = Dataset()
        item.RelationshipType, item.ValueType = "CONTAINS", "IMAGE"
        item.ReferencedSOPSequence = Sequence([reference])
        items.append(item)
    selection.ValueType = "CONTAINER"
    selection.ContentSequence = Sequence(items)
    return selection


def test_pixels_go_while_reports_and_key_images_stay_and_come_back_again(region: Region, tmp_path: Path) -> None:
    series = ct_series(4, study=region.study)
    write_all([*series, key_object_selection(region.study, series[1])], tmp_path / "more")
    region.clinic.command("import", str(tmp_path / "more"))
    refused = region.clinic.command("remove_pixels", region.uid, check=False)
    assert "no-other-copy" in refused.stderr
    region.deliver()
    assert "6 images" in region.clinic.command("remove_pixels", region.uid, "--dry-run").stdout
    assert len(region.content()) == 9
    done = region.clinic.command("remove_pixels", region.uid)
    assert "6 images (0.1 MB) are gone; 1 key images and 2 reports" in done.stdout
    left = {Path(path).stem for path in region.content()}
    assert series[1].SOPInstanceUID in left
    assert len(left) == 3
    assert region.clinic.sql("SELECT SUM(instances_count) FROM study_index_series") == [(3,)]
    assert region.clinic.command("verify", "--once").returncode == 0
    assert "6 instances are back" in region.clinic.command("recall", region.uid, "--removed").stdout
    assert len(region.content()) == 9
    assert region.clinic.sql("SELECT SUM(instances_count) FROM study_index_series") == [(9,)]


def test_priors_of_tomorrows_patients_are_fetched_back(region: Region) -> None:
    region.deliver()
    region.tier()
    said = region.clinic.python(
        "from datetime import timedelta\n"
        "from django.utils import timezone\n"
        "from pacs_node.clinic.models import WorklistEntry\n"
        "from pacs_node.clinic.prefetching import prefetch\n"
        "item = {'patient_id': 'SOMEBODY-ELSE'}\n"
        "at = timezone.now() + timedelta(hours=20)\n"
        "entry = WorklistEntry.objects.create(scheduled_procedure_step_id='1', starts_at=at, item=item)\n"
        "print(prefetch())\n"
        "entry.item = {'patient_id': 'TEST-1001'}\n"
        "entry.save()\n"
        "print(prefetch())\n"
        "print(prefetch())\n"
    )
    assert [line for line in said.splitlines() if line.isdigit()] == ["0", "4", "0"]
    assert len(region.content()) == 4


def test_a_disk_that_fills_up_refuses_with_a700_and_507_and_takes_again_when_there_is_room(
    make_node: Callable[..., NodeProcess], tmp_path: Path
) -> None:
    need("storescu")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        node = make_node(
            REGIS_NODE_STORAGE_DIR=str(disk / "storage"), REGIS_NODE_REFUSE_BELOW="25%", REGIS_NODE_ACCEPT_ABOVE="60%"
        )
        series = write_all(ct_series(60, size=256), tmp_path / "ct")
        said = node.dcmtk("storescu", "-v", *map(str, series))
        assert b"Refused: OutOfResources" in said.stdout + said.stderr  # DCMTK's word for A700
        stored = len(node.sql("SELECT 1 FROM study_index_instance"))
        assert 20 < stored < 60
        assert len(list(disk.rglob("*.dcm"))) == stored
        answer = node.python(STOW.format(path=str(series[-1])))
        assert answer.splitlines()[-1] == "507"
        shutil.rmtree(next((disk / "storage" / "studies").glob("*/*")))
        again = node.dcmtk("storescu", str(series[-1]))
        assert again.returncode == 0
        node.stop()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_the_node_tells_the_centre_what_it_holds_itself(region: Region) -> None:
    held = "from gateway import registry\nprint('held', registry.store().held()[0])"
    region.deliver()
    assert region.clinic.python(held).endswith("held 4")
    region.tier()
    assert region.clinic.python(held).endswith("held 0")
    released = region.clinic.sql("SELECT COUNT(*) FROM gateway_outboxentry WHERE kind = 'series.released'")
    assert released == [(2,)]
    region.clinic.command("recall", region.uid)
    assert region.clinic.python(held).endswith("held 4")
    announced = region.clinic.sql("SELECT COUNT(*) FROM gateway_outboxentry WHERE kind = 'instance.stored'")
    assert announced == [(4,)]
    region.deliver()  # what is announced again is not sent again
    assert region.clinic.sql("SELECT COUNT(*) FROM gateway_delivery WHERE attempts > 1") == [(0,)]


def test_what_left_or_was_given_up_stays_when_it_is_sent_again(region: Region, tmp_path: Path) -> None:
    region.deliver()
    region.tier()
    assert region.content() == {}
    assert "4 here already" in region.clinic.command("import", str(tmp_path / "in")).stdout
    assert len(region.content()) == 4
    assert region.clinic.sql("SELECT COUNT(*) FROM storage_holding WHERE away_at IS NOT NULL") == [(0,)]
    region.clinic.command("remove_pixels", region.uid)
    assert len(region.content()) == 1
    region.clinic.command("import", str(tmp_path / "in"))
    assert len(region.content()) == 4
    assert region.clinic.sql("SELECT COUNT(*) FROM study_index_instance WHERE released_at IS NOT NULL") == [(0,)]
    assert region.clinic.sql("SELECT SUM(instances_count) FROM study_index_series") == [(4,)]
    assert region.clinic.command("verify", "--once").returncode == 0
