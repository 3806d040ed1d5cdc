"""A node and the centre compare what the node holds; whatever is tampered with is found, and mended or shown."""

from collections.abc import Callable

import pytest
from django.test import Client

from gateway.envelope import (
    Bucket,
    HeldSeries,
    HoldingsAnswer,
    HoldingsQuestion,
    InstanceDescription,
    SeriesHeld,
    SeriesKey,
)
from gateway.envelope.holdings import identity_sha256, line
from ris_central.accounts.models import User
from ris_central.audit.models import AuditEvent
from ris_central.catalogue.actions import arrivals, manifests, reconciling
from ris_central.catalogue.models import (
    Difference,
    HoldingsRound,
    InstanceHolding,
    Manifest,
    Series,
    SeriesHolder,
    SeriesInstance,
    Study,
)
from ris_central.federation.models import Command, Node
from ris_central.organizations.models import Site
from standards.digests import root_hash
from tests.factories import region

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]


@pytest.fixture
def clinic() -> Node:
    return region.node("clinic-a", region.site("a"))


@pytest.fixture
def archive() -> Node:
    return region.node("archive", region.site("centre", Site.Kind.CENTRE), Node.Kind.ARCHIVE)


class Holder:
    """A node's end of a round, over what it holds of some acquisitions."""

    def __init__(self, node: Node) -> None:
        self.node, self.held = node, dict[SeriesKey, tuple[region.Acquisition, list[InstanceDescription]]]()

    def has(self, made: region.Acquisition, images: list[InstanceDescription] | None = None) -> None:
        key = SeriesKey(made.study.study_instance_uid, made.patient.patient_id, made.series.series_instance_uid)
        self.held[key] = made, list(made.images if images is None else images)

    def series(self) -> list[HeldSeries]:
        return [
            HeldSeries(
                **key._asdict(),
                count=len(images),
                root_hash=root_hash((one.sop_instance_uid, one.dataset_sha256) for one in images),
                identity=identity_sha256(made.patient.model_dump(), made.study.model_dump()),
            )
            for key, (made, images) in self.held.items()
            if images
        ]

    def ask(self) -> HoldingsAnswer:
        """Both questions; the answer to the second, or to the first where all buckets are equal."""
        buckets: dict[int, tuple[int, int]] = {}
        for one in self.series():
            count, total = buckets.get(one.key.bucket, (0, 0))
            buckets[one.key.bucket] = count + 1, total ^ line(one.key, one.count, one.root_hash, one.identity)
        sums = [Bucket(bucket=key, count=n, total=f"{total:016x}") for key, (n, total) in buckets.items()]
        first = reconciling.compare(self.node, HoldingsQuestion(epoch="", seq=0, buckets=sums))
        if not first.differ:
            return first
        opened = [one for one in self.series() if one.key.bucket in first.differ]
        return reconciling.compare(self.node, HoldingsQuestion(epoch="", seq=0, opened=first.differ, series=opened))

    def tell(self, key: SeriesKey) -> None:
        """The two events of a series that is told again."""
        made, images = self.held.get(key, (None, []))
        entries = [(one.sop_instance_uid, one.dataset_sha256) for one in images]
        if made is not None and images:
            made._held[self.node.pk] = set(entries)
            arrivals.take_series_changed(self.node, made.changed(self.node, images))
        body = SeriesHeld(**key._asdict(), held=entries, count=len(entries), root_hash=root_hash(entries))
        reconciling.take_series_held(self.node, region.event(body))

    def reconcile(self) -> list[SeriesKey]:
        told = [SeriesKey(*key) for key in self.ask().tell]
        for key in told:
            self.tell(key)
        return told


def settled(made: region.Acquisition, *nodes: Node) -> Study:
    for node in nodes:
        made.arrive(node)
    study = made.known()
    region.make_quiet(study)
    manifests.complete(study.pk)
    assert manifests.settle(study.pk) == 1
    return made.known()


def the_difference() -> Difference:
    return Difference.objects.get()


def test_what_is_equal_costs_one_question_and_leaves_no_trace(clinic: Node, archive: Node) -> None:
    holder = Holder(clinic)
    for number in range(3):
        made = region.Acquisition(patient_id=f"P-{number}")
        made.arrive(clinic)
        holder.has(made)
    made = region.Acquisition(patient_id="P-9")
    settled(made, clinic, archive)
    holder.has(made)
    assert holder.ask() == HoldingsAnswer()
    assert not Difference.objects.exists()
    assert HoldingsRound.objects.get(node=clinic).series == 4


