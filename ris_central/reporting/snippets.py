"""Ready sentences for usual findings: one file a language, chosen by modality and words of the description."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from ris_central.catalogue.models import Study

_FOLDER = Path(__file__).parent / "texts"


@cache
def _all(language: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    return found


def snippets_for(study: Study, language: str) -> list[dict[str, Any]]:
    """Snippets in ``ru`` or ``en`` that fit a modality of the study: ``{key, title, findings, conclusion}``."""
    usable = _all("ru" if language.startswith("ru") else "en")
    fitting = [one for one in usable if set(one["modalities"]) & set(study.modalities)]
    return fitting or usable
