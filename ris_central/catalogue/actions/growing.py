"""What nodes tell again and again while images arrive, of many series at once: a fixed number of statements.

Most of what a centre hears is that a series it knows has grown. ``look`` tells such events from those that need more
thought (``arrivals``), and ``grow`` takes all of them by one statement. Counts are changed by what really was new, so
that it costs no more in a large series than in a small one; where rows of before change, ``counts.recount`` counts.
Rows are looked up one by one through their indexes (LATERAL … LIMIT 1): the plans are kept while the tables grow.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from gateway.envelope import SeriesChanged
from gateway.envelope.holdings import identity_sha256
from ris_central.catalogue.actions.studies import study_values
from ris_central.catalogue.models import Study
from ris_central.catalogue.times import started_at
from ris_central.federation.models import Node
from ris_central.federation.prepared import execute
from ris_central.patients.actions import birth_date_of

_LOOK: Final = """
SELECT told.n,
  s.id,
  s.id IS NOT NULL AND NOT EXISTS (SELECT FROM catalogue_seriesinstance i WHERE i.series_id = s.id)
  OR EXISTS (SELECT FROM catalogue_difference d WHERE d.study_instance_uid = told.uid
             AND d.series_instance_uid = told.series AND d.mended_at IS NULL)
  OR %(clinic)s AND NOT (
    (told.born IS NULL
      OR EXISTS (SELECT FROM patients_patient q WHERE q.id = t.patient_id AND q.birth_date IS NOT NULL))
    AND NOT EXISTS (SELECT FROM organizations_site c WHERE c.id = t.site_id AND c.kind = 'centre')
    AND EXISTS (SELECT FROM patients_patientidentifier p
            WHERE p.issuer = told.issuer AND p.value = told.value AND p.patient_id = t.patient_id)
    AND EXISTS (SELECT FROM patients_siteregistration r WHERE r.patient_id = t.patient_id AND r.site_id = %(site)s)
    AND NOT EXISTS (SELECT FROM catalogue_parkedevent k
                    WHERE k.study_instance_uid = told.uid AND k.patient_id = t.dicom_patient_id)
    AND (t.service_request_id IS NOT NULL OR NOT EXISTS (
      SELECT FROM orders_servicerequest o WHERE o.patient_id = t.patient_id AND (o.study_instance_uid = told.uid
        OR told.accession <> '' AND o.accession_number = told.accession))))
FROM json_to_recordset(%(told)s)
  AS told(n int, study bigint, uid text, series text, issuer text, value text, accession text, born date)
CROSS JOIN LATERAL (SELECT * FROM catalogue_study WHERE id = told.study LIMIT 1) t
LEFT JOIN LATERAL (
  SELECT id FROM catalogue_series WHERE study_id = t.id AND series_instance_uid = told.series LIMIT 1) s ON true
"""
_NEW_SERIES: Final = """
INSERT INTO catalogue_series (study_id, series_instance_uid, modality, series_number, series_description, series_date,
  series_time, body_part_examined, station_name, instance_count, instances_safe)
SELECT told.*, 0, 0 FROM json_to_recordset(%(series)s) AS told(study bigint, series_instance_uid text, modality text,
  series_number int, series_description text, series_date text, series_time text, body_part_examined text,
  station_name text)
RETURNING study_id, series_instance_uid, id
"""
_GROW: Final = """
WITH told AS (
  SELECT * FROM json_to_recordset(%(series)s) AS told(study bigint, series bigint, count int, root_hash text,
    identity text, modality text, at timestamptz)
), come AS (
  SELECT * FROM json_to_recordset(%(instances)s) AS come(series bigint, sop_instance_uid text, sop_class_uid text,
    transfer_syntax_uid text, dataset_sha256 text, pixel_sha256 text, frames_sha256 text, instance_number int,
    number_of_frames int, size bigint)
), there AS (
  SELECT i.id, i.series_id FROM come c CROSS JOIN LATERAL (
    SELECT id, series_id FROM catalogue_seriesinstance WHERE series_id = c.series
      AND sop_instance_uid = c.sop_instance_uid AND dataset_sha256 = c.dataset_sha256 LIMIT 1) i
), put AS (
  INSERT INTO catalogue_seriesinstance (series_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, dataset_sha256,
    pixel_sha256, frames_sha256, instance_number, number_of_frames, size)
  SELECT series, sop_instance_uid, sop_class_uid, transfer_syntax_uid, dataset_sha256, coalesce(pixel_sha256, ''),
    coalesce(frames_sha256, ''), instance_number, number_of_frames, size
  FROM come ON CONFLICT DO NOTHING RETURNING id, series_id
), named AS (
  SELECT id, series_id, 1 AS new FROM put UNION SELECT id, series_id, 0 FROM there
), held AS (
  INSERT INTO catalogue_instanceholding (instance_id, node_id) SELECT id, %(node)s FROM named
  ON CONFLICT DO NOTHING RETURNING instance_id
), gained AS (
  SELECT series_id, sum(new) AS known, count(*) FILTER (WHERE %(archive)s AND h.instance_id IS NOT NULL AND NOT EXISTS (
    SELECT FROM catalogue_instanceholding o JOIN federation_node n ON n.id = o.node_id
    WHERE o.instance_id = named.id AND n.kind = 'archive')) AS safe
  FROM named LEFT JOIN held h ON h.instance_id = named.id GROUP BY series_id
), holder AS (
  INSERT INTO catalogue_seriesholder (series_id, node_id, count, root_hash, identity, updated_at)
  SELECT series, %(node)s, count, root_hash, identity, statement_timestamp() FROM told
  ON CONFLICT (series_id, node_id) DO UPDATE SET count = excluded.count, root_hash = excluded.root_hash,
    identity = excluded.identity, updated_at = excluded.updated_at
), series AS (
  UPDATE catalogue_series s SET instance_count = s.instance_count + g.known, instances_safe = s.instances_safe + g.safe
  FROM gained g WHERE s.id = g.series_id AND s.id = ANY(ARRAY(SELECT series FROM told))
), per_study AS (
  SELECT told.study, coalesce(sum(g.known), 0) AS known, coalesce(sum(g.safe), 0) AS safe,
    max(least(told.at, statement_timestamp())) FILTER (WHERE g.known > 0) AS latest,
    coalesce(array_agg(told.modality) FILTER (WHERE told.modality <> ''), '{}')::varchar(16)[] AS modalities
  FROM told LEFT JOIN gained g ON g.series_id = told.series GROUP BY told.study
)
UPDATE catalogue_study t SET instances_known = t.instances_known + p.known, instances_safe = t.instances_safe + p.safe,
  last_instance_at = greatest(t.last_instance_at, p.latest),
  complete_at = CASE WHEN p.known > 0 AND NOT %(archive)s THEN NULL ELSE t.complete_at END,
  modalities = CASE WHEN p.modalities <@ t.modalities THEN t.modalities ELSE ARRAY(
    SELECT DISTINCT m COLLATE "C" FROM unnest(t.modalities || p.modalities) m ORDER BY 1) END
