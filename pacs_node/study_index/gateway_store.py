"""The node's storage and index as the gateway sees them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO

from django.db.models import Q, QuerySet, Sum

from gateway.envelope import (
    HeldSeries,
    InstanceDescription,
    PatientIdentity,
    SeriesDescription,
    SeriesKey,
    StudyDescription,
)
from gateway.envelope.holdings import identity_sha256
from gateway.protocols import HeldInstance, InstanceOrigin
from pacs_node.storage.models import Holding
from pacs_node.storage.stores import storage
from pacs_node.study_index import actions
from pacs_node.study_index.copies import open_received, recompression_of
from pacs_node.study_index.models import Instance, Series, Study
from standards.digests import Digests, root_hash
from standards.errors import PermanentError

_BATCH = 500


@dataclass(frozen=True)
class DescribedSeries:
    """A series as the index holds it now; variants count, released instances do not."""

    patient: PatientIdentity
    study: StudyDescription
    series: SeriesDescription
    count: int
    root_hash: str


def describe_patient(study: Study) -> PatientIdentity:
    """Who the study is of."""
    return PatientIdentity(
        patient_id=study.patient_id,
        issuer_of_patient_id=study.issuer_of_patient_id,
        patient_name=study.patient_name,
        patient_birth_date=study.patient_birth_date,
        patient_sex=study.patient_sex,
    )


def describe_study(study: Study) -> StudyDescription:
    """The study's own attributes."""
    return StudyDescription(
        study_instance_uid=study.study_instance_uid,
        study_date=study.study_date,
        study_time=study.study_time,
        timezone_offset_from_utc=study.timezone_offset_from_utc,
        accession_number=study.accession_number,
        study_id=study.study_id,
        study_description=study.study_description,
        referring_physician_name=study.referring_physician_name,
        institution_name=study.institution_name,
    )


def describe_instance(instance: Instance) -> InstanceDescription:
    """One stored instance as it was received, whatever encoding it lies in now."""
    recompressed = recompression_of(instance)
    return InstanceDescription(
        sop_instance_uid=instance.sop_instance_uid,
        sop_class_uid=instance.sop_class_uid,
        transfer_syntax_uid=(
            recompressed.original_transfer_syntax_uid if recompressed else instance.transfer_syntax_uid
        ),
        dataset_sha256=instance.dataset_sha256,
        pixel_sha256=instance.pixel_sha256,
        frames_sha256=instance.frames_sha256,
        size=recompressed.original_size if recompressed else instance.size,
        instance_number=instance.instance_number,
        number_of_frames=instance.number_of_frames,
    )


def _held() -> QuerySet[Instance]:
    """What this node holds on a storage of its own; what only a peer still has is served, but not held."""
    lost_to_peers = Q(holding__away_at__isnull=False, holding__institution_verified_at=None)
    return _kept().exclude(lost_to_peers)


def _kept() -> QuerySet[Instance]:
    """What this node answers for, be it by fetching it back."""
    return Instance.objects.filter(released_at__isnull=True)


