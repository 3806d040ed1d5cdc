"""Figures of the region that a page reads without counting, a spreadsheet opens and a monitor asks for."""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from ris_central.accounts.models import Role, User
from ris_central.catalogue.models import Manifest, Series, Study
from ris_central.config import config
from ris_central.monitoring import figures, region
from ris_central.monitoring.models import NodeSample, SiteVolume, StudyCount
from ris_central.organizations.models import Site
from tests.central.nodes import heard
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]
ROOT = Path(__file__).parent.parent.parent


def study(of: Site, day: int = 0, modalities: tuple[str, ...] = ("CT",), known: int = 2, safe: int = 2) -> Study:
    """A study of so many days ago."""
    made = timezone.now() - timedelta(days=day)
    return Study.objects.create(
        patient=centre.patient(of, number=f"P{Study.objects.count()}"),
        site=of,
        study_instance_uid=f"1.2.{Study.objects.count()}",
        modalities=list(modalities),
        started_at=made,
        instances_known=known,
        instances_safe=safe,
        last_instance_at=made,
    )


def manifest(of: Study, version: int, sizes: list[int]) -> Manifest:
    series, _ = Series.objects.get_or_create(study=of, series_instance_uid=f"{of.study_instance_uid}.1")
    entries = [{"sop_instance_uid": f"1.{number}", "size": size} for number, size in enumerate(sizes)]
    return Manifest.objects.create(
        series=series, version=version, count=len(sizes), root_hash=f"{version}", entries=entries
    )


def counted(of: Site) -> dict[tuple[date, str], int]:
    rows = StudyCount.objects.filter(site=of).values_list("day", "modality", "studies")
    return {(day, modality): studies for day, modality, studies in rows}


def test_studies_are_counted_by_day_and_modality_and_only_changed_days_again() -> None:
    site = centre.site()
    today = timezone.localdate()
    study(site), study(site, 0, ("CT", "SR")), study(site, 3, ("MR",))
    figures.count_studies()
    old = today - timedelta(days=3)
    assert counted(site) == {(today, ""): 2, (today, "CT"): 2, (today, "SR"): 1, (old, ""): 1, (old, "MR"): 1}
    study(site, 0, ("MG",))
    figures.count_studies()
    assert (counted(site)[today, ""], counted(site)[today, "MG"], counted(site)[old, "MR"]) == (3, 1, 1)
    Study.objects.filter(modalities=["MR"]).delete()
    figures.count_studies()
    assert counted(site)[old, "MR"] == 1, "nothing came for that day"
    figures.count_studies(everything=True)
    assert (old, "MR") not in counted(site)


def test_a_study_at_midnight_belongs_to_the_day_of_its_site() -> None:
    east = centre.site("east", time_zone="Asia/Kamchatka")
    made = study(east)
    noon = datetime.fromisoformat("2026-11-20T12:30:00+00:00")  # half past midnight of the 21st there
    Study.objects.filter(pk=made.pk).update(started_at=noon)
    figures.count_studies()
    assert counted(east)[date(2026, 11, 21), ""] == 1


def test_what_only_a_pacs_outside_the_region_lists_was_not_made_here_until_its_images_come() -> None:
    site, today = centre.site(), timezone.localdate()
    listed = study(site, known=0, safe=0)
    study(site)
    figures.count_studies()
    assert counted(site) == {(today, ""): 1, (today, "CT"): 1}
    figures.measure_mirrors()
    assert SiteVolume.objects.get(site=site).studies == 1
    listed.instances_known = 3
    listed.save()
    figures.count_studies()
    assert counted(site)[today, "CT"] == 2


def test_volumes_that_drifted_because_studies_went_or_moved_are_mended_at_night() -> None:
    site, other, later = centre.site(), centre.site("b"), timezone.now() + timedelta(hours=1)
    gone, moved, stays = study(site), study(site), study(site)
    manifest(gone, 1, [100])
    manifest(moved, 1, [200, 20])
    manifest(stays, 1, [7])
    manifest(stays, 2, [7, 3])
    figures.add_volumes(later)

    def volumes() -> dict[int, tuple[int, int]]:
        rows = SiteVolume.objects.values_list("site_id", "bytes", "instances")
        return {key: (size, count) for key, size, count in rows}

    assert volumes() == {site.pk: (330, 5)}
    assert figures.mend_volumes() == 0
    gone.delete()
    Study.objects.filter(pk=moved.pk).update(site=other)
    assert figures.mend_volumes() == 2
    assert volumes() == {site.pk: (10, 2), other.pk: (220, 2)}
    Study.objects.all().delete()
    figures.mend_volumes()
    assert volumes() == {site.pk: (0, 0), other.pk: (0, 0)}


def test_volumes_follow_the_manifests_once_each() -> None:
    site, later = centre.site(), timezone.now() + timedelta(hours=1)
    one = study(site)
    manifest(one, 1, [100, 200])
    assert figures.add_volumes(later) == 1
    assert figures.add_volumes(later) == 0
    manifest(one, 2, [100, 200, 50])
    manifest(study(site), 1, [7])
    assert figures.add_volumes() == 0, "what is younger than two minutes may have one before it that is not there yet"
    assert figures.add_volumes(later) == 2
    volume = SiteVolume.objects.get(site=site)
    assert (volume.bytes, volume.instances) == (357, 4)


