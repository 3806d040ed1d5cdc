"""What is where, what is on its way and why not: on the study's page and on the site's, with a button for all of it."""

import re
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from ris_central.catalogue import whereabouts
from ris_central.catalogue.actions.grants import grant
from ris_central.catalogue.models import Difference
from ris_central.catalogue.reasons import reason
from ris_central.federation import configurations
from ris_central.federation.models import Command, Node
from ris_central.organizations.models import Site
from tests.central.place import Place
from tests.factories import region

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).parent.parent.parent
CODE = re.compile(r'(?:Transient|Permanent)Error\("([a-z0-9-]+)"')
Browser = Callable[[User | None], Client]


@pytest.fixture
def place() -> Iterator[Place]:
    """The archive's port is open; nothing is asked of it here."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Place(f"https://127.0.0.1:{server.getsockname()[1]}")


def test_a_study_that_only_the_clinic_holds_is_coming_and_was_asked_for_at_once(
    place: Place, browser_of: Browser
) -> None:
    study = region.Acquisition(images=4).arrive(place.clinic)
    page = browser_of(place.doctor).get(f"/studies/{study.pk}/").content.decode()
    assert 'data-state="coming"' in page
    assert "the clinic sends it now" in page
    iframe = page.partition('<iframe id="viewer"')[2].partition(">")[0]
    assert " src=" not in iframe, "no viewer before there is an image"
    (command,) = Command.objects.filter(type="study.send")
    assert (command.node, command.body["priority"]) == (place.clinic, 10)


def test_the_viewer_opens_with_the_first_image_and_the_page_says_how_far_it_is(
    place: Place, browser_of: Browser
) -> None:
    made = region.Acquisition(images=4)
    study = made.arrive(place.clinic)
    made.arrive(place.archive, made.images[:1])
    place.progress(study, receipted=1, seconds_left=40)
    opening = whereabouts.opening(made.known())
    assert (opening.state, opening.open_now, opening.known) == ("arriving", 1, 4)
    page = browser_of(place.doctor).get(f"/studies/{study.pk}/").content.decode()
    assert "1 of 4" in page
    assert "about 40 s" in page or "about 39 s" in page
    assert ' src="/viewer/viewer?StudyInstanceUIDs=' in page
    made.arrive(place.archive)
    part = browser_of(place.doctor).get(f"/studies/{study.pk}/opening/").content.decode()
    assert 'data-state="ready" data-open-now="4"' in part


def test_when_the_clinic_is_down_and_the_archive_has_it_nobody_notices(place: Place, browser_of: Browser) -> None:
    made = region.Acquisition()
    made.arrive(place.clinic)
    study = made.arrive(place.archive)
    place.heard(place.clinic, timedelta(hours=5))
    page = browser_of(place.doctor).get(f"/studies/{study.pk}/").content.decode()
    assert 'data-state="ready"' in page
    assert "away since" in page, "the table says so, the images do not wait"


def test_when_nobody_has_it_the_page_says_who_does_since_when_and_asks_for_it(
    place: Place, browser_of: Browser
) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.heard(place.clinic, timedelta(hours=5))
    browser = browser_of(place.doctor)
    page = browser.get(f"/studies/{study.pk}/").content.decode()
    assert 'data-state="away"' in page
    assert "Клиника a" in page
    assert "not heard since" in page
    Command.objects.all().delete()
    answer = browser.post(f"/studies/{study.pk}/send/", headers={"HX-Request": "true"}).content.decode()
    assert "Asked: it is sent first" in answer
    assert Command.objects.get(type="study.send").node == place.clinic
    assert AuditEvent.objects.filter(action="study.asked-for", actor=place.doctor).exists()


def test_where_one_series_is_out_of_reach_the_others_open_and_the_page_says_who_has_it_since_when(
    place: Place, browser_of: Browser
) -> None:
    first = region.Acquisition(images=3)
    other = region.Acquisition(study_uid=first.study.study_instance_uid, images=2, modality="MR")
    first.arrive(place.clinic)
    study = other.arrive(place.clinic)
    first.arrive(place.archive)
    assert whereabouts.opening(first.known()).state == "arriving", "while the clinic is in touch the rest comes"
    place.heard(place.clinic, timedelta(hours=5))
    opening = whereabouts.opening(first.known())
    assert (opening.state, opening.open_now, opening.known) == ("partly", 3, 5)
    assert [(one.series.modality, one.instances, [row.node for row in one.holders]) for one in opening.missing] == [
        ("MR", 2, [place.clinic])
    ]
    browser = browser_of(place.doctor)
    page = browser.get(f"/studies/{study.pk}/").content.decode()
    assert ' src="/viewer/viewer?StudyInstanceUIDs=' in page, "what is here is shown"
    part = page.partition('data-state="partly"')[2].partition("</ul>")[0]
    for piece in ("3 of 5", "Series 1 MR, 2 missing", "Клиника a", "not heard since"):
        assert piece in part, piece
    asked = browser.post(f"/studies/{study.pk}/send/", headers={"HX-Request": "true"}).content.decode()
    assert "Asked: it is sent first" in asked
    other.arrive(place.archive)
    assert whereabouts.opening(first.known()).state == "ready"


def test_a_study_of_another_site_can_be_neither_looked_up_nor_asked_for(place: Place, browser_of: Browser) -> None:
    study = region.Acquisition().arrive(region.node("b", region.site("b")))
    browser = browser_of(place.doctor)
    assert browser.get(f"/studies/{study.pk}/opening/").status_code == 404
    assert browser.post(f"/studies/{study.pk}/send/").status_code == 404
    assert not Command.objects.exists()


def test_inside_the_clinic_the_viewer_of_its_own_node_is_a_click_away(place: Place, browser_of: Browser) -> None:
    Node.objects.update(browser_url="http://node.a.example:8042")
    made = region.Acquisition()
    made.arrive(place.clinic)
    study = made.arrive(place.archive)
    answer = browser_of(place.doctor).get(f"/studies/{study.pk}/")
    assert answer.content.decode().count('data-at-node="http://node.a.example:8042"') == 1, (
        "the clinic, not the archive"
    )
    assert answer["Cross-Origin-Opener-Policy"] == "same-origin-allow-popups"


def test_the_table_of_holders_counts_digest_by_digest(place: Place) -> None:
    made = region.Acquisition(images=4)
    study = made.arrive(place.clinic)
    made.arrive(place.archive, made.images[:3])
    place.progress(study, receipted=3, proofs={"receipt": 3})
    rows = {row.node.name: (row.held, row.equal, row.proofs) for row in whereabouts.holder_rows(made.known())}
    assert rows == {"archive": (3, 3, {"receipt": 3}), "clinic-a": (4, 4, {})}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"held": [{"reason": "night", "until": "2026-11-21T17:00:00Z", "instances": 3}]}, "waits for the night by"),
        ({"held": [{"reason": "on-demand", "instances": 3}]}, "until somebody asks"),
        ({"failed": 1, "errors": {"storage-full": 1}}, "has no room left"),
        ({"failed": 1, "last_error": "source-damaged: of dataset"}, "the file at the clinic is damaged"),
        ({"failed": 1, "errors": {"quite-unheard-of": 1}}, "quite-unheard-of"),
        ({"failed": 1, "errors": {"storage-full": 1}, "failing_since": "2026-11-21T07:15:00Z"}, "Since 21.11."),
        ({"failed": 1, "errors": {"instance-gone": 1}}, "1 image is not tried again by itself: press the button"),
        ({"errors": {"body-damaged": 1}}, "is tried again by itself, after five minutes at the longest"),
        ({"seconds_left": 600, "bytes_per_second": 1 << 20}, "about 10 min"),
    ],
)
def test_nothing_waits_without_a_reason_on_either_page(
    place: Place, browser_of: Browser, told: dict[str, object], words: str
) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.progress(study, **told)
    for user, address in (
        (place.doctor, f"/studies/{study.pk}/proof/"),
        (place.engineer, f"/sites/{place.site.pk}/mirror/"),
    ):
        text = browser_of(user).get(address).content.decode()
        assert words in text, address


def test_every_error_of_a_delivery_has_words_and_an_advice() -> None:
    """What the sending and the receiving end can answer; what joining and commands say is told elsewhere."""
    carriers = [ROOT / "gateway" / f"{name}.py" for name in ("sending", "uploads", "receiving", "client", "lanes")]
    carriers += [*(ROOT / "gateway" / "outside").glob("*.py"), ROOT / "pacs_node" / "dimse" / "outside.py"]
    codes = {code for path in carriers for code in CODE.findall(path.read_text(encoding="utf-8"))}
    assert len(codes) > 20
    codes |= {"database-busy", "signature-expired", "unknown-key", "truncated", "not-dicom"}
    assert {code for code in codes if reason(code)[0] == code} == set()


def test_a_mirror_says_whether_it_encodes_and_what_that_rests_on(place: Place, browser_of: Browser) -> None:
    encoding = {"encodes": True, "why": "line", "ratio": 0.37, "encoder": 140 << 20, "encoded": 32 << 20}
    place.clinic.status = {"queues": [{"destination": "archive", "encoding": encoding}]}
    place.clinic.save()
    address = f"/sites/{place.site.pk}/mirror/"
    text = browser_of(place.engineer).get(address).content.decode()
    assert "Encoded for the line (the encoder keeps up easily, so the line decides)" in text
    assert "the encoder does 140.0\xa0MB/s, leaves 37 %" in text
    place.clinic.status = {"queues": [{"destination": "archive", "encoding": {"encodes": 1, "why": "of-tomorrow"}}]}
    place.clinic.save()
    assert "archive" in browser_of(place.engineer).get(address).content.decode(), "a newer node breaks no page"


def test_a_node_that_is_away_is_itself_the_reason(place: Place, browser_of: Browser) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.progress(study)
    place.heard(place.clinic, timedelta(hours=2))
    text = browser_of(place.engineer).get(f"/sites/{place.site.pk}/mirror/").content.decode()
    assert "node is away" in text
    assert "It sends by itself when it is back" in text


def test_the_engineer_sees_the_mirror_without_names_and_sends_what_failed(place: Place, browser_of: Browser) -> None:
    study = region.Acquisition().arrive(place.clinic)
    place.progress(study, failed=2, errors={"storage-full": 2})
    other = region.Acquisition().arrive(place.clinic)
    place.progress(other)
    browser = browser_of(place.engineer)
    text = browser.get(f"/sites/{place.site.pk}/mirror/").content.decode()
    assert "Щёголев" not in text
    assert f"/studies/{study.pk}/" not in text
    assert browser.post(f"/sites/{place.site.pk}/mirror/send/", {"only": "failed"}).status_code == 302
    (command,) = Command.objects.filter(type="study.send")
    assert command.body["study_instance_uid"] == study.study_instance_uid


def test_the_page_says_the_sites_model_only_where_the_node_goes_by_it(place: Place, browser_of: Browser) -> None:
    browser, address = browser_of(place.engineer), f"/sites/{place.site.pk}/mirror/"
    assert "Everything goes to the archive at once" in browser.get(address).content.decode()
    configurations.save(place.clinic, {"mirror": {"rules": [{"modalities": ["CT"], "when": "night"}]}})
    page = browser.get(address).content.decode()
    subtitle = page.partition("<h1")[2].partition("Not at its destination")[0]
    assert "clinic-a sends by rules of its own" in subtitle
    assert "Everything goes to the archive at once" not in subtitle


def test_the_mirror_page_costs_the_same_however_much_waits(place: Place, browser_of: Browser) -> None:
    browser = browser_of(place.administrator)

    def cost() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert browser.get(f"/sites/{place.site.pk}/mirror/").status_code == 200
        return len(queries)

    def more(number: int) -> None:
        for _ in range(number):
            place.progress(region.Acquisition().arrive(place.clinic))

    more(1)
    cost()
    few = cost()
    more(8)
    assert cost() == few


def test_a_difference_is_shown_with_a_reason_and_settled_by_a_person(place: Place, browser_of: Browser) -> None:
    study = region.Acquisition().arrive(place.clinic)
    series = study.series.get()
    lost = Difference.objects.create(
        node=place.clinic,
        study=study,
        study_instance_uid=study.study_instance_uid,
        dicom_patient_id=study.dicom_patient_id,
        series_instance_uid=series.series_instance_uid,
        kind="lost",
        believed=3,
        is_told=True,
    )
    browser = browser_of(place.engineer)
    address = f"/sites/{place.site.pk}/mirror/"
    text = browser.get(address).content.decode()
    assert "the node has 0, the centre counted on 3" in text
    assert "Nobody else holds these images" in text
    assert browser_of(place.doctor).post(f"{address}differences/{lost.pk}/", {"do": "accept"}).status_code == 403
    assert browser.post(f"{address}differences/{lost.pk}/", {"do": "accept"}).status_code == 302
    lost.refresh_from_db()
    assert lost.resolution == "accepted"
    assert AuditEvent.objects.filter(action="holdings.accepted", actor=place.engineer).exists()
    again = browser.post(f"{address}differences/{lost.pk}/", {"do": "accept"}, follow=True)
    assert "settled it meanwhile" in again.content.decode()


def test_comparing_now_is_a_command_to_the_node_and_stands_in_the_trail(place: Place, browser_of: Browser) -> None:
    browser = browser_of(place.engineer)
    for _ in range(2):
        browser.post(f"/sites/{place.site.pk}/mirror/compare/")
    assert Command.objects.get(type="holdings.tell").node == place.clinic
    assert AuditEvent.objects.filter(action="holdings.asked").exists()


def test_the_administrator_chooses_where_a_sites_images_lie(place: Place, browser_of: Browser) -> None:
    address = f"/sites/{place.site.pk}/mirror/storage-model/"
    assert browser_of(place.engineer).post(address, {"storage_model": "distributed"}).status_code == 403
    browser_of(place.administrator).post(address, {"storage_model": "distributed"})
    place.site.refresh_from_db()
    assert place.site.storage_model == "distributed"
    assert AuditEvent.objects.get(action="site.storage-model").detail == {"from": "centralised", "to": "distributed"}


def test_a_reference_centre_has_no_node_and_its_expert_opens_what_was_granted(
    place: Place, browser_of: Browser
) -> None:
    reference = region.site("ref", Site.Kind.CONSULTANT)
    expert = region.person("expert", Role.EXPERT, reference)
    made = region.Acquisition()
    made.arrive(place.clinic)
    study = made.arrive(place.archive)
    other = region.Acquisition().arrive(place.clinic)
    grant(study, [expert])
    browser = browser_of(expert)
    assert 'data-state="ready"' in browser.get(f"/studies/{study.pk}/").content.decode()
    assert browser.get(f"/studies/{other.pk}/").status_code == 404
    page = browser_of(place.administrator).get(f"/sites/{reference.pk}/mirror/").content.decode()
    assert "Works in the browser, without a node" in page
