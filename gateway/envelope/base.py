"""What all messages have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict

SCHEMA_VERSION = 1
"""What is sent. It rises only in the release after the one that began to accept the next number."""
ACCEPTED_VERSIONS = (SCHEMA_VERSION, SCHEMA_VERSION + 1)
"""A neighbour may be one version ahead."""


class Wire(BaseModel):
    """Base of all messages: immutable, and unknown fields are ignored so that neighbours may be a version ahead."""

    model_config = ConfigDict(frozen=True, extra="ignore")


def problem(code: str, title: str, status: int, **extra: Any) -> dict[str, Any]:
    """An RFC 9457 problem document; ``code`` is the stable RegisError code."""
    return {"type": f"urn:regis:problem:{code}", "title": title, "status": status, "code": code, **extra}
