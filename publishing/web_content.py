"""The web content of a disc: script chunks with frames, the index the viewer reads, and reports as pages.

Pages opened from ``file://`` may not fetch, so all data come as scripts that call ``regis.index`` or ``regis.frames``.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset

from publishing.dicomdir import describe, record_type
from publishing.documents import encapsulated_pdf, is_structured_report, report_html, title_of
from publishing.frames import Frame, frames_of, pack, thumbnail
from publishing.pages import ReportPage, report_page
from standards.errors import PermanentError
from standards.part10 import text
from standards.person_names import display

_CHUNK = 1_500_000
_AT_ONCE = 8


@dataclass
class WebContent:
    """Writes below ``folder`` (IHE_PDI) and gathers the index; ``files`` maps names on the disc to what was written."""

    folder: Path
    language: str
    files: dict[str, Path] = field(default_factory=dict)
    reports: list[ReportPage] = field(default_factory=list)
    patients: list[dict[str, Any]] = field(default_factory=list)
    _stacks: int = 0

    def add_patient(self, header: Dataset) -> None:
        """Start a patient; studies that follow are theirs."""
        self.patients.append(
            {
                "name": display(header.get("PatientName")),
                "id": text(header, "PatientID"),
                "birth": text(header, "PatientBirthDate"),
                "sex": text(header, "PatientSex"),
                "studies": [],
            }
        )

    def add_study(self, header: Dataset) -> None:
        """Start a study of the current patient."""
        self.patients[-1]["studies"].append(
            {
                "date": text(header, "StudyDate"),
                "time": text(header, "StudyTime")[:4],
                "description": text(header, "StudyDescription"),
                "accession": text(header, "AccessionNumber"),
                "stacks": [],
                "documents": [],
            }
        )

    def add_pdf(self, title: str, document: bytes, *, index: dict[str, Any] | None = None) -> None:
        """Put a PDF on the disc; with ``index`` it is shown in that list of documents, else under the first study."""
        name = f"REPORT{len(self.reports) + 1:02d}.PDF"
        self._put(name, document)
        self.reports.append(ReportPage(title, name))
        target = index if index is not None else self.patients[0]["studies"][0]
        target["documents"].append({"title": title, "pdf": f"IHE_PDI/{name}"})

    def add_series(self, header: Dataset, instances: Iterable[Path], done: Callable[[], None]) -> None:
        """Turn the series' instances, in order, into stacks and documents of the current study.

        Single frames form one stack; each multi-frame object is one of its own.
        """
        single: list[Path] = []
        for path in instances:
            brief = dcmread(path, specific_tags=["SOPClassUID", "NumberOfFrames", "Rows"])
            if record_type(str(brief.SOPClassUID)) != "IMAGE" or "Rows" not in brief:
                self._document(dcmread(path))
                done()
            elif int(brief.get("NumberOfFrames") or 1) > 1:
                self._stack(header, [path], done)
            else:
                single.append(path)
        if single:
            self._stack(header, single, done)

    def finish(self, about: dict[str, Any]) -> None:
        """Write the index script; ``about`` is added to it."""
        content = {**about, "language": self.language, "patients": self.patients}
        # JSON in ASCII is JavaScript whatever the page's encoding, and has none of U+2028's trouble.
        self._put("INDEX.JS", f"regis.index({json.dumps(content, separators=(',', ':'))});\n".encode("ascii"))

    def _stack(self, header: Dataset, paths: list[Path], done: Callable[[], None]) -> None:
        self._stacks += 1
        key = f"S{self._stacks:05d}"
        stack: dict[str, Any] = {
            "key": key,
            "modality": text(header, "Modality"),
            "number": text(header, "SeriesNumber"),
            "description": text(header, "SeriesDescription") or text(header, "ProtocolName"),
            "chunks": [],
        }
        chunk: list[str] = []
        size = count = 0
        first_packed = None

        def flush() -> None:
            nonlocal chunk, size
            if chunk:
                name = f"{key}/C{len(stack['chunks']) + 1:05d}.JS"
                first = count - len(chunk)
                self._put(name, f'regis.frames("{key}",{first},[{",".join(chunk)}]);\n'.encode("ascii"))
                stack["chunks"].append([first, len(chunk), f"IHE_PDI/{name}"])
                chunk, size = [], 0

        frames = self._frames(paths, stack, done)
        with ThreadPoolExecutor(max_workers=2) as pool:  # zlib and numpy leave the interpreter lock
            while batch := list(islice(frames, _AT_ONCE)):
                if first_packed is None:
                    first_packed = batch[0]
                    stack["thumbnail"] = thumbnail(first_packed)
                for frame, packed in zip(batch, pool.map(pack, (frame.values for frame in batch)), strict=True):
                    chunk.append(json.dumps({**frame.info, "data": packed}, separators=(",", ":")))
                    size += len(packed)
                    count += 1
                    if count == 1 or size > _CHUNK:  # the first frame is a chunk of its own: it shows before the rest
                        flush()
        flush()
        if count:
            stack["count"] = count
            self._study["stacks"].append(stack)

    def _frames(self, paths: list[Path], stack: dict[str, Any], done: Callable[[], None]) -> Iterator[Frame]:
        for path in paths:
            dataset = dcmread(path)
            label = text(dataset, "InstanceNumber")
            if len(paths) == 1:
                stack["rate"] = _rate(dataset)
            try:
                for number, frame in enumerate(frames_of(dataset), 1):
                    frame.info["label"] = label if len(paths) > 1 else str(number)
                    yield frame
            except PermanentError as error:
                # The DICOM object is on the disc all the same; the viewer says that it cannot show it.
                self._study["documents"].append(
                    {"title": describe(str(dataset.SOPClassUID)), "unshown": label, "reason": error.code}
                )
            done()

    def _document(self, dataset: Dataset) -> None:
        title = title_of(dataset) or describe(str(dataset.SOPClassUID))
        document = encapsulated_pdf(dataset)
        if document is not None:
            self.add_pdf(title, document, index=self._study)
        elif is_structured_report(dataset):
            body = report_html(dataset)
            name = f"REPORT{len(self.reports) + 1:02d}.HTM"
            patient = display(dataset.get("PatientName"))
            self._put(name, report_page(title, patient, body, self.language))
            self.reports.append(ReportPage(title, name))
            verified = text(dataset, "VerificationFlag") == "VERIFIED"
            self._study["documents"].append(
                {"title": title, "html": body, "page": f"IHE_PDI/{name}", "verified": verified}
            )
        else:
            self._study["documents"].append({"title": title, "unshown": "", "reason": "not-shown"})

    @property
    def _study(self) -> dict[str, Any]:
        study: dict[str, Any] = self.patients[-1]["studies"][-1]
        return study

    def _put(self, name: str, content: bytes) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        self.files[f"IHE_PDI/{name}"] = target


def _rate(dataset: Dataset) -> float:
    """Frames a second of a cine loop; 0 if the object is none."""
    if int(dataset.get("NumberOfFrames") or 1) < 2:
        return 0
    for keyword in ("RecommendedDisplayFrameRate", "CineRate"):
        value = text(dataset, keyword)
        if value and float(value) > 0:
            return float(value)
    frame_time = text(dataset, "FrameTime")
    return round(1000 / float(frame_time), 1) if frame_time and float(frame_time) > 0 else 0
