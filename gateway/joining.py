"""Joining the region: spend a one-time code, learn the name and the first directory."""

from pydantic import ValidationError

from gateway import actions, client, commands, registry
from gateway.envelope import JoinAnswer, JoinRequest
from gateway.keys import node_key, public_text
from gateway.models import JoinState
from gateway.rotation import forget_unfinished
from standards.errors import PermanentError

JOIN_PATH = "/federation/v1/join"


def join(centre_url: str, code: str, *, force: bool = False) -> JoinState:
    """Join the centre at ``centre_url``; with ``force`` also when joined already, under a new epoch.

    Raises: PermanentError "already-joined", "no-region-here", "answer-not-understood", and the centre's own refusals;
        TransientError "unreachable", "bad-certificate".
    """
    present = JoinState.objects.first()
    if present is not None and not force:
        raise PermanentError("already-joined", f"as {present.name}, to {present.centre_url}")
    facts = registry.node()
    forget_unfinished(facts.data_dir)
    request = JoinRequest(
        code=code.strip(),
        public_key=public_text(node_key(facts.data_dir)),
        ae_title=facts.ae_title,
        kind=facts.kind,
        url=facts.peer_url,
        browser_url=facts.url,
        host=facts.dicom_host,
        dicom_port=facts.dicom_port,
        understands=commands.understood(),
    )
    with client.connect(centre_url.rstrip("/")) as centre:
        answer = client.exchange(
            centre, "POST", JOIN_PATH, request.model_dump_json().encode(), {"Content-Type": "application/json"}
        )
    try:
        parsed = JoinAnswer.model_validate_json(answer)
    except ValidationError as error:
        raise PermanentError("answer-not-understood", f"{centre_url} does not answer like a centre") from error
    return actions.record_join(parsed, centre_url)
