"""What the receiver of an instance signs."""

from typing import Literal

from pydantic import AwareDatetime

from gateway.envelope.base import Wire


class Receipt(Wire):
    """What the receiver of an instance signs: which digests it recomputed itself and found equal.

    ``checked`` names them: ``dataset``, ``pixel``, ``frames``. ``signature`` is Ed25519 (base64) over ``signed_text``.
    """

    receiver: str
    sender: str
    sop_instance_uid: str
    dataset_sha256: str
    pixel_sha256: str | None
    frames_sha256: str | None
    checked: list[str]
    received_at: AwareDatetime
    outcome: Literal["stored", "duplicate", "conflict"] = "stored"
    signature: str = ""

    def signed_text(self) -> bytes:
        """What the receiver signs: all fields but the signature, a line each; an absent digest is ``-``."""
        fields = [
            "regis-receipt-1",
            self.receiver,
            self.sender,
            self.sop_instance_uid,
            self.dataset_sha256,
            self.pixel_sha256 or "-",
            self.frames_sha256 or "-",
            ",".join(self.checked),
            self.outcome,
            self.received_at.isoformat(),
        ]
        return "\n".join(fields).encode()
