"""Comparing what a node holds with what is believed of it: differences are kept, mended where possible, and shown."""

from collections.abc import Iterable

from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from gateway.envelope import (
    Event,
    HeldSeries,
    HoldingsAnswer,
    HoldingsQuestion,
    ProveAgain,
    SeriesChanged,
    SeriesHeld,
    SeriesKey,
    StudyDescription,
    TellHoldings,
)
from gateway.envelope.holdings import identity_sha256
from ris_central.audit.actions import record
from ris_central.catalogue.actions.announcing import announce_changed
from ris_central.catalogue.actions.counts import recount
from ris_central.catalogue.actions.manifests import rehydrate
from ris_central.catalogue.actions.studies import known_study, lock_study, study_values
from ris_central.catalogue.holdings import Believed, believed_series, believed_sums
from ris_central.catalogue.models import Difference, HoldingsRound, InstanceHolding, Series, SeriesHolder, Study
from ris_central.catalogue.times import started_at
from ris_central.federation.actions import send_command
from ris_central.federation.models import Command, Node
from standards.errors import ConflictError

Kind, Resolution = Difference.Kind, Difference.Resolution


@transaction.atomic
def compare(node: Node, question: HoldingsQuestion) -> HoldingsAnswer:
    """One question of a round; see the envelope. Nothing is changed here but what is known of differences."""
    if question.ended:
        HoldingsRound.objects.filter(node=node).update(ended_at=timezone.now())
        return HoldingsAnswer()
    if question.opened:
        return _compare_series(node, question)
    told = {one.bucket: (one.count, one.total) for one in question.buckets}
    believed = believed_sums(node)
    differ = sorted(bucket for bucket in told.keys() | believed.keys() if told.get(bucket) != believed.get(bucket))
    HoldingsRound.objects.update_or_create(
        node=node,
        defaults={
            "begun_at": timezone.now(),
            "ended_at": None,
            "series": sum(count for count, _ in told.values()),
            "differing": 0,
        },
    )
    return HoldingsAnswer(differ=differ)


def _compare_series(node: Node, question: HoldingsQuestion) -> HoldingsAnswer:
    # Locked, so that no event of this node is applied between looking at its cursor and at what is believed.
    locked = Node.objects.select_for_update(no_key=True, of=("self",)).get(pk=node.pk)
    if (locked.epoch, locked.cursor) != (question.epoch, question.seq):
        return HoldingsAnswer(state="events-under-way")
    believed = believed_series(node, question.opened)
    held = {one.key: one for one in question.series}
    tell: list[SeriesKey] = []
    for key in sorted(believed.keys() | held.keys()):
        kind = _kind(held.get(key), believed.get(key))
        if kind is not None:
            _keep(node, key, kind, held.get(key), believed.get(key))
            tell.append(key)
    _adopt_identities(held, believed)
    row = HoldingsRound.objects.filter(node=node).first()
    if row is not None:
        row.differing += len(tell)
        row.save(update_fields=["differing"])
    return HoldingsAnswer(tell=[(key[0], key[1], key[2]) for key in tell])


def _kind(held: HeldSeries | None, believed: Believed | None) -> str | None:
    if held is None:
        return Kind.LOST
    if believed is None:
        return Kind.EXTRA
    if held.count != believed.count:
        return Kind.COUNT
    if held.root_hash != believed.root_hash:
        return Kind.CONTENT
    if believed.identity and held.identity != believed.identity:
        return Kind.IDENTITY
    return None


def _keep(node: Node, key: SeriesKey, kind: str, held: HeldSeries | None, believed: Believed | None) -> None:
    # Read without a lock: nothing is written to the study here, and events of other nodes may hold it.
    study = (
        Study.objects.filter(study_instance_uid=key.study_instance_uid, dicom_patient_id=key.patient_id)
        .order_by("pk")
        .first()
    )
    difference, is_new = Difference.objects.get_or_create(
        node=node,
        study_instance_uid=key.study_instance_uid,
        dicom_patient_id=key.patient_id,
        series_instance_uid=key.series_instance_uid,
        kind=kind,
        mended_at=None,
        defaults={
            "study": study,
            "believed": believed.count if believed else 0,
            "found": held.count if held else 0,
        },
    )
    if is_new:
        record(
            "holdings.differ",
            actor=node.name,
            entity=study or node,
            detail={
                "series": key.series_instance_uid,
                "kind": kind,
                "believed": difference.believed,
                "found": difference.found,
            },
        )


