"""Events of nodes become the region's catalogue: counted, proven, complete, and the same however often they come."""

import asyncio

import pytest
from channels.layers import get_channel_layer
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gateway.envelope import SeriesChanged
from ris_central.catalogue.actions import announcing, arrivals, manifests
from ris_central.catalogue.actions.arrivals import adopt_parked
from ris_central.catalogue.models import (
    InstanceHolding,
    Manifest,
    ParkedEvent,
    SeriesHolder,
    SeriesInstance,
    Study,
)
from ris_central.catalogue.queries import holders, nearest_nodes
from ris_central.catalogue.times import started_at
from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from tests.factories import region

pytestmark = pytest.mark.django_db


@pytest.fixture
def clinic() -> Node:
    return region.node("clinic-a", region.site("a"))


@pytest.fixture
def archive() -> Node:
    return region.node("archive", region.site("centre", Site.Kind.CENTRE), Node.Kind.ARCHIVE)


def test_images_of_a_clinic_become_a_study_of_that_clinic(clinic: Node) -> None:
    study = region.Acquisition(images=4).arrive(clinic)
    assert (study.site, study.instances_known, study.instances_safe) == (clinic.site, 4, 0)
    assert study.modalities == ["CT"]
    assert study.patient.name == region.NAME
    assert study.complete_at is None


def test_the_same_event_twice_counts_once(clinic: Node) -> None:
    made = region.Acquisition(images=4)
    event = made.changed(clinic)
    arrivals.take_series_changed(clinic, event)
    arrivals.take_series_changed(clinic, event)
    assert made.known().instances_known == 4
    assert SeriesInstance.objects.count() == 4
    assert InstanceHolding.objects.count() == 4


def test_what_the_archive_holds_with_equal_digests_is_safe(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=4)
    made.arrive(clinic)
    assert made.arrive(archive, made.images[:3]).instances_safe == 3
    study = made.arrive(archive, made.images[3:])
    assert (study.instances_known, study.instances_safe) == (4, 4)
    assert study.site == clinic.site


def test_two_events_numbered_when_the_archive_had_all_already_both_count(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=4)
    made.arrive(clinic)
    whole = made.changed(archive).body
    assert isinstance(whole, SeriesChanged)
    for images in (made.images[:3], made.images[3:]):
        part = made.changed(archive, images)
        state = {"count": whole.count, "root_hash": whole.root_hash}
        arrivals.take_series_changed(archive, part.model_copy(update={"body": part.body.model_copy(update=state)}))
    assert made.known().instances_safe == 4


def test_another_content_under_the_same_uid_is_not_safe_and_is_counted(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=2)
    made.arrive(clinic)
    variant = region.instance(1, uid=made.images[0].sop_instance_uid, content="other")
    study = made.arrive(archive, [variant, made.images[1]])
    assert (study.instances_known, study.instances_safe) == (3, 2)


def test_the_archive_may_speak_before_the_clinic_and_the_study_is_still_the_clinics(
    clinic: Node, archive: Node
) -> None:
    made = region.Acquisition(images=3)
    arrivals.take_series_changed(archive, made.changed(archive))
    assert not Study.objects.exists()
    study = made.arrive(clinic)
    assert (study.site, study.instances_known, study.instances_safe) == (clinic.site, 3, 3)
    assert not ParkedEvent.objects.exists()


def test_a_study_that_only_the_archive_knows_is_adopted_and_later_given_to_its_clinic(
    clinic: Node, archive: Node
) -> None:
    made = region.Acquisition(images=3)
    arrivals.take_series_changed(archive, made.changed(archive))
    adopt_parked(ParkedEvent.objects.select_related("node__site").get())
    assert made.known().site == archive.site
    study = made.arrive(clinic)
    assert (study.site, study.instances_safe, Study.objects.count()) == (clinic.site, 3, 1)


def test_one_uid_used_for_two_patients_is_two_studies(clinic: Node) -> None:
    first = region.Acquisition(patient_id="A-1")
    first.arrive(clinic)
    second = region.Acquisition(patient_id="A-2", study_uid=first.study.study_instance_uid, name="Иной^Пациент")
    arrivals.take_series_changed(clinic, second.changed(clinic))
    assert Study.objects.filter(study_instance_uid=first.study.study_instance_uid).count() == 2


