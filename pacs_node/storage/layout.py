"""Where an instance lies: paths of validated UIDs only, never names.

``studies/<2 hex>/<study>/<series>/<instance>.dcm``; another content under a used UID goes to
``studies/<2 hex>/<study>/variants/<series>/<instance>/<dataset_sha256>.dcm``.
"""

import hashlib
from functools import lru_cache

from standards.uids import is_valid_uid, validated_uid

STUDIES = "studies"
VARIANTS = "variants"
JOURNAL = "journal.jsonl"
ASIDE = "aside"
"""Where damaged and unexplained files wait for a person."""
_LONGEST = 320


@lru_cache(1024)
def study_key(study_instance_uid: str) -> str:
    """The study's folder; the two hex digits keep any one folder small. Raises: PermanentError("invalid-uid")."""
    uid = validated_uid(study_instance_uid)
    return f"{STUDIES}/{hashlib.sha256(uid.encode('ascii')).hexdigest()[:2]}/{uid}"


def is_study_folder(key: str) -> bool:
    """Whether a study belongs at ``key``: its folder is named after it and lies where ``study_key`` puts it."""
    name = key.rpartition("/")[2]
    return is_valid_uid(name) and study_key(name) == key


def is_instance_key(key: str) -> bool:
    """Whether a file at ``key`` may be an instance: Regis gives no other names, and the index takes no longer ones."""
    return key.endswith(".dcm") and key.isascii() and len(key) <= _LONGEST


def instance_key(study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> str:
    """The place of an instance. Raises: PermanentError("invalid-uid")."""
    return f"{study_key(study_instance_uid)}/{validated_uid(series_instance_uid)}/{validated_uid(sop_instance_uid)}.dcm"


def variant_key(study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, dataset_sha256: str) -> str:
    """The place of another content under a used UID. Raises: PermanentError("invalid-uid")."""
    series, sop = validated_uid(series_instance_uid), validated_uid(sop_instance_uid)
    return f"{study_key(study_instance_uid)}/{VARIANTS}/{series}/{sop}/{dataset_sha256}.dcm"


def recompressed_key(key: str, encoding: str) -> str:
    """The place of the same instance in another encoding, beside ``key``."""
    return f"{key.removesuffix('.dcm')}~{encoding}.dcm"


def as_received_key(key: str) -> str:
    """The place of the received file of which ``key`` may be another encoding."""
    return f"{key.partition('~')[0].removesuffix('.dcm')}.dcm"


def is_recompressed(key: str) -> bool:
    """Whether ``key`` is the place of a file in another encoding than it was received in."""
    return "~" in key


def is_variant(key: str) -> bool:
    """Whether ``key`` is the place of a variant."""
    return key.split("/")[3] == VARIANTS
