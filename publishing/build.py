"""Build a patient disc: read the sources, stage it, write the image, read it back, and only then put it in place."""

import datetime
import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.dataset import Dataset

from publishing import pages
from publishing.contract import CAPACITY, DiscOptions, DiscReport, ManifestEntry, Progress, Rejected
from publishing.dicomdir import Record, encode, instance_keys, keys_of, record_type
from publishing.documents import pdf_of
from publishing.image import digest_of, write_image
from publishing.instance import Instance, load, write
from publishing.verify import verify_image
from publishing.web_content import WebContent
from standards.errors import PermanentError, RegisError, TransientError
from standards.part10 import text
from standards.person_names import display, fold

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MEDIUM_NAMES = {"cd": "CD", "dvd": "DVD", "usb": "USB stick"}


@dataclass
class _Staged:
    """An instance already written for the disc, waiting for its file ID."""

    source: Path
    path: Path
    keys: Dataset
    transfer_syntax_uid: str
    dataset_digest: str
    source_digest: str


@dataclass
class _Group:
    """A patient, study or series: the header of its first instance and what is below it."""

    header: Dataset
    lower: "dict[object, _Group]" = field(default_factory=dict)
    instances: list[_Staged] = field(default_factory=list)


def build_disc(
    sources: Iterable[Path],
    output: Path,
    *,
    options: DiscOptions | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
) -> DiscReport:
    """Make an IHE PDI disc image at ``output`` from files and folders, verified by reading it back.

    A source that cannot go on the disc is named in the report and the rest goes on. ``output`` appears complete or not
    at all; an older file of that name is replaced only at the end.

    Raises: PermanentError "nothing-to-publish", "disc-too-large", "report-unusable", "verification-failed";
        TransientError "disk-full", "disc-not-written".
    """
    job = _Job(options or DiscOptions(), progress)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".regis-disc-", dir=output.parent) as folder:
            return job.run(list(sources), output, Path(folder))
    except OSError as error:
        code = "disk-full" if error.errno in _NO_ROOM else "disc-not-written"
        raise TransientError(code, f"{error.strerror or error} ({output.parent})") from error