def test_a_quiet_study_is_complete_and_once_safe_keeps_a_manifest_instead_of_rows(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=5)
    study = made.arrive(clinic)
    region.make_quiet(study)
    assert manifests.quiet_studies(timezone.now()) == [study.pk]
    assert manifests.complete(study.pk)
    assert manifests.settled_studies() == []
    made.arrive(archive)
    region.make_quiet(study)
    manifests.complete(study.pk)
    assert manifests.settle(study.pk) == 1
    manifest = Manifest.objects.get()
    archived = SeriesHolder.objects.get(node=archive)
    assert (manifest.count, manifest.root_hash) == (5, archived.root_hash)
    assert not SeriesInstance.objects.exists()
    assert not InstanceHolding.objects.exists()
    assert [entry["instance_number"] for entry in manifest.entries] == [1, 2, 3, 4, 5]


def test_a_late_image_reopens_a_settled_study_with_all_its_rows(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=5)
    study = made.arrive(clinic)
    made.arrive(archive)
    region.make_quiet(study)
    manifests.complete(study.pk)
    manifests.settle(study.pk)
    late = region.instance(6)
    study = made.arrive(clinic, [late])
    assert study.complete_at is None
    assert (study.instances_known, study.instances_safe) == (6, 5)
    assert SeriesInstance.objects.count() == 6
    made.arrive(archive, [late])
    region.make_quiet(study)
    assert manifests.complete(study.pk)
    assert manifests.settle(study.pk) == 1
    assert sorted(Manifest.objects.values_list("version", "count")) == [(1, 5), (2, 6)]


def test_a_released_node_no_longer_holds_and_nothing_known_is_lost(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=3)
    made.arrive(clinic)
    study = made.arrive(archive)
    arrivals.take_series_released(clinic, made.released(clinic))
    study.refresh_from_db()
    assert (study.instances_known, study.instances_safe) == (3, 3)
    assert [entry["node"] for entry in holders(study)] == [archive]


def test_images_are_asked_of_the_archive_only_when_it_has_them_all(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=4)
    study = made.arrive(clinic)
    made.arrive(archive, made.images[:2])
    assert [one.name for one in nearest_nodes(study.pk)] == ["clinic-a", "archive"]
    made.arrive(archive, made.images[2:])
    assert [one.name for one in nearest_nodes(study.pk)] == ["archive", "clinic-a"]


def test_an_event_of_many_images_costs_no_more_queries_than_one_of_few(clinic: Node) -> None:
    def cost(images: int) -> int:
        made = region.Acquisition(images=images, patient_id=f"Q-{images}")
        event = made.changed(clinic)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            arrivals.take_series_changed(clinic, event)
        return len(queries)

    cost(1)
    assert cost(400) <= cost(2)


@pytest.mark.parametrize(
    ("date", "time", "offset", "expected"),
    [
        ("20261121", "093000", "", "2026-11-21T06:30:00+00:00"),
        ("20261121", "0930", "+0500", "2026-11-21T04:30:00+00:00"),
        ("2026.11.21", "09:30:00.123", "", "2026-11-21T06:30:00+00:00"),
        ("20261121", "99", "", "2026-11-20T21:00:00+00:00"),
    ],
)
def test_study_times_are_read_in_the_zone_of_the_site(date: str, time: str, offset: str, expected: str) -> None:
    found = started_at(date, time, offset, "Europe/Moscow")
    assert found is not None
    assert found.isoformat() == expected


def test_a_date_that_is_none_gives_no_time() -> None:
    assert started_at("yesterday", "1200", "", "Europe/Moscow") is None


def test_studies_that_change_within_a_moment_are_told_to_open_pages_by_one_message() -> None:
    async def heard() -> dict[str, object]:
        layer = get_channel_layer()
        page = await layer.new_channel()
        await layer.group_add(announcing.WORKLIST_GROUP, page)
        told = Study(pk=900_000_001), Study(pk=900_000_002)
        for study in told:
            announcing._changed_studies.add([study.pk])
        while True:
            message: dict[str, object] = await asyncio.wait_for(layer.receive(page), 60)
            if set(message["studies"]) & {study.pk for study in told}:  # type: ignore[call-overload]
                return message

    assert asyncio.run(heard()) == {"type": "study.changed", "studies": [900_000_001, 900_000_002]}
