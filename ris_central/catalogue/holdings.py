"""What the centre believes that a node holds, in terms of ``gateway.envelope.holdings``: added up by the database.

A series that is still made of rows counts by its rows; one that is a manifest by its holder. Where both are gone,
nothing is believed: the series differs, and is told again.
"""

from dataclasses import dataclass

from django.db import connection

from gateway.envelope import SeriesKey
from gateway.envelope.holdings import BUCKETS
from ris_central.federation.models import Node

_BELIEVED = f"""
WITH opened AS (
  SELECT i.series_id, count(h.id) AS count,
         encode(sha256(convert_to(coalesce(string_agg(i.sop_instance_uid || ' ' || i.dataset_sha256 || chr(10), ''
           ORDER BY i.sop_instance_uid COLLATE "C", i.dataset_sha256 COLLATE "C") FILTER (WHERE h.id IS NOT NULL), ''),
           'UTF8')), 'hex') AS root_hash
  FROM catalogue_seriesinstance i
  LEFT JOIN catalogue_instanceholding h ON h.instance_id = i.id AND h.node_id = %(node)s
  GROUP BY i.series_id
), believed AS (
  SELECT t.study_instance_uid AS study, t.dicom_patient_id AS patient, s.series_instance_uid AS series,
         CASE WHEN o.series_id IS NULL THEN x.count ELSE o.count END AS count,
         CASE WHEN o.series_id IS NOT NULL THEN o.root_hash
              WHEN EXISTS (SELECT 1 FROM catalogue_manifest m WHERE m.series_id = s.id) THEN x.root_hash
              ELSE '' END AS root_hash,
         x.identity AS identity, x.id AS holder
  FROM catalogue_seriesholder x
  JOIN catalogue_series s ON s.id = x.series_id
  JOIN catalogue_study t ON t.id = s.study_id
  LEFT JOIN opened o ON o.series_id = s.id
  WHERE x.node_id = %(node)s
), keyed AS (
  SELECT *, sha256(convert_to(concat_ws(chr(31), study, patient, series), 'UTF8')) AS key FROM believed WHERE count > 0
), placed AS (
  SELECT *, (get_byte(key, 0) * 256 + get_byte(key, 1)) %% {BUCKETS} AS bucket FROM keyed
)
"""  # noqa: S608  a number of our own
_SUMS = """
SELECT bucket, count(*), bit_xor(('x' || left(encode(sha256(convert_to(
  concat_ws(chr(31), study, patient, series, count::text, root_hash, identity), 'UTF8')), 'hex'), 16))::bit(64)::bigint)
FROM placed GROUP BY bucket
"""
_SERIES = "SELECT study, patient, series, count, root_hash, identity, holder FROM placed WHERE bucket = ANY(%(opened)s)"


@dataclass(frozen=True)
class Believed:
    """What the centre believes of a series at a node."""

    count: int
    root_hash: str
    identity: str
    holder: int
    """Key of the ``SeriesHolder``."""


def believed_sums(node: Node) -> dict[int, tuple[int, str]]:
    """Bucket → number of series and what their lines add up to, of the buckets that are not empty."""
    with connection.cursor() as cursor:
        cursor.execute(_BELIEVED + _SUMS, {"node": node.pk})
        return {bucket: (count, f"{total % (1 << 64):016x}") for bucket, count, total in cursor.fetchall()}


def believed_series(node: Node, opened: list[int]) -> dict[SeriesKey, Believed]:
    """All that is believed of the series in these buckets."""
    with connection.cursor() as cursor:
        cursor.execute(_BELIEVED + _SERIES, {"node": node.pk, "opened": opened})
        return {SeriesKey(*row[:3]): Believed(*row[3:]) for row in cursor.fetchall()}