def _adopt_identities(held: dict[SeriesKey, HeldSeries], believed: dict[SeriesKey, Believed]) -> None:
    """Holders of before identities were kept take over what the node says now."""
    rows = [
        SeriesHolder(pk=one.holder, identity=held[key].identity)
        for key, one in believed.items()
        if not one.identity and key in held
    ]
    SeriesHolder.objects.bulk_update(rows, ["identity"], batch_size=1000)


def note_identity(node: Node, series: Series, body: SeriesChanged) -> None:
    """A node told a series whose patient or study data differ: keep them beside ours, for a person to decide."""
    patient, study = body.patient.model_dump(mode="json"), body.study.model_dump(mode="json")
    SeriesHolder.objects.filter(series=series, node=node).update(identity=identity_sha256(patient, study))
    _open_of(node, series.study.study_instance_uid, series.series_instance_uid).filter(kind=Kind.IDENTITY).update(
        told={"patient": patient, "study": study}, study=series.study
    )


@transaction.atomic
def take_series_held(node: Node, event: Event) -> None:
    """All that a node holds of a series: what it does not name, it does not hold."""
    body = event.body
    if not isinstance(body, SeriesHeld):
        raise TypeError(f"series.held expected, {body.type} given")
    lock_study(body.study_instance_uid)
    _open_of(node, body.study_instance_uid, body.series_instance_uid).update(is_told=True)
    study = known_study(body.study_instance_uid, body.patient_id)
    series = study.series.filter(series_instance_uid=body.series_instance_uid).first() if study else None
    if study is None or series is None:
        _mend(_open_of(node, body.study_instance_uid, body.series_instance_uid), Resolution.TOLD_AGAIN)
        return
    rehydrate(series)
    named = {(uid, digest) for uid, digest in body.held}
    rows = list(series.instances.values_list("pk", "sop_instance_uid", "dataset_sha256"))
    here = {pk for pk, uid, digest in rows if (uid, digest) in named}
    InstanceHolding.objects.filter(node=node, instance__series=series).exclude(instance__in=here).delete()
    InstanceHolding.objects.bulk_create(
        [InstanceHolding(instance_id=pk, node=node) for pk in here], ignore_conflicts=True
    )
    if body.count:
        SeriesHolder.objects.update_or_create(
            series=series, node=node, defaults={"count": body.count, "root_hash": body.root_hash}
        )
    else:
        SeriesHolder.objects.filter(series=series, node=node).delete()
    _drop_superseded(node, series)
    recount(study, [series])
    judge(study, series, ask=True)
    announce_changed(study)


def _drop_superseded(node: Node, series: Series) -> None:
    """Where content differed: forget rows of a UID that nobody holds with that digest, while it is held with another.

    Without a difference in content such a row stays: it may be an image that was lost.
    """
    opened = _open_of(None, series.study.study_instance_uid, series.series_instance_uid)
    if not opened.filter(kind=Kind.CONTENT).exists():
        return
    held = InstanceHolding.objects.filter(
        instance__series=series, instance__sop_instance_uid=OuterRef("sop_instance_uid")
    )
    nobody = ~Exists(InstanceHolding.objects.filter(instance=OuterRef("pk")))
    superseded = series.instances.filter(nobody, Exists(held))
    gone = list(superseded.values_list("sop_instance_uid", "dataset_sha256"))
    if gone:
        superseded.delete()
        record("holdings.superseded", actor=node.name, entity=series.study, detail={"instances": gone[:20]})


def judge(study: Study, series: Series, *, ask: bool) -> None:
    """Close the differences of a series that are mended by now. ``ask``: have what the archive lost delivered again.

    What a clinic no longer holds is no loss while every instance is held by somebody. What nobody holds stays open.
    """
    series.refresh_from_db(fields=["instance_count", "instances_safe"])
    held_by_somebody = InstanceHolding.objects.filter(instance=OuterRef("pk"))
    is_whole = not series.instances.filter(~Exists(held_by_somebody)).exists()
    is_safe = series.instances_safe >= series.instance_count
    opened = _open_of(None, study.study_instance_uid, series.series_instance_uid)
    opened.filter(study=None).update(study=study)
    for difference in opened.filter(is_told=True).select_related("node"):
        fewer = difference.found < difference.believed
        if difference.kind == Kind.IDENTITY:
            if difference.told and not disagreements(study, difference.told):
                _mend([difference], Resolution.TOLD_AGAIN)
        elif difference.node.kind == Node.Kind.ARCHIVE and not is_safe:
            if ask:
                prove_again(study, series, difference.node)
        elif difference.node.kind == Node.Kind.ARCHIVE and fewer:
            _mend([difference], Resolution.PROVED_AGAIN)
        elif not fewer:
            _mend([difference], Resolution.TOLD_AGAIN)
        elif is_whole:
            _mend([difference], Resolution.ELSEWHERE)


