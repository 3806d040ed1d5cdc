"""Events of nodes become studies, series, instances and holders. Each is applied in bulk and may be applied again."""

from collections import Counter
from datetime import datetime

from django.db import transaction

from gateway.envelope import (
    DeliveryProgress,
    Event,
    ForeignStudySeen,
    InstanceConflicted,
    SeriesChanged,
    SeriesReleased,
    StudyDescription,
)
from ris_central.catalogue.actions.announcing import announce_changed
from ris_central.catalogue.actions.counts import recount
from ris_central.catalogue.actions.growing import Told, grow, look
from ris_central.catalogue.actions.manifests import rehydrate
from ris_central.catalogue.actions.reconciling import judge, note_identity, open_differences_of
from ris_central.catalogue.actions.studies import known_study, lock_studies, lock_study, study_values
from ris_central.catalogue.models import (
    DeliveryState,
    InstanceHolding,
    Manifest,
    ParkedEvent,
    Series,
    SeriesHolder,
    Study,
    StudyConflict,
)
from ris_central.catalogue.times import started_at
from ris_central.federation.models import Node
from ris_central.orders.actions import step_in_progress
from ris_central.orders.models import ServiceRequest
from ris_central.organizations.models import Site
from ris_central.patients.actions import resolve
from ris_central.patients.models import Patient


def take_series_changed(node: Node, event: Event) -> None:
    """Instances arrived at a node."""
    take_series_changes(node, [event])


@transaction.atomic(savepoint=False)
def take_series_changes(node: Node, events: list[Event]) -> None:
    """Instances of any number of series arrived at a node; in about as many queries as those of one."""
    told = [(event.body, event.occurred_at) for event in events if isinstance(event.body, SeriesChanged)]
    if len(told) != len(events):
        raise TypeError(f"series.changed expected, {[event.body.type for event in events]} given")
    known = lock_studies({body.study.study_instance_uid for body, _ in told})
    growing, others = [], []
    for body, at in told:
        study = known.get((body.study.study_instance_uid, body.patient.patient_id))
        if study is None:
            others.append((body, at))
        else:
            growing.append(Told(study, body, at))
    plain = _plain_of(node, growing)
    if plain:
        grow(node, plain)
    others += [(one.body, one.occurred_at) for one in growing if one not in plain]
    changed = {one.study.pk: one.study for one in plain}
    for one in plain:
        if one.study.service_request is not None and node.kind != Node.Kind.ARCHIVE:
            step_in_progress(one.study.service_request, one.body.series.modality)
    for body, at in others:
        study = _take_thoughtfully(node, body, at)
        if study is not None:
            changed[study.pk] = study
    announce_changed(*changed.values())


def _plain_of(node: Node, growing: list[Told]) -> list[Told]:
    """Those that ``grow`` may take: nothing else is told of their study, and of each series once."""
    if not growing:
        return []
    alone = Counter((one.study.pk, one.body.series.series_instance_uid) for one in growing)
    thoughtful = {
        one.study.pk
        for one, is_plain in zip(growing, look(node, growing), strict=True)
        if not is_plain or alone[one.study.pk, one.body.series.series_instance_uid] > 1
    }
    return [one for one in growing if one.study.pk not in thoughtful]


def _take_thoughtfully(node: Node, body: SeriesChanged, occurred_at: datetime) -> Study | None:
    """Take what may make or move a study, or differs from what is known; None when it waits for a clinic's word."""
    if node.kind == Node.Kind.ARCHIVE:
        study = known_study(body.study.study_instance_uid, body.patient.patient_id)
        if study is None:
            ParkedEvent.objects.create(
                node=node,
                study_instance_uid=body.study.study_instance_uid,
                patient_id=body.patient.patient_id,
                body=body.model_dump(mode="json"),
                occurred_at=occurred_at,
            )
            return None
        _apply(study, node, body, occurred_at)
    else:
        study = study_of_clinic(node, body, occurred_at)
        _apply(study, node, body, occurred_at)
        _apply_parked(study)
    return study


@transaction.atomic
def adopt_parked(parked: ParkedEvent) -> None:
    """Take in a study that was sent to the archive directly: no clinic announced it, so it is the archive's own."""
    lock_study(parked.study_instance_uid)
    body = SeriesChanged.model_validate(parked.body)
    study = known_study(parked.study_instance_uid, parked.patient_id) or study_of_clinic(
        parked.node, body, parked.occurred_at
    )
    _apply_parked(study)
    announce_changed(study)


@transaction.atomic
def take_series_released(node: Node, event: Event) -> None:
    """A node no longer holds some instances."""
    body = event.body
    if not isinstance(body, SeriesReleased):
        raise TypeError(f"series.released expected, {body.type} given")
    lock_study(body.study_instance_uid)
    study = known_study(body.study_instance_uid, body.patient_id)
    if study is None:
        return
    series = study.series.filter(series_instance_uid=body.series_instance_uid).first()
    if series is None:
        return
    InstanceHolding.objects.filter(
        node=node,
        instance__series=series,
        instance__sop_instance_uid__in=[uid for uid, _ in body.released],
        instance__dataset_sha256__in=[digest for _, digest in body.released],
    ).delete()
    SeriesHolder.objects.update_or_create(
        series=series, node=node, defaults={"count": body.count, "root_hash": body.root_hash}
    )
    recount(study, [series])
    announce_changed(study)


def take_delivery_progress(node: Node, event: Event) -> None:
    """How far a node's ledger is. Shown to people; what is safe is decided by the archive's own announcements."""
    take_deliveries_progress(node, [event])