def test_a_disk_that_fills_is_foretold_and_one_that_does_not_is_not() -> None:
    start = timezone.now() - timedelta(days=10)
    filling = [(start + timedelta(hours=hour), 100 * 10**9 - hour * 10**8) for hour in range(240)]
    days = figures.days_until_full(filling)
    assert days is not None
    assert abs(days - 76.1 / 2.4) < 0.1
    assert figures.days_until_full([(at, 10**9) for at, _ in filling]) is None
    assert figures.days_until_full(filling[:5]) is None, "five hours foretell nothing"


@given(st.lists(st.integers(0, 10**14), max_size=50))
def test_no_samples_break_the_forecast(values: list[int]) -> None:
    start = timezone.now()
    days = figures.days_until_full([(start + timedelta(hours=n), value) for n, value in enumerate(values)])
    assert days is None or days >= 0


def test_samples_are_thinned_out_and_forgotten() -> None:
    node, now = heard(centre.node(centre.site())), timezone.now().replace(minute=30, second=0, microsecond=0)
    for ago in (
        timedelta(),
        timedelta(minutes=5),
        timedelta(days=3),
        timedelta(days=3, minutes=5),
        timedelta(days=500),
    ):
        NodeSample.objects.create(node=node, at=now - ago, free_bytes=1)
    assert figures.prune(now) == 2
    assert NodeSample.objects.count() == 3
    assert figures.sample() == 1
    heard(node, timedelta(hours=1))
    assert figures.sample(timezone.now() + timedelta(seconds=1)) == 0, "a silent node has no sample"


def region_of(count: int) -> None:
    for number in range(count):
        site = centre.site(f"s{number:02}")
        centre.device(site, f"CT{number}", "CT")
        heard(centre.node(site, f"n{number}"), oldest_waiting_seconds=60)
        StudyCount.objects.create(site=site, day=timezone.localdate(), modality="", studies=300)
        StudyCount.objects.create(site=site, day=timezone.localdate(), modality="CT", studies=300)
        SiteVolume.objects.create(site=site, bytes=33 * 10**12)


def test_the_page_asks_as_much_for_fifty_sites_as_for_two_and_never_the_studies(browser_of: Browser) -> None:
    browser = browser_of(centre.user(Role.ADMINISTRATOR))
    region_of(2)
    with CaptureQueriesContext(connection) as two:
        page = browser.get("/sites/region/").content.decode()
    assert page.count("CT") >= 1
    assert "30.0" in page
    for number in range(2, 50):
        centre.site(f"s{number:02}")
    with CaptureQueriesContext(connection) as fifty:
        assert browser.get("/sites/region/").status_code == 200
    assert len(fifty) == len(two)
    assert not [query for query in fifty.captured_queries if 'FROM "catalogue_study"' in query["sql"]]


def test_people_see_the_figures_of_their_sites(browser_of: Browser) -> None:
    region_of(2)
    page = browser_of(centre.user(Role.ENGINEER, centre.site("s00"))).get("/sites/region/").content.decode()
    assert "Clinic S00" in page
    assert "Clinic S01" not in page


def test_a_table_for_spreadsheets_holds_no_formula(browser_of: Browser) -> None:
    region_of(1)
    Site.objects.update(name='=HYPERLINK("http://evil.example")')
    answer = browser_of(centre.user(Role.ADMINISTRATOR)).get("/sites/region.csv")
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert {row[0] for row in rows[1:]} == {'\'=HYPERLINK("http://evil.example")'}
    assert [row[2:5] for row in rows[1:]] == [["CT", "1", "300"], ["Total", "1", "300"]]


@given(st.text())
def test_no_cell_begins_as_a_formula(text: str) -> None:
    assert region.plain(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")
    assert region.plain(text).endswith(text)


def test_every_query_of_the_grafana_board_names_a_metric_that_is_there(client: Client) -> None:
    heard(centre.node(centre.site()))
    SiteVolume.objects.create(site=centre.site())
    text = client.get("/metrics").content.decode()
    board = json.loads((ROOT / "deploy/grafana/region.json").read_text(encoding="utf-8"))
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"regis_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert {name for name in asked if not re.search(rf"^{name}(\{{|\s)", text, re.MULTILINE)} == set()


def test_metrics_are_given_to_this_machine_or_for_the_token(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.get("/metrics").status_code == 200
    assert client.get("/metrics", REMOTE_ADDR="10.0.0.9").status_code == 403
    with_token = config().model_copy(update={"metrics_token": "opensesame"})
    monkeypatch.setattr("ris_central.monitoring.metrics.config", lambda: with_token)
    assert client.get("/metrics").status_code == 403
    shown = client.get("/metrics", REMOTE_ADDR="10.0.0.9", HTTP_AUTHORIZATION="Bearer opensesame")
    assert shown.status_code == 200