def open_differences_of(series: Series) -> bool:
    """Whether anything about this series is not mended."""
    return _open_of(None, series.study.study_instance_uid, series.series_instance_uid).exists()


def prove_again(study: Study, series: Series, archive: Node) -> int:
    """Have every other holder of a series deliver it to the archive again; how many were asked."""
    command = ProveAgain(
        study_instance_uid=study.study_instance_uid,
        patient_id=study.dicom_patient_id,
        series_instance_uid=series.series_instance_uid,
        destination=archive.name,
    )
    asked = 0
    for node in Node.objects.filter(pk__in=series.holders.filter(count__gt=0).values("node"), revoked_at=None).exclude(
        kind=Node.Kind.ARCHIVE
    ):
        waiting = Command.objects.filter(node=node, type=command.type, seq=None, body=command.model_dump(mode="json"))
        if not waiting.exists():
            send_command(node, command)
        asked += 1
    return asked


@transaction.atomic
def compare_now(node: Node, request: HttpRequest) -> None:
    """Ask a node to begin a round at once."""
    if not Command.objects.filter(node=node, type="holdings.tell", seq=None).exists():
        send_command(node, TellHoldings())
    record("holdings.asked", request=request, entity=node)


@transaction.atomic
def ask_again(difference: Difference, request: HttpRequest) -> None:
    """Have the node tell the series again, and where the archive lost something, whoever holds it deliver it again."""
    locked = _locked(difference)
    if locked.node.kind == Node.Kind.ARCHIVE and locked.study is not None:
        series = locked.study.series.filter(series_instance_uid=locked.series_instance_uid).first()
        if series is not None:
            prove_again(locked.study, series, locked.node)
    compare_now(locked.node, request)


@transaction.atomic
def accept(difference: Difference, request: HttpRequest) -> None:
    """A person has seen a difference that cannot be mended, and lets it be."""
    locked = _locked(difference)
    _mend([locked], Resolution.ACCEPTED)
    record(
        "holdings.accepted",
        request=request,
        entity=locked.study or locked.node,
        detail={"series": locked.series_instance_uid, "kind": locked.kind, "node": locked.node.name},
    )


@transaction.atomic
def take_over(difference: Difference, request: HttpRequest) -> None:
    """Take over the study's data as the node has them. Who the patient is stays for the patient page to decide."""
    locked = _locked(difference)
    study = locked.study
    if study is None or not locked.told:
        raise ConflictError("difference-settled", "There is nothing to take over.")
    changed = disagreements(study, locked.told)
    for name, (_, theirs) in changed.items():
        setattr(study, name, theirs)
    offset = str(locked.told["study"].get("timezone_offset_from_utc", ""))
    study.started_at = started_at(study.study_date, study.study_time, offset, study.site.time_zone)
    study.save(update_fields=[*changed, "started_at"])
    _mend([locked], Resolution.TAKEN_OVER)
    record(
        "holdings.taken-over",
        request=request,
        entity=study,
        patient_key=study.patient_id,
        detail={"fields": sorted(changed), "node": locked.node.name},
    )
    announce_changed(study)


def disagreements(study: Study, told: dict[str, dict[str, str]]) -> dict[str, tuple[str, str]]:
    """Field of the study → ours and the node's value, where a value of the node differs from ours."""
    theirs = study_values(StudyDescription.model_validate(told["study"]))
    found = {name: (str(getattr(study, name)), value) for name, value in theirs.items() if value}
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def _locked(difference: Difference) -> Difference:
    locked = (
        Difference.objects.select_for_update(of=("self",))
        .select_related("study__site", "node")
        .filter(pk=difference.pk, mended_at=None)
        .first()
    )
    if locked is None:
        raise ConflictError("difference-settled", "Somebody settled it meanwhile.")
    return locked


def _open_of(node: Node | None, study_instance_uid: str, series_instance_uid: str) -> QuerySet[Difference]:
    found = Difference.objects.filter(
        study_instance_uid=study_instance_uid, series_instance_uid=series_instance_uid, mended_at=None
    )
    return found.filter(node=node) if node is not None else found


def _mend(differences: Iterable[Difference], resolution: str) -> None:
    keys = [difference.pk for difference in differences]
    Difference.objects.filter(pk__in=keys).update(mended_at=timezone.now(), resolution=resolution)