@transaction.atomic(savepoint=False)
def take_deliveries_progress(node: Node, events: list[Event]) -> None:
    """How far a node's ledger is with several deliveries; the last word on each counts."""
    latest = {}
    for event in events:
        if not isinstance(event.body, DeliveryProgress):
            raise TypeError(f"delivery.progress expected, {event.body.type} given")
        latest[event.body.study_instance_uid, event.body.destination] = event.body
    studies = list(Study.objects.filter(study_instance_uid__in={uid for uid, _ in latest}).order_by("id"))
    rows = [
        DeliveryState(
            study=study,
            node=node,
            destination=body.destination,
            total=body.total,
            receipted=body.receipted,
            failed=body.failed,
            last_error=body.last_error,
            told=body.model_dump(mode="json"),
        )
        for study in studies
        for (uid, _), body in latest.items()
        if uid == study.study_instance_uid
    ]
    DeliveryState.objects.bulk_create(
        rows,
        update_conflicts=True,
        unique_fields=["study", "node", "destination"],
        update_fields=["total", "receipted", "failed", "last_error", "told", "updated_at"],
    )
    announce_changed(*studies)


@transaction.atomic
def take_instance_conflicted(node: Node, event: Event) -> None:
    """A used SOP Instance UID came with other content; both were kept."""
    body = event.body
    if not isinstance(body, InstanceConflicted):
        raise TypeError(f"instance.conflicted expected, {body.type} given")
    StudyConflict.objects.get_or_create(
        node=node,
        sop_instance_uid=body.sop_instance_uid,
        variant_sha256=body.variant_sha256,
        defaults={
            "study_instance_uid": body.study_instance_uid,
            "kept_sha256": body.kept_sha256,
            "source_ae_title": body.source_ae_title[:16],
        },
    )


def study_of_clinic(node: Node, body: SeriesChanged | ForeignStudySeen, occurred_at: datetime) -> Study:
    """The study that a clinic's node means; made, or moved to the clinic, where need be."""
    site = node.site
    issuer = body.patient.issuer_of_patient_id or site.issuer_of_patient_id
    patient = resolve(body.patient, issuer, site)
    values = _study_values(body.study, site)
    study = Study.objects.select_for_update().filter(
        study_instance_uid=body.study.study_instance_uid, patient=patient
    ).first() or _adopted_by_archive(node, body)
    if study is None:
        study = Study(
            study_instance_uid=body.study.study_instance_uid,
            patient=patient,
            site=site,
            last_instance_at=occurred_at,
            dicom_patient_id=body.patient.patient_id,
            issuer_of_patient_id=issuer,
            service_request=_order_of(body.study, patient),
            **values,
        )
        study.save()
        return study
    if study.site.kind == Site.Kind.CENTRE and node.kind != Node.Kind.ARCHIVE:
        study.site, study.patient, study.issuer_of_patient_id = site, patient, issuer
    for name, value in values.items():
        if value and not getattr(study, name):
            setattr(study, name, value)
    study.service_request = study.service_request or _order_of(body.study, patient)
    study.save()
    return study


def _adopted_by_archive(node: Node, body: SeriesChanged | ForeignStudySeen) -> Study | None:
    """The archive may have been quicker than the clinic's own word; the study then moves to the clinic."""
    if node.kind == Node.Kind.ARCHIVE:
        return None
    study = known_study(body.study.study_instance_uid, body.patient.patient_id)
    return study if study is not None and study.site.kind == Site.Kind.CENTRE else None


def _study_values(description: StudyDescription, site: Site) -> dict[str, object]:
    began = started_at(
        description.study_date, description.study_time, description.timezone_offset_from_utc, site.time_zone
    )
    return {**study_values(description), "started_at": began}


def _order_of(description: StudyDescription, patient: Patient) -> ServiceRequest | None:
    """The order that was made for this study: by its Study UID, else by accession number; of the same patient only."""
    orders = ServiceRequest.objects.filter(patient=patient)
    found = orders.filter(study_instance_uid=description.study_instance_uid).first()
    if found is None and description.accession_number:
        found = orders.filter(accession_number=description.accession_number).first()
    return found


def _apply(study: Study, node: Node, body: SeriesChanged, occurred_at: datetime) -> None:
    described = body.series
    series, created = Series.objects.get_or_create(
        study=study,
        series_instance_uid=described.series_instance_uid,
        defaults={
            "modality": described.modality,
            "series_number": described.series_number,
            "series_description": described.series_description[:256],
            "series_date": described.series_date,
            "series_time": described.series_time,
            "body_part_examined": described.body_part_examined,
            "station_name": described.station_name,
        },
    )
    differs = not created and open_differences_of(series)
    if differs:
        note_identity(node, series, body)
    if not created and _is_settled(series, node, body):
        return
    if not created:
        rehydrate(series)
    grow(node, [Told(study, body, occurred_at, series.pk)])
    if not created:
        recount(study, [series])
    if differs and node.kind == Node.Kind.ARCHIVE:
        judge(study, series, ask=False)
    if study.service_request is not None and node.kind != Node.Kind.ARCHIVE:
        step_in_progress(study.service_request, described.modality)


def _is_settled(series: Series, node: Node, body: SeriesChanged) -> bool:
    """Whether the series is a manifest already, of which the node says that it still holds the same.

    Count and root hash alone do not tell: they are of all the node held when the event was numbered, which may be more
    than this event and those before it have listed.
    """
    if series.instances.exists() or not Manifest.objects.filter(series=series).exists():
        return False
    return SeriesHolder.objects.filter(series=series, node=node, count=body.count, root_hash=body.root_hash).exists()


def _apply_parked(study: Study) -> None:
    parked = ParkedEvent.objects.select_related("node__site").filter(
        study_instance_uid=study.study_instance_uid, patient_id=study.dicom_patient_id
    )
    for event in parked.order_by("id"):
        _apply(study, event.node, SeriesChanged.model_validate(event.body), event.occurred_at)
        event.delete()
