"""The written pages of a disc: README.TXT, INDEX.HTM and the reports, as IHE PDI asks.

Source: IHE RAD TF-3 4.47
"""

import datetime
from dataclasses import dataclass
from html import escape
from pathlib import Path

from publishing.contract import DiscOptions, ManifestEntry
from standards.charsets import transliterate
from standards.version import VERSION

VIEWER_FOLDER = Path(__file__).parent / "viewer"
_WIDTH = 76


@dataclass(frozen=True)
class ReportPage:
    """A report on the disc: its title, and its file below IHE_PDI (``.HTM`` or ``.PDF``)."""

    title: str
    file: str


def product() -> str:
    """Name and version of what made the disc."""
    return f"Regis {VERSION}"


def readme(options: DiscOptions, created: datetime.datetime, instances: int, reports: int) -> bytes:
    """README.TXT: plain ASCII with CRLF, so that every system shows it; Russian names are transliterated."""
    contact = transliterate(options.contact or "not given")
    lines = [
        "PATIENT IMAGE DISC (IHE Portable Data for Imaging)",
        "=" * 50,
        "",
        f"Created by:  {transliterate(options.institution)}",
        f"Contact:     {contact}",
        f"Date:        {created:%Y-%m-%d %H:%M} UTC",
        f"Made with:   {product()}",
        f"Contents:    {instances} DICOM objects, {reports} reports as web pages or PDF",
        "",
        "HOW TO LOOK AT THE IMAGES",
        "Open INDEX.HTM in a web browser (double click). Nothing is installed, and no",
        "network is needed. The viewer needs a browser of 2023 or later (Chrome, Edge,",
        "Firefox 113, Safari 16.4) and 1 GB of free memory. It does not start by itself.",
        "The viewer is for information only; it is not a medical device and not for",
        "diagnosis.",
        "",
        "FOR DOCTORS AND IT STAFF",
        "The file DICOMDIR and the folder DICOM hold the images for import into any DICOM",
        "workstation or archive. The folder IHE_PDI holds web pages made from them; do not",
        "import it. IHE_PDI/MANIFEST.TXT lists the SHA-256 of every file.",
        "",
        "KAK POSMOTRET SNIMKI",
        "Otkroyte fayl INDEX.HTM v brauzere (dvoynoy shchelchok). Ustanovka programm i",
        "internet ne nuzhny. Prosmotr ne prednaznachen dlya postanovki diagnoza.",
        "",
        "DISCLAIMER",
        "This disc holds personal medical data. Keep it safe and do not leave it to others.",
        "The creator answers for the data as they were on the day of creation; reports may",
        "have been amended since. Viewing on unsuitable screens can mislead.",
        "",
    ]
    return "\r\n".join(lines).encode("ascii")


def report_page(title: str, patient: str, body: str, language: str) -> bytes:
    """A report as a page of its own, readable without scripts."""
    template = (VIEWER_FOLDER / "REPORT.HTM").read_text(encoding="utf-8")
    parts = {"LANGUAGE": language, "TITLE": escape(title), "PATIENT": escape(patient), "BODY": body}
    return _filled(template, parts)


def index_page(
    options: DiscOptions, created: datetime.datetime, manifest: list[ManifestEntry], reports: list[ReportPage]
) -> bytes:
    """INDEX.HTM: the viewer, and below it what IHE PDI asks of the page for those without scripts."""
    links = "".join(
        f'<li><a href="IHE_PDI/{report.file}" target="_blank">{escape(report.title)}</a></li>' for report in reports
    )
    rows = "".join(
        f"<tr><td>{escape(entry.file_id)}</td><td>{escape(entry.sop_instance_uid)}</td></tr>" for entry in manifest
    )
    parts = {
        "LANGUAGE": options.language,
        "INSTITUTION": escape(options.institution),
        "CONTACT": escape(options.contact),
        "CREATED": f"{created:%Y-%m-%d}",
        "PRODUCT": escape(product()),
        "COUNT": str(len(manifest)),
        "REPORTS": links,
        "MANIFEST": rows,
    }
    return _filled((VIEWER_FOLDER / "INDEX.HTM").read_text(encoding="utf-8"), parts)


def label_text(options: DiscOptions, patients: list[str], studies: list[str], created: datetime.datetime) -> str:
    """What to print on the disc: patient, studies, date, institution, and that it holds web content."""
    if options.label:
        return options.label
    lines = [*patients[:3], *studies[:4], f"{created:%d.%m.%Y}", options.institution, "DICOM PLUS WEB"]
    return "\n".join(line for line in lines if line)


def volume_name(options: DiscOptions, created: datetime.datetime) -> str:
    """The volume name in the characters of ISO 9660 level 1, at most 16, so that Joliet and a file-set ID hold it."""
    wanted = transliterate(options.volume_id or f"REGIS_{created:%Y%m%d}").upper()
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in wanted)[:16]


def _filled(template: str, parts: dict[str, str]) -> bytes:
    pieces = template.split("{{")
    out = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        out.append(parts[name] + rest)
    return "".join(out).encode("utf-8")