def forget_the_holder(made: region.Acquisition) -> None:
    SeriesHolder.objects.all().delete()


def forget_the_holdings(made: region.Acquisition) -> None:
    InstanceHolding.objects.all().delete()


def forget_an_instance(made: region.Acquisition) -> None:
    SeriesInstance.objects.filter(sop_instance_uid=made.images[1].sop_instance_uid).delete()


def forget_the_series(made: region.Acquisition) -> None:
    Series.objects.all().delete()


def forget_the_study(made: region.Acquisition) -> None:
    Study.objects.all().delete()


def believe_another_digest(made: region.Acquisition) -> None:
    row = SeriesInstance.objects.get(sop_instance_uid=made.images[0].sop_instance_uid)
    row.dataset_sha256 = "0" * 64
    row.save()


@pytest.mark.parametrize(
    "tamper",
    [forget_the_holder, forget_the_holdings, forget_an_instance, forget_the_series, forget_the_study],
)
def test_rows_deleted_at_the_centre_are_told_again(clinic: Node, tamper: Callable[[region.Acquisition], None]) -> None:
    made = region.Acquisition(images=4)
    made.arrive(clinic)
    holder = Holder(clinic)
    holder.has(made)
    tamper(made)
    assert len(holder.reconcile()) == 1
    assert holder.ask() == HoldingsAnswer()
    study = made.known()
    assert (study.instances_known, SeriesHolder.objects.get().count, InstanceHolding.objects.count()) == (4, 4, 4)
    assert the_difference().resolution == "told-again"
    assert AuditEvent.objects.filter(action="holdings.differ").exists()


def test_a_digest_changed_at_the_centre_is_found_and_the_true_one_comes_back(clinic: Node) -> None:
    made = region.Acquisition(images=4)
    made.arrive(clinic)
    holder = Holder(clinic)
    holder.has(made)
    believe_another_digest(made)
    holder.reconcile()
    assert the_difference().kind == "content"
    held = InstanceHolding.objects.filter(node=clinic).values_list("instance__dataset_sha256", flat=True)
    assert set(held) == {one.dataset_sha256 for one in made.images}
    assert made.known().instances_known == 4, "what nobody ever held is not counted"
    assert holder.ask() == HoldingsAnswer()


def test_a_manifest_deleted_at_the_centre_comes_back_as_rows(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=4)
    settled(made, clinic, archive)
    Manifest.objects.all().delete()
    for node in (clinic, archive):
        holder = Holder(node)
        holder.has(made)
        assert len(holder.reconcile()) == 1
    study = made.known()
    assert (study.instances_known, study.instances_safe, SeriesInstance.objects.count()) == (4, 4, 4)
    assert not Difference.objects.filter(mended_at=None).exists()


def another_digest(manifest: Manifest) -> None:
    manifest.entries[0]["dataset_sha256"] = "0" * 64


def one_less(manifest: Manifest) -> None:
    del manifest.entries[0]


def another_root(manifest: Manifest) -> None:
    manifest.root_hash = "0" * 64


@pytest.mark.parametrize("tamper", [another_digest, one_less, another_root])
def test_an_edit_inside_a_manifest_is_found_and_the_truth_comes_back(
    clinic: Node, archive: Node, tamper: Callable[[Manifest], None]
) -> None:
    made, whole = region.Acquisition(images=3), region.Acquisition(images=2, patient_id="P-2")
    settled(made, clinic, archive)
    settled(whole, clinic, archive)
    assert manifests.verify(0) == Manifest.objects.latest("pk").pk
    damaged = Manifest.objects.get(series__series_instance_uid=made.series.series_instance_uid)
    true_root = damaged.root_hash
    tamper(damaged)
    damaged.save()
    manifests.verify(0)
    assert AuditEvent.objects.filter(action="manifest.damaged").count() == 1
    for node in (clinic, archive):
        holder = Holder(node)
        holder.has(made)
        holder.has(whole)
        assert [key.series_instance_uid for key in holder.reconcile()] == [made.series.series_instance_uid]
        assert holder.ask() == HoldingsAnswer()
    study = made.known()
    assert (study.instances_known, study.instances_safe) == (3, 3)
    region.make_quiet(study)
    manifests.complete(study.pk)
    assert manifests.settle(study.pk) == 1
    anew = Manifest.objects.get(series=damaged.series, version=2)
    assert (anew.count, anew.root_hash) == (3, true_root)
    assert not Difference.objects.filter(mended_at=None).exists()
    assert manifests.verify(Manifest.objects.latest("pk").pk) == 0


