"""A heartbeat: what a node tells of itself every few seconds, and what it does with the answer."""

import httpx
import structlog

from gateway import client, commands, registry, relay, rotation
from gateway.envelope import EventAnswer, NodeStatus
from gateway.models import JoinState, ParkedCommand
from standards.errors import RegisError

log = structlog.get_logger(__name__)

STATUS_PATH = "/federation/v1/status"


def beat(centre: httpx.Client, state: JoinState, status: NodeStatus) -> None:
    """Tell the centre ``status`` and all that was registered for it; before it whatever a change of the key needs.

    Raises: as ``client.ask``.
    """
    try:
        rotation.step(centre, state)
    except RegisError as error:  # the old key still speaks; the step is tried again with the next heartbeat
        log.warning("key-not-rotated", error=str(error))
    told = status.model_copy(
        update={
            "understands": commands.understood(),
            "commands_not_understood": ParkedCommand.objects.count(),
            "clock_offset_seconds": state.clock_offset_seconds,
            **registry.told_with_status(),
        }
    )
    try:
        answer = client.ask(centre, state, "POST", STATUS_PATH, told.model_dump_json(), timeout=10.0)
    except RegisError as error:
        JoinState.objects.filter(pk=state.pk).update(last_error=str(error)[:255])
        if error.code in rotation.UNKNOWN_HERE:
            log.warning("centre-does-not-know-this-key", told_again=rotation.announce_all(centre), error=str(error))
        raise
    relay.settle(EventAnswer.model_validate_json(answer), state.acknowledged_seq)
