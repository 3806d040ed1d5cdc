"""The two kinds of failure in Regis, and the stable code every boundary maps once."""


class RegisError(Exception):
    """A failure with a stable, kebab-case ``code`` and a sentence for a person.

    Boundaries map it once: DIMSE status, HL7 ACK code, problem+json, Celery retry.
    """

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class TransientError(RegisError):
    """Trying the same thing again later may succeed (link down, disk full, lock held)."""


class PermanentError(RegisError):
    """Trying again cannot help: a person must act or the sender must change what it sends."""


class ConflictError(PermanentError):
    """What is asked does not fit what is there by now (taken, signed, moved on): look again, then decide."""


class ForbiddenError(PermanentError):
    """It can be done, but not by who asks."""


_DISK_FULL = "53100"
"""SQLSTATE of PostgreSQL; SQLite says it in words."""


def trouble_of_database(error: Exception) -> TransientError:
    """What a database that cannot write now says, as "storage-full" or "database-busy"."""
    is_full = "disk is full" in str(error) or getattr(error.__cause__, "sqlstate", "") == _DISK_FULL
    return TransientError("storage-full" if is_full else "database-busy", str(error))