class IndexedStore:
    """``gateway.protocols.InstanceStore`` over the study index and the storage."""

    def describe_series(self, series_key: int) -> DescribedSeries | None:
        """The series with all it holds now, or None when the index lost it."""
        series = Series.objects.select_related("study").filter(pk=series_key).first()
        if series is None:
            return None
        held = list(_held().filter(series=series).values_list("sop_instance_uid", "dataset_sha256"))
        newest = (
            Instance.objects.filter(series=series).order_by("-pk").values_list("source_ae_title", flat=True).first()
        )
        return DescribedSeries(
            patient=describe_patient(series.study),
            study=describe_study(series.study),
            series=SeriesDescription(
                series_instance_uid=series.series_instance_uid,
                modality=series.modality,
                series_number=series.series_number,
                series_description=series.series_description,
                series_date=series.series_date,
                series_time=series.series_time,
                body_part_examined=series.body_part_examined,
                station_name=series.station_name,
                source_ae_title=newest or "",
            ),
            count=len(held),
            root_hash=root_hash(held),
        )

    def describe_instances(self, instance_keys: Iterable[int]) -> list[InstanceDescription]:
        """Descriptions, in the order of the keys; keys that are gone are left out."""
        keys = list(instance_keys)
        found: dict[int, Instance] = {}
        for start in range(0, len(keys), _BATCH):
            found.update(Instance.objects.select_related("recompression").in_bulk(keys[start : start + _BATCH]))
        return [describe_instance(found[key]) for key in keys if key in found]

    def instances_after(self, instance_key: int, limit: int) -> list[HeldInstance]:
        """Up to ``limit`` instances held with a key above ``instance_key``, in rising key order."""
        rows = (
            _held()
            .filter(pk__gt=instance_key)
            .order_by("pk")
            .values_list("pk", "series_id", "series__study__study_instance_uid", "sop_instance_uid", "dataset_sha256")
        )
        return [HeldInstance(*row) for row in rows[:limit]]

    def series_after(self, series_key: int, limit: int) -> list[tuple[int, SeriesKey]]:
        """Up to ``limit`` series with a key above ``series_key``, in rising key order, and their names."""
        rows = Series.objects.filter(pk__gt=series_key).order_by("pk")
        named = rows.values_list("pk", "study__study_instance_uid", "study__patient_id", "series_instance_uid")
        return [(key, SeriesKey(*name)) for key, *name in named[:limit]]

    def summarize(self, series_keys: list[int]) -> list[HeldSeries]:
        """What is held of these series now; those of which nothing is held are left out."""
        entries: dict[int, list[tuple[str, str]]] = {}
        held = _held().filter(series__in=series_keys)
        for key, uid, digest in held.values_list("series_id", "sop_instance_uid", "dataset_sha256"):
            entries.setdefault(key, []).append((uid, digest))
        return [
            HeldSeries(
                study_instance_uid=series.study.study_instance_uid,
                patient_id=series.study.patient_id,
                series_instance_uid=series.series_instance_uid,
                count=len(entries[series.pk]),
                root_hash=root_hash(entries[series.pk]),
                identity=identity_sha256(
                    describe_patient(series.study).model_dump(), describe_study(series.study).model_dump()
                ),
            )
            for series in Series.objects.select_related("study").filter(pk__in=list(entries)).order_by("pk")
        ]

    def instances_of_series(self, series: SeriesKey) -> list[HeldInstance]:
        """All instances held of a series; none when the index never had it."""
        rows = (
            _held()
            .filter(
                series__series_instance_uid=series.series_instance_uid,
                series__study__study_instance_uid=series.study_instance_uid,
                series__study__patient_id=series.patient_id,
            )
            .order_by("pk")
            .values_list("pk", "series_id", "series__study__study_instance_uid", "sop_instance_uid", "dataset_sha256")
        )
        return [HeldInstance(*row) for row in rows]

    def open(self, instance_key: int) -> BinaryIO:
        """The Part 10 file as it was received, made again if it is recompressed.

        Raises: PermanentError("instance-gone"), TransientError("recall-failed").
        """
        instance = _kept().filter(pk=instance_key).first()
        if instance is None:
            raise PermanentError("instance-gone", f"instance {instance_key} is not held here")
        return open_received(instance)

    def find(self, sop_instance_uid: str, dataset_sha256: str) -> int | None:
        """The key of the instance with this content, if it is held here."""
        chosen = _kept().filter(sop_instance_uid=sop_instance_uid, dataset_sha256=dataset_sha256)
        return chosen.values_list("pk", flat=True).first()

    def ensure_frames_digest(self, instance_key: int) -> str | None:
        """The canonical frames digest, computed and kept on first call; None where it does not apply."""
        return actions.ensure_digests(instance_key).frames_sha256

    def receive(self, stream: BinaryIO, *, source: str, sop_instance_uid: str, found: Digests) -> tuple[int, str]:
        """Take one Part 10 file in: durable, indexed, exactly once; see ``actions.ingest`` for what it raises."""
        taken = actions.ingest(stream, source_ae_title=source, expected_sop_instance=sop_instance_uid)
        actions.keep_digests(taken.instance_key, found)
        return taken.instance_key, taken.outcome

    def release(self, instance_keys: Iterable[int]) -> None:
        """Let go of the files of these instances; journalled, the index keeps that they were here."""
        keys = list(instance_keys)
        for start in range(0, len(keys), _BATCH):
            chosen = Instance.objects.select_related("series__study").filter(pk__in=keys[start : start + _BATCH])
            actions.release(list(chosen))

    def instance_keys_of_study(self, study_instance_uid: str) -> list[int]:
        """All instances held of a study."""
        chosen = _held().filter(series__study__study_instance_uid=study_instance_uid)
        return list(chosen.order_by("series_id", "instance_number", "pk").values_list("pk", flat=True))

    def received_of_study(self, study_instance_uid: str) -> set[str]:
        """SOP Instance UIDs of all that ever came of a study, what was released since included."""
        chosen = Instance.objects.filter(series__study__study_instance_uid=study_instance_uid)
        return set(chosen.values_list("sop_instance_uid", flat=True))

    def held(self) -> tuple[int, int]:
        """``(instances stored but for variants, free bytes on the storage)``."""
        # Told every few seconds: series know how many they hold, and few rows say what is with a peer alone.
        counted = Series.objects.aggregate(held=Sum("instances_count"))["held"] or 0
        at_peers = Holding.objects.filter(
            away_at__isnull=False, institution_verified_at=None, instance__released_at=None, instance__is_variant=False
        )
        return counted - at_peers.count(), storage().free_bytes()

    def origins(self, instance_keys: Iterable[int]) -> dict[int, InstanceOrigin]:
        """What rules of the mirror look at, by key; keys that are gone are left out."""
        keys, found = list(instance_keys), dict[int, InstanceOrigin]()
        for start in range(0, len(keys), _BATCH):
            rows = Instance.objects.filter(pk__in=keys[start : start + _BATCH]).values_list(
                "pk", "series__modality", "source_ae_title", "size", "recompression__original_size"
            )
            for key, modality, source, size, original_size in rows:
                found[key] = InstanceOrigin(modality, source, original_size or size)
        return found

    def check_room(self, size: int) -> None:
        """Whether ``size`` bytes more may be taken in. Raises: TransientError("storage-full")."""
        storage().check_space(size)