class _Job:
    def __init__(self, options: DiscOptions, progress: Callable[[Progress], None]) -> None:
        self._options = options
        self._progress = progress
        self._created = datetime.datetime.now(datetime.UTC)
        self._capacity = CAPACITY[options.medium]
        self._patients: dict[object, _Group] = {}
        self._taken: dict[str, tuple[str, Path]] = {}
        self._rejected: list[Rejected] = []
        self._duplicates: list[Path] = []
        self._size = 0

    def run(self, sources: list[Path], output: Path, folder: Path) -> DiscReport:
        options = self._options
        pdfs, extra = self._reports()
        self._stage([*sources, *extra], folder)
        if not self._taken:
            why = "; ".join(f"{item.path.name}: {item.code}" for item in self._rejected[:3])
            raise PermanentError(
                "nothing-to-publish", f"no usable DICOM object among the sources ({why or 'none given'})"
            )
        self._fits(self._size)
        files: dict[str, Path] = {}
        manifest, records = self._arrange(files)
        (folder / "web").mkdir()
        web = WebContent(folder / "web", options.language)
        self._show(web, len(manifest))
        for number, document in enumerate(pdfs, 1):
            title = "Заключение" if options.language == "ru" else "Report"
            web.add_pdf(f"{title} {number}" if len(pdfs) > 1 else title, document)
        web.finish(
            {
                "institution": options.institution,
                "contact": options.contact,
                "created": f"{self._created:%Y%m%d}",
                "product": pages.product(),
                "instances": len(manifest),
            }
        )
        files |= web.files
        volume_id = pages.volume_name(options, self._created)
        self._write_pages(folder, files, manifest, web, encode(records, volume_id))
        digests = _digests(files)
        listing = folder / "MANIFEST.TXT"
        listing.write_bytes("".join(f"{digests[name]}  {name}\r\n" for name in sorted(digests)).encode("ascii"))
        files["IHE_PDI/MANIFEST.TXT"] = listing
        digests["IHE_PDI/MANIFEST.TXT"] = hashlib.sha256(listing.read_bytes()).hexdigest()
        self._fits(sum(path.stat().st_size for path in files.values()))
        image = folder / "disc.iso"
        write_image(files, image, volume_id, lambda done, total: self._progress(Progress("writing", done, total)))
        self._fits(image.stat().st_size)
        verify_image(image, digests, manifest, lambda done, total: self._progress(Progress("verifying", done, total)))
        with image.open("rb") as stream:
            digest = digest_of(stream.read)
            os.fsync(stream.fileno())
        report = DiscReport(
            output=output,
            size=image.stat().st_size,
            sha256=digest,
            volume_id=volume_id,
            label=self._label(),
            instances=len(manifest),
            manifest=tuple(manifest),
            rejected=tuple(self._rejected),
            duplicates=tuple(self._duplicates),
            files=len(files),
            study_instance_uids=tuple(text(study.header, "StudyInstanceUID") for _, study in self._studies()),
        )
        image.replace(output)
        return report

    def _reports(self) -> tuple[list[bytes], list[Path]]:
        """The PDFs to show, and the reports that are DICOM instances and are shown as those."""
        pdfs: list[bytes] = []
        instances: list[Path] = []
        for path in self._options.reports:
            try:
                content = path.read_bytes()
                document = pdf_of(path, content)
            except (OSError, RegisError) as error:
                # A disc without the report it was ordered with must not pass for the disc that was ordered.
                raise PermanentError("report-unusable", f"{path.name}: {error}") from error
            if content.lstrip()[:5] == b"%PDF-":
                pdfs.append(document)
            else:
                instances.append(path)
        return pdfs, instances

    def _stage(self, sources: list[Path], folder: Path) -> None:
        paths = list(dict.fromkeys(path.resolve() for path in self._found(sources)))
        (folder / "dicom").mkdir()
        for number, path in enumerate(paths):
            self._progress(Progress("reading", number, len(paths)))
            try:
                instance = load(path, path.read_bytes(), self._options.medium)
                kind = record_type(str(instance.dataset.SOPClassUID))
                if kind is None:
                    raise PermanentError("not-of-a-patient", "this kind of object belongs to no patient's study")
                self._take(instance, folder / "dicom" / f"{number:08d}")
            except RegisError as error:
                self._rejected.append(Rejected(path, error.code, error.detail))
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise
                self._rejected.append(Rejected(path, "unreadable", error.strerror or str(error)))
        self._progress(Progress("reading", len(paths), len(paths)))

    def _found(self, sources: list[Path]) -> Iterator[Path]:
        for source in sources:
            if source.is_dir():
                for folder, folders, names in os.walk(source):
                    folders.sort()
                    yield from (Path(folder, name) for name in sorted(names))
            elif source.exists():
                yield source
            else:
                self._rejected.append(Rejected(source, "not-found", "no such file or folder"))

    def _take(self, instance: Instance, target: Path) -> None:
        header, uid = instance.header, str(instance.dataset.SOPInstanceUID)
        if uid in self._taken:
            digest, first = self._taken[uid]
            if digest != instance.dataset_digest:
                raise PermanentError("conflicting-instance", f"differs from {first.name}, which has the same UID {uid}")
            self._duplicates.append(instance.source)
            return
        number = len(self._taken) + 1
        keys = instance_keys(header, "PENDING", instance.transfer_syntax_uid, number=number)
        write(instance, target)
        self._size += target.stat().st_size
        if self._size > self._capacity:
            target.unlink()  # only its size still matters, for telling how much room would be needed
        self._taken[uid] = (instance.dataset_digest, instance.source)
        # The same study UID under two patients is two studies, the same ID under two names is two patients.
        name = fold(display(header.get("PatientName")))
        patient = self._patients.setdefault(
            (text(header, "PatientID"), text(header, "IssuerOfPatientID"), name),
            _Group(_brief(header, "PATIENT", number)),
        )
        study = patient.lower.setdefault(text(header, "StudyInstanceUID"), _Group(_brief(header, "STUDY", number)))
        series = study.lower.setdefault(text(header, "SeriesInstanceUID"), _Group(_brief(header, "SERIES", number)))
        series.instances.append(
            _Staged(
                instance.source,
                target,
                keys,
                instance.transfer_syntax_uid,
                instance.dataset_digest,
                instance.source_digest,
            )
        )

    def _fits(self, needed: int) -> None:
        if needed > self._capacity:
            bigger = {"cd": "; a DVD or a USB stick holds it" if needed < CAPACITY["dvd"] else "; use a USB stick"}
            advice = bigger.get(self._options.medium, "; split the studies over several discs")
            raise PermanentError(
                "disc-too-large",
                f"{_megabytes(needed)} MB are needed, a {_MEDIUM_NAMES[self._options.medium]} holds "
                f"{_megabytes(self._capacity)} MB{advice}",
            )

    def _studies(self) -> Iterator[tuple[_Group, _Group]]:
        for patient in self._patients.values():
            for study in sorted(patient.lower.values(), key=lambda s: text(s.header, "StudyDate"), reverse=True):
                yield patient, study

    def _arrange(self, files: dict[str, Path]) -> tuple[list[ManifestEntry], list[Record]]:
        """Give every instance its file ID, in the order a person would read them; returns manifest and directory."""
        manifest: list[ManifestEntry] = []
        roots: dict[int, Record] = {}
        counts = {"ST": 0, "SE": 0, "IM": 0}
        for patient, study in self._studies():
            root = roots.setdefault(id(patient), Record(keys_of("PATIENT", patient.header)))
            counts["ST"] += 1
            study_record = Record(keys_of("STUDY", study.header))
            root.lower.append(study_record)
            for series in _in_order(study):
                counts["SE"] += 1
                series_record = Record(keys_of("SERIES", series.header))
                study_record.lower.append(series_record)
                for staged in series.instances:
                    counts["IM"] += 1
                    file_id = f"DICOM/PA{len(roots):06d}/ST{counts['ST']:06d}/SE{counts['SE']:06d}/IM{counts['IM']:06d}"
                    staged.keys.ReferencedFileID = file_id.split("/")
                    series_record.lower.append(Record(staged.keys))
                    files[file_id] = staged.path
                    manifest.append(_entry(file_id, staged))
        return manifest, list(roots.values())

    def _show(self, web: WebContent, total: int) -> None:
        done = 0

        def one() -> None:
            nonlocal done
            done += 1
            self._progress(Progress("viewer", done, total))

        shown: set[int] = set()
        for patient, study in self._studies():
            if id(patient) not in shown:
                web.add_patient(patient.header)
                shown.add(id(patient))
            web.add_study(study.header)
            for series in _in_order(study):
                web.add_series(series.header, [staged.path for staged in series.instances], one)

    def _write_pages(
        self, folder: Path, files: dict[str, Path], manifest: list[ManifestEntry], web: WebContent, dicomdir: bytes
    ) -> None:
        made = {
            "DICOMDIR": dicomdir,
            "README.TXT": pages.readme(self._options, self._created, len(manifest), len(web.reports)),
            "INDEX.HTM": pages.index_page(self._options, self._created, manifest, web.reports),
        }
        for name, content in made.items():
            files[name] = folder / name
            files[name].write_bytes(content)
        for name in ("VIEWER.JS", "STYLE.CSS"):
            files[f"IHE_PDI/{name}"] = pages.VIEWER_FOLDER / name

    def _label(self) -> str:
        names = [display(group.header.get("PatientName")) for group in self._patients.values()]
        studies = [
            " ".join((_day(text(study.header, "StudyDate")), text(study.header, "StudyDescription"))).strip()
            for _, study in self._studies()
        ]
        return pages.label_text(self._options, names, studies, self._created)


