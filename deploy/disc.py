"""`regis disc …`: make and read patient discs, offline and without a database."""

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, cast

import typer

from publishing.build import build_disc
from publishing.contract import DiscOptions, Language, Medium, Progress
from publishing.read import FoundFile, read_disc
from standards.errors import RegisError

app = typer.Typer(help="Make and read patient discs, offline.", no_args_is_help=True, add_completion=False)

_MEDIA = ("cd", "dvd", "usb")
_LANGUAGES = ("ru", "en")


def _one_of(allowed: tuple[str, ...], word: str, option: str) -> str:
    if word not in allowed:
        raise typer.BadParameter(f"{option} is one of {', '.join(allowed)}, not {word!r}")
    return word


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class _Meter:
    """A line a step, rewritten on a terminal."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, progress: Progress) -> None:
        if sys.stderr.isatty():
            print(f"\r{progress.step} {progress.done}/{progress.total} ", end="", file=sys.stderr, flush=True)
        elif progress.step != self._shown:
            print(progress.step, file=sys.stderr, flush=True)
        self._shown = progress.step

    def done(self) -> None:
        if self._shown and sys.stderr.isatty():
            print(file=sys.stderr)


@app.command()
def build(
    sources: Annotated[list[Path], typer.Argument(help="DICOM files and folders.", exists=True)],
    output: Annotated[Path, typer.Option("-o", "--output", help="The image to write.")],
    medium: Annotated[str, typer.Option(help="cd, dvd or usb: what it must fit on.")] = "cd",
    report: Annotated[
        list[Path] | None, typer.Option(help="A signed report: PDF, or an encapsulated PDF instance.", exists=True)
    ] = None,
    institution: Annotated[str, typer.Option(help="Whose disc it is.")] = "Regis",
    contact: Annotated[str, typer.Option(help="Whom to ask.")] = "",
    language: Annotated[str, typer.Option(help="ru or en: of the pages on the disc.")] = "ru",
) -> None:
    """Build a verified IHE PDI disc image from files and folders."""
    options = DiscOptions(
        institution=institution,
        contact=contact,
        medium=cast("Medium", _one_of(_MEDIA, medium, "--medium")),
        reports=tuple(report or ()),
        language=cast("Language", _one_of(_LANGUAGES, language, "--language")),
    )
    meter = _Meter()
    try:
        made = build_disc(sources, output, options=options, progress=meter)
    except RegisError as error:
        meter.done()
        print(f"regis disc build: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    meter.done()
    for one in made.rejected:
        print(f"left out  {one.path}: {one.code}: {one.reason}", file=sys.stderr)
    _table(
        [
            ("image", str(made.output)),
            ("volume", made.volume_id),
            ("size", f"{made.size / 1e6:.1f} MB"),
            ("sha256", made.sha256),
            ("files", str(made.files)),
            ("instances", str(made.instances)),
            ("studies", str(len(made.study_instance_uids))),
            ("left out", str(len(made.rejected))),
            ("duplicates", str(len(made.duplicates))),
        ]
    )


@app.command()
def read(
    source: Annotated[Path, typer.Argument(help="A folder, an ISO image or a ZIP archive.")],
    extract_to: Annotated[Path | None, typer.Option("--extract-to", help="Copy the good instances here.")] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every file, good ones too.")] = False,
) -> None:
    """Account for every file of a disc; fails when one is damaged or missing."""
    try:
        found = read_disc(source, extract_to=extract_to)
    except (RegisError, OSError) as error:
        print(f"regis disc read: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    shown = found if show_all else [one for one in found if one.status in ("corrupt", "missing")]
    if shown:
        _table([("status", "file", "code", "why"), *((one.status, one.path, one.code, one.reason) for one in shown)])
    studies = _studies(found)
    if studies:
        _table([("patient", "id", "born", "study date", "modality", "instances"), *studies])
    counts = Counter(one.status for one in found)
    print(
        ", ".join(f"{counts[status]} {status}" for status in ("ok", "duplicate", "unsupported", "corrupt", "missing"))
    )
    raise typer.Exit(1 if counts["corrupt"] or counts["missing"] else 0)


def _studies(found: list[FoundFile]) -> list[tuple[str, ...]]:
    groups: dict[str, list[FoundFile]] = {}
    for one in found:
        if one.status == "ok" and one.study_instance_uid:
            groups.setdefault(one.study_instance_uid, []).append(one)
    rows: list[tuple[str, ...]] = []
    for files in groups.values():
        first = files[0]
        modalities = "/".join(sorted({one.modality for one in files if one.modality}))
        rows.append(
            (
                first.patient_name,
                first.patient_id,
                first.patient_birth_date,
                first.study_date,
                modalities,
                str(len(files)),
            )
        )
    return rows
