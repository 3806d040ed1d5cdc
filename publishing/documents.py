"""Reports as people read them: structured reports as HTML, encapsulated PDFs as PDF files."""

import io
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from publishing.instance import parse
from standards.errors import PermanentError
from standards.person_names import display
from standards.sop_classes import ENCAPSULATED_PDF

_BREAK = re.compile(r"(?:\r\n|\r|\n|<br\s*/?>)", re.IGNORECASE)


def is_structured_report(dataset: Dataset) -> bool:
    """Whether the instance is an SR document that a person can read (key object selections are not)."""
    sop_class = str(dataset.get("SOPClassUID", ""))
    return sop_class.startswith("1.2.840.10008.5.1.4.1.1.88.") and not sop_class.endswith(".88.59")


def encapsulated_pdf(dataset: Dataset) -> bytes | None:
    """The PDF inside an instance, without its padding; None for any other instance or content."""
    if str(dataset.get("SOPClassUID", "")) != ENCAPSULATED_PDF:
        return None
    document = bytes(dataset.get("EncapsulatedDocument") or b"")
    length = dataset.get("EncapsulatedDocumentLength")
    document = document[: int(length)] if length else document.rstrip(b"\0")
    return document if document.startswith(b"%PDF-") else None


def pdf_of(source: Path, content: bytes) -> bytes:
    """The PDF of a report given as a file: itself, or the one inside an instance.

    Raises: PermanentError("not-a-report") or what ``parse`` raises.
    """
    if content.lstrip()[:5] == b"%PDF-":
        return content
    parse(content)
    document = encapsulated_pdf(dcmread(io.BytesIO(content), force=True))
    if document is None:
        raise PermanentError("not-a-report", f"{source.name} is neither a PDF nor an encapsulated PDF")
    return document


def title_of(dataset: Dataset) -> str:
    """The document's title: its own, the meaning of its concept name, or empty."""
    names = dataset.get("ConceptNameCodeSequence") or ()
    meaning = str(names[0].get("CodeMeaning") or "") if names else ""
    return str(dataset.get("DocumentTitle") or "").strip() or meaning


def report_html(dataset: Dataset) -> str:
    """The content tree of a structured report as escaped HTML: headings, paragraphs and a list of measurements."""
    return "".join(_nodes(dataset.get("ContentSequence") or (), depth=0))


def _nodes(items: object, depth: int) -> Iterator[str]:
    # Nesting deeper than this is hostile or a measurement tree nobody reads as text.
    if depth > 12:
        return
    for item in items:  # type: ignore[attr-defined]
        names = item.get("ConceptNameCodeSequence") or ()
        name = escape(str(names[0].get("CodeMeaning") or "")) if names else ""
        lower = item.get("ContentSequence") or ()
        kind = item.get("ValueType")
        if kind == "CONTAINER":
            level = min(depth + 3, 6)
            yield f"<h{level}>{name}</h{level}>" if name else ""
            yield from _nodes(lower, depth + 1)
            continue
        value = _value(item, str(kind))
        if value:
            gap = "<br>" if kind == "TEXT" else " "
            yield f"<p><b>{name}</b>{gap}{value}</p>" if name else f"<p>{value}</p>"
        if lower:
            yield "<div class=nested>" + "".join(_nodes(lower, depth + 1)) + "</div>"


def _value(item: Dataset, kind: str) -> str:
    if kind == "TEXT":
        return "<br>".join(escape(line.strip()) for line in _BREAK.split(str(item.get("TextValue") or "")))
    if kind == "NUM":
        measured = item.get("MeasuredValueSequence") or ()
        if not measured:
            return ""
        units = measured[0].get("MeasurementUnitsCodeSequence") or ()
        unit = str(units[0].get("CodeValue") or "") if units else ""
        return escape(f"{measured[0].get('NumericValue')} {'' if unit == '1' else unit}".strip())
    if kind == "CODE":
        codes = item.get("ConceptCodeSequence") or ()
        return escape(str(codes[0].get("CodeMeaning") or "")) if codes else ""
    if kind == "PNAME":
        return escape(display(item.get("PersonName")))
    keyword = {"DATE": "Date", "TIME": "Time", "DATETIME": "DateTime", "UIDREF": "UID"}.get(kind)
    return escape(str(item.get(keyword) or "")) if keyword else ""