FROM per_study p WHERE t.id = p.study AND t.id = ANY(ARRAY(SELECT study FROM told))
RETURNING t.id, t.instances_known, t.instances_safe, t.last_instance_at, t.complete_at, t.modalities
"""


@dataclass(eq=False)
class Told:
    """What a node told of a series of a study that is known and locked. ``series``: its key, None until it has one."""

    study: Study
    body: SeriesChanged
    occurred_at: datetime
    series: int | None = None


def look(node: Node, told: list[Told]) -> list[bool]:
    """Whether each of them says no more than that a series is new or has grown; sets the keys of known series."""
    asked = [
        {
            "n": number,
            "study": one.study.pk,
            "uid": one.body.study.study_instance_uid,
            "series": one.body.series.series_instance_uid,
            "issuer": (one.body.patient.issuer_of_patient_id or node.site.issuer_of_patient_id).strip()[:64],
            "value": one.body.patient.patient_id.strip()[:64],
            "accession": one.body.study.accession_number,
            "born": birth_date_of(one.body.patient.patient_birth_date),
        }
        for number, one in enumerate(told)
    ]
    is_clinic = node.kind != Node.Kind.ARCHIVE
    plain = [not is_clinic or _says_nothing_new(node, one) for one in told]
    values = {"told": json.dumps(asked, default=str), "clinic": is_clinic, "site": node.site_id}
    for number, series, needs_more in execute(_LOOK, values):
        told[number].series = series
        plain[number] = plain[number] and not needs_more
    return plain


def _says_nothing_new(node: Node, told: Told) -> bool:
    """Whether a clinic tells nothing of the study that is not known yet."""
    study, body = told.study, told.body
    if not body.patient.patient_id.strip():
        return False
    if any(value and not getattr(study, name) for name, value in study_values(body.study).items()):
        return False
    described = body.study
    return study.started_at is not None or not started_at(
        described.study_date, described.study_time, described.timezone_offset_from_utc, node.site.time_zone
    )


def grow(node: Node, told: list[Told]) -> None:
    """Add what came to its series, all at once; no series twice. The studies are changed as their rows are.

    A series without a key is made. One that is a manifest must have been made rows of again.
    """
    _make_series([one for one in told if one.series is None])
    series = [
        {
            "study": one.study.pk,
            "series": one.series,
            "count": one.body.count,
            "root_hash": one.body.root_hash,
            "identity": identity_sha256(dict(one.body.patient), dict(one.body.study)),
            "modality": one.body.series.modality,
            "at": one.occurred_at.isoformat(),
        }
        for one in told
    ]
    instances = [{**vars(added), "series": one.series} for one in told for added in one.body.added]
    values = {
        "series": json.dumps(series),
        "instances": json.dumps(instances),
        "node": node.pk,
        "archive": node.kind == Node.Kind.ARCHIVE,
    }
    rows = {row[0]: row[1:] for row in execute(_GROW, values)}
    for study in {id(one.study): one.study for one in told}.values():
        (
            study.instances_known,
            study.instances_safe,
            study.last_instance_at,
            study.complete_at,
            study.modalities,
        ) = rows[study.pk]


def _make_series(told: Iterable[Told]) -> None:
    fresh = [
        {
            "study": one.study.pk,
            **vars(one.body.series),
            "series_description": one.body.series.series_description[:256],
        }
        for one in told
    ]
    if not fresh:
        return
    rows = execute(_NEW_SERIES, {"series": json.dumps(fresh)})
    keys = {(study, uid): key for study, uid, key in rows}
    for one in told:
        if one.series is None:
            one.series = keys[one.study.pk, one.body.series.series_instance_uid]
