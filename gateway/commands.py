"""Commands down: the node asks the centre and waits, applies what comes in order, and remembers how far it is."""

from typing import get_args

import httpx
import structlog
from django.db import transaction
from django.utils import timezone
from pydantic import TypeAdapter, ValidationError

from gateway import actions, client, reconcile, registry, rotation
from gateway.envelope import ACCEPTED_VERSIONS, CommandBody, RawCommand, RawCommandBatch
from gateway.models import JoinState, ParkedCommand
from standards.errors import PermanentError

log = structlog.get_logger(__name__)

WAIT_SECONDS = 25
REPLACING = {"directory", "configuration", "devices", "roster"}
"""Each of these says all there is to say: what came before it and was kept aside is void."""
_BODY: TypeAdapter[CommandBody] = TypeAdapter(CommandBody)
_OWN = {
    "directory": actions.apply_directory,
    "configuration": actions.apply_configuration,
    "key.rotate": rotation.apply_rotate_key,
    "study.send": actions.apply_send_study,
    "delivery.retry": actions.apply_retry,
    "delivery.hold": actions.apply_hold,
    "series.prove": reconcile.prove_again,
    "holdings.tell": reconcile.begin_now,
}


def poll(centre: httpx.Client, *, wait: int = WAIT_SECONDS) -> int:
    """Ask once, waiting up to ``wait`` seconds at the centre, and apply what came; how many commands.

    Raises: TransientError, PermanentError as ``client.ask`` does, and TransientError of a handler.
    """
    state = JoinState.objects.first()
    if state is None:
        return 0
    answer = client.ask(
        centre, state, "GET", f"/federation/v1/commands?after={state.last_command_seq}&wait={wait}", timeout=wait + 15
    )
    commands = RawCommandBatch.model_validate_json(answer).commands
    for command in commands:
        apply(state, command)
    JoinState.objects.filter(pk=state.pk).update(centre_seen_at=timezone.now())
    return len(commands)


def apply(state: JoinState, command: RawCommand) -> None:
    """Apply one command and persist the cursor after it, in one transaction.

    What this node cannot understand or apply is kept aside with the reason, so that it does not dam up what follows,
    and tried again when the node runs another program; whatever may work later is raised and comes again.
    """
    note = ""
    with transaction.atomic():
        mine = JoinState.objects.select_for_update().filter(pk=state.pk, last_command_seq__lt=command.seq)
        if not mine.exists():
            return  # applied already, or this node was joined anew meanwhile
        try:
            with transaction.atomic():
                _hand_over(command)
        except PermanentError as error:
            note = f"command {command.seq} ({command.body.get('type')}): {error}"
            log.error("command-not-applied", seq=command.seq, type=command.body.get("type"), error=str(error))
            _park(command, error)
        changes: dict[str, object] = {"last_command_seq": command.seq}
        if note:
            changes["last_error"] = note[:255]
        JoinState.objects.filter(pk=state.pk).update(**changes)


def understood() -> list[str]:
    """The types of commands that this node can apply."""
    models = get_args(get_args(CommandBody)[0])
    types = (str(model.model_fields["type"].default) for model in models)
    return sorted(name for name in types if name in _OWN or registry.handlers_of(name))


def _park(command: RawCommand, error: PermanentError) -> None:
    kind = str(command.body.get("type", ""))[:64]
    ParkedCommand.objects.update_or_create(
        seq=command.seq,
        defaults={
            "schema_version": command.schema_version,
            "type": kind,
            "body": command.body,
            "reason": str(error)[:255],
        },
    )


def retry_parked() -> int:
    """Try the commands that were kept aside again, in their order; how many could be applied now.

    Call it when the program starts: only another program can understand more.
    """
    applied = 0
    for row in ParkedCommand.objects.order_by("seq"):
        command = RawCommand(schema_version=row.schema_version, seq=row.seq, body=row.body)
        try:
            with transaction.atomic():
                _hand_over(command)
                row.delete()
        except PermanentError as error:
            ParkedCommand.objects.filter(pk=row.pk).update(reason=str(error)[:255])
            continue
        log.info("parked-command-applied", seq=command.seq, type=row.type)
        applied += 1
    return applied


def _hand_over(command: RawCommand) -> None:
    if command.schema_version not in ACCEPTED_VERSIONS:
        raise PermanentError("schema-version", f"this node does not speak version {command.schema_version}")
    try:
        body = _BODY.validate_python(command.body)
    except ValidationError as error:
        raise PermanentError("command-not-understood", f"{error.error_count()} faults") from error
    handlers = registry.handlers_of(body.type)
    if own := _OWN.get(body.type):
        own(body)  # type: ignore[operator]  # the key of the table is the type of the body
    elif not handlers:
        raise PermanentError("command-without-handler", body.type)
    for handler in handlers:
        handler(body)
    if body.type in REPLACING:
        ParkedCommand.objects.filter(type=body.type, seq__lt=command.seq).delete()
