"""The rules that hold now: read again when the file changes; a broken file changes nothing but is said loudly."""

import threading
from pathlib import Path

import structlog

from gateway.proxy import rules
from gateway.proxy.journal import Journal, write_whole
from gateway.proxy.rules import Rules
from standards.errors import PermanentError

log = structlog.get_logger(__name__)


class RulesFile:
    """``path`` None: no rules, everything passes. ``last_good``: where the copy lies that a restart falls back on."""

    def __init__(self, path: Path | None, last_good: Path, journal: Journal) -> None:
        self._path = path
        self._last_good = last_good
        self._journal = journal
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._rules = Rules()
        if path is None:
            journal.facts["rules"] = {"state": "none"}
            return
        if not self.look():
            try:
                self._rules = rules.load(last_good)
                self._journal.facts["rules"]["using"] = "last-good"
            except (PermanentError, OSError):
                self._journal.facts["rules"]["using"] = "none"

    def now(self) -> Rules:
        """The rules that hold."""
        return self._rules

    def look(self) -> bool:
        """Read the file if it changed; False when it is broken."""
        if self._path is None:
            return True
        with self._lock:
            try:
                found = self._path.stat()
                seen = (found.st_mtime_ns, found.st_size, found.st_ino)
                if seen == self._seen:
                    return True
                read = rules.load(self._path)
            except (PermanentError, OSError) as error:
                return self._broken(error)
            self._seen, self._rules = seen, read
            try:
                write_whole(self._last_good, self._path.read_text(encoding="utf-8"))
            except OSError as error:  # a full disk must not stop good rules
                self._journal.event("rules-not-kept", error=error.strerror or type(error).__name__)
            self._journal.facts["rules"] = {"state": "good", "path": str(self._path), "rules": len(read.rules)}
            log.info("rules-read", path=str(self._path), rules=len(read.rules))
            return True

    def _broken(self, error: PermanentError | OSError) -> bool:
        reason = error.detail if isinstance(error, PermanentError) else (error.strerror or type(error).__name__)
        before = self._journal.facts.get("rules", {})
        if before.get("error") != reason:
            self._journal.event("rules-broken", path=str(self._path), error=reason)
        using = before.get("using", "the rules before it" if before.get("state") == "good" else "last-good")
        self._journal.facts["rules"] = {"state": "broken", "path": str(self._path), "error": reason, "using": using}
        return False