def test_what_a_clinic_lost_and_the_archive_has_is_no_loss(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=4)
    study = settled(made, clinic, archive)
    holder = Holder(clinic)
    holder.has(made, made.images[:3])
    holder.reconcile()
    difference = the_difference()
    assert (difference.kind, difference.believed, difference.found) == ("count", 4, 3)
    assert difference.resolution == "elsewhere"
    study.refresh_from_db()
    assert (study.instances_known, study.instances_safe) == (4, 4)
    assert SeriesHolder.objects.get(node=clinic).count == 3


def test_what_nobody_holds_any_more_stays_open_until_a_person_accepts_it(clinic: Node) -> None:
    made = region.Acquisition(images=4)
    made.arrive(clinic)
    holder = Holder(clinic)
    holder.reconcile()
    difference = the_difference()
    assert (difference.kind, difference.mended_at) == ("lost", None)
    assert made.known().instances_known == 4
    assert holder.ask() == HoldingsAnswer(), "once told, it is believed, and not told every round"


def test_what_the_archive_lost_is_delivered_again_and_only_then_closed(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(images=4)
    study = settled(made, clinic, archive)
    holder = Holder(archive)
    holder.has(made, made.images[1:])
    holder.reconcile()
    study.refresh_from_db()
    assert (study.instances_known, study.instances_safe) == (4, 3), "it is not safe and not called so"
    (command,) = Command.objects.filter(type="series.prove")
    assert (command.node, command.body["destination"]) == (clinic, "archive")
    assert the_difference().mended_at is None
    made.arrive(archive, made.images[:1])
    assert (made.known().instances_safe, the_difference().resolution) == (4, "proved-again")
    assert Command.objects.filter(type="series.prove").count() == 1


def test_changed_study_data_are_shown_and_taken_over_only_by_a_person(clinic: Node) -> None:
    made = region.Acquisition(accession_number="001-0001")
    made.arrive(clinic)
    made.study = made.study.model_copy(update={"accession_number": "001-0002"})
    holder = Holder(clinic)
    holder.has(made)
    holder.reconcile()
    difference = the_difference()
    assert (difference.kind, difference.mended_at) == ("identity", None)
    assert made.known().accession_number == "001-0001"
    assert reconciling.disagreements(made.known(), difference.told) == {"accession_number": ("001-0001", "001-0002")}
    assert holder.ask() == HoldingsAnswer()


def test_another_patient_id_at_the_node_is_one_series_lost_and_one_extra(clinic: Node, archive: Node) -> None:
    made = region.Acquisition(patient_id="P-1")
    made.arrive(clinic)
    made.patient = made.patient.model_copy(update={"patient_id": "P-2"})
    holder = Holder(clinic)
    holder.has(made)
    assert len(holder.reconcile()) == 2
    assert sorted(Difference.objects.values_list("kind", flat=True)) == ["extra", "lost"]
    assert Study.objects.count() == 2


def test_nothing_is_compared_while_events_are_under_way(clinic: Node) -> None:
    made = region.Acquisition()
    made.arrive(clinic)
    Node.objects.filter(pk=clinic.pk).update(epoch="e", cursor=7)
    question = HoldingsQuestion(epoch="e", seq=6, opened=[1], series=[])
    assert reconciling.compare(clinic, question).state == "events-under-way"


def test_holders_of_before_take_over_what_the_node_says_of_the_identity(clinic: Node) -> None:
    made = region.Acquisition()
    made.arrive(clinic)
    SeriesHolder.objects.update(identity="")
    holder = Holder(clinic)
    holder.has(made)
    assert holder.ask().tell == []
    assert holder.ask() == HoldingsAnswer()
    assert not Difference.objects.exists()


def test_a_question_without_a_signature_is_refused(clinic: Node, client: Client) -> None:
    answer = client.post("/federation/v1/holdings", b"{}", content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (401, "signature-missing")