def _brief(header: Dataset, kind: str, number: int) -> Dataset:
    """Only what the records and the viewer need of a header, so that thousands of instances fit in memory."""
    brief = keys_of(kind, header, number=number)
    for keyword in ("ProtocolName",):
        if text(header, keyword):
            setattr(brief, keyword, header.get(keyword))
    return brief


def _in_order(study: _Group) -> list[_Group]:
    ordered = sorted(study.lower.values(), key=lambda group: (_number(group.header, "SeriesNumber"),))
    for series in ordered:
        series.instances.sort(key=lambda staged: (_number(staged.keys, "InstanceNumber"), str(staged.source)))
    return ordered


def _number(dataset: Dataset, keyword: str) -> int:
    value = text(dataset, keyword)
    return int(value) if value.removeprefix("-").isdigit() else 0


def _entry(file_id: str, staged: _Staged) -> ManifestEntry:
    return ManifestEntry(
        file_id=file_id,
        sop_instance_uid=text(staged.keys, "ReferencedSOPInstanceUIDInFile"),
        sop_class_uid=text(staged.keys, "ReferencedSOPClassUIDInFile"),
        transfer_syntax_uid=staged.transfer_syntax_uid,
        dataset_digest=staged.dataset_digest,
        source_digest=staged.source_digest,
        source=staged.source,
    )


def _digests(files: dict[str, Path]) -> dict[str, str]:
    digests = {}
    for name, path in files.items():
        with path.open("rb") as stream:
            digests[name] = digest_of(stream.read)
    return digests


def _megabytes(size: int) -> int:
    return -(-size // 1_000_000)


def _day(date: str) -> str:
    return f"{date[6:8]}.{date[4:6]}.{date[:4]}" if len(date) == 8 and date.isdigit() else date
