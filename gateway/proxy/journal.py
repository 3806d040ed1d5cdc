"""What the proxy did and could not do: a journal that grows, and figures of now, both files beside the spool.

A figure has a name, and where it is told apart further a label after a colon (``failure:too-slow``).

``missing.jsonl`` lists what passed to the old PACS and was not tapped, so that it can be fetched from there later.
Where the disk takes no more, lines wait in memory (a bounded number, the rest is counted) and are written later.
"""

import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

_LARGEST_BYTES: Final = 16 << 20
_MOST_WAITING: Final = 10_000
_KINDS: Final = ("events", "missing")
WORKER_FIGURES: Final = "state.json"
SUPERVISOR_FIGURES: Final = "supervisor.json"


class Journal:
    """Never raises for what the disk does: telling of trouble must not stop the relay."""

    def __init__(self, folder: Path, figures: str = WORKER_FIGURES) -> None:
        self.folder = folder
        self._figures = figures
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[str]] = {kind: deque(maxlen=_MOST_WAITING) for kind in _KINDS}
        self._counts: Counter[str] = Counter()
        self._detections: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}

    def count(self, what: str, by: int = 1) -> None:
        """Add to a figure."""
        with self._lock:
            self._counts[what] += by

    def event(self, what: str, **details: Any) -> None:
        """Something that an engineer wants to know: into the log, the journal and the figures."""
        log.warning(what, **details)
        self.count(f"failure:{what}")
        self._write("events", {"event": what, **details})

    def missing(self, reason: str, **details: Any) -> None:
        """An instance (``sop_instance_uid``) or a stretch of time that passed and was not tapped."""
        log.warning("not-tapped", reason=reason, **details)
        self.count("not-tapped")
        self.count(f"failure:{reason.partition(':')[0].strip()}")
        self._write("missing", {"reason": reason, **details})

    def detected(self, source: str, declared: str, codec: str, *, sure: bool, preview: str) -> None:
        """Count texts that are not in the character set that they declare."""
        with self._lock:
            known = self._detections.setdefault(
                (source, declared, codec),
                {"source": source, "declared": declared, "codec": codec, "instances": 0, "unsure": 0},
            )
            known["instances"] += 1
            known["unsure"] += not sure
            known["preview"], known["last_at"] = preview[:64], now()

    def _write(self, kind: str, line: Mapping[str, Any]) -> None:
        text = json.dumps({"at": now(), **line}, ensure_ascii=False) + "\n"
        with self._lock:
            waiting = self._waiting[kind]
            if len(waiting) == waiting.maxlen:
                self._counts[f"{kind}-lines-lost"] += 1
            waiting.append(text)
            self._flush(kind)

    def _flush(self, kind: str) -> None:
        waiting = self._waiting[kind]
        path = self.folder / f"{kind}.jsonl"
        text = "".join(waiting)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if kind == "events" and path.exists() and path.stat().st_size > _LARGEST_BYTES:
                path.replace(path.with_suffix(".1.jsonl"))
            before = path.stat().st_size if path.exists() else 0
            try:
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(path, before)  # a line must not be written by half
                raise
        except OSError as error:
            self._counts["journal-not-written"] += 1
            log.error("journal-not-written", error=error.strerror or str(error))
            return
        waiting.clear()

    def save(self) -> None:
        """Write the figures, and the lines that waited for the disk."""
        with self._lock:
            for kind in _KINDS:
                if self._waiting[kind]:
                    self._flush(kind)
            state = {
                "at": now(),
                **self.facts,
                "counts": dict(self._counts),
                "charsets": list(self._detections.values()),
            }
        try:
            write_whole(self.folder / self._figures, json.dumps(state, ensure_ascii=False))
        except OSError as error:
            log.error("figures-not-written", error=error.strerror or str(error))

    def restore(self) -> None:
        """Go on counting where the process before this one ended."""
        state = read_state(self.folder, self._figures)
        with self._lock:
            self._counts.update(state.get("counts", {}))
            for entry in state.get("charsets", []):
                self._detections[entry["source"], entry["declared"], entry["codec"]] = entry


def write_whole(path: Path, text: str) -> None:
    """Replace a small file at once, or not at all. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def read_state(folder: Path, figures: str = WORKER_FIGURES) -> dict[str, Any]:
    """The figures that a process of the proxy wrote; {} where there are none."""
    try:
        found = json.loads((folder / figures).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lines(folder: Path, kind: str, end: int | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a journal that are not settled, oldest first, up to the byte ``end``."""
    try:
        with (folder / f"{kind}.jsonl").open("rb") as file:
            file.seek(_settled(folder, kind))
            for line in file:
                if end is not None and file.tell() > end:
                    return
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # a line that a crash left unfinished
    except FileNotFoundError:
        return


def unsettled(folder: Path, kind: str) -> tuple[list[dict[str, Any]], int]:
    """The lines that nobody has settled yet, and where they end, for ``settle``."""
    try:
        end = (folder / f"{kind}.jsonl").stat().st_size
    except FileNotFoundError:
        return [], 0
    return list(lines(folder, kind, end)), end


def settle(folder: Path, kind: str, end: int, again: list[dict[str, Any]]) -> None:
    """Everything before ``end`` is done with, except what is written down ``again``. Raises: OSError."""
    with (folder / f"{kind}.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"at": now(), **line}, ensure_ascii=False) + "\n" for line in again)
        file.flush()
        os.fsync(file.fileno())
    write_whole(folder / f"{kind}.settled", str(end))


def _settled(folder: Path, kind: str) -> int:
    try:
        return int((folder / f"{kind}.settled").read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0


def now() -> str:
    """The time as journals and figures have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
