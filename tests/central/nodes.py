"""Nodes in the state that a test of the centre needs."""

from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.utils import timezone

from gateway.envelope import JoinRequest, NodeStatus
from gateway.keys import public_text
from ris_central.federation import actions
from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from tests.factories import centre

Key = Ed25519PrivateKey


def joined(name: str = "clinic", site: Site | None = None, kind: str = "clinic") -> tuple[Node, Key]:
    """A node that joined with a key of its own, and understands what this version does."""
    key = Key.generate()
    _, code = actions.create_join_code(site or centre.site(), kind, name)
    actions.join(
        JoinRequest(
            code=code,
            public_key=public_text(key),
            ae_title="CLINIC",
            kind=kind,  # type: ignore[arg-type]
            url="https://127.0.0.1:8443",
            browser_url="http://127.0.0.1:8042",
            host="127.0.0.1",
            dicom_port=11112,
            understands=["directory", "schedule", "devices", "study.send", "roster", "configuration", "key.rotate"],
        )
    )
    return Node.objects.get(name=name), key


def status(**told: object) -> NodeStatus:
    base = {
        "version": "0",
        "epoch": "e",
        "clock": timezone.now(),
        "free_bytes": 1,
        "stored_instances": 0,
        "events_waiting": 0,
        "deliveries_waiting": 0,
    }
    return NodeStatus.model_validate({**base, **told})


def heard(node: Node, ago: timedelta = timedelta(), **told: object) -> Node:
    node.last_seen_at = timezone.now() - ago
    node.status = {"free_bytes": 10**12, "version": "", **told}
    node.save()
    return node
