"""A neighbour of the version before or after is understood: held against messages that the first release wrote."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from gateway.envelope import (
    ACCEPTED_VERSIONS,
    SCHEMA_VERSION,
    Command,
    CommandBody,
    Event,
    EventAnswer,
    EventBody,
    JoinAnswer,
    JoinRequest,
    KeyChange,
    NodeStatus,
    RawCommand,
    RawEvent,
    Receipt,
)

FIRST: dict[str, Any] = json.loads((Path(__file__).parent / "wire_of_the_first_release.json").read_text("utf-8"))
SINGLE = {
    "status": NodeStatus,
    "join_request": JoinRequest,
    "join_answer": JoinAnswer,
    "event_answer": EventAnswer,
    "receipt": Receipt,
}


def contains(whole: Any, part: Any) -> bool:
    """Whether everything of ``part`` is in ``whole``, in its place."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            name in whole and contains(whole[name], one) for name, one in part.items()
        )
    if isinstance(part, list):
        return isinstance(whole, list) and len(whole) == len(part) and all(map(contains, whole, part))
    return bool(whole == part)


def bodies(union: Any) -> dict[str, type[BaseModel]]:
    """The models of a union by their type."""
    return {str(model.model_fields["type"].default): model for model in get_args(get_args(union)[0])}


@pytest.mark.parametrize("told", FIRST["commands"], ids=lambda told: told["body"]["type"])
def test_a_node_takes_every_command_of_the_first_release_whole(told: dict[str, Any]) -> None:
    RawCommand.model_validate(told)
    assert contains(Command.model_validate(told).model_dump(mode="json"), told)


@pytest.mark.parametrize("told", FIRST["events"], ids=lambda told: told["body"]["type"])
def test_the_centre_takes_every_event_of_the_first_release_whole(told: dict[str, Any]) -> None:
    RawEvent.model_validate(told)
    assert contains(Event.model_validate(told).model_dump(mode="json"), told)


@pytest.mark.parametrize(("name", "model"), SINGLE.items())
def test_every_other_message_of_the_first_release_is_taken_whole(name: str, model: type[BaseModel]) -> None:
    assert contains(model.model_validate(FIRST[name]).model_dump(mode="json"), FIRST[name])


def test_what_a_receipt_of_the_first_release_signed_is_what_is_checked_today() -> None:
    text = Receipt.model_validate(FIRST["receipt"]).signed_text().decode().splitlines()
    assert text[0] == "regis-receipt-1"
    assert len(text) == 10, "another text would make every kept receipt unprovable"


@pytest.mark.parametrize("union", [CommandBody, EventBody])
def test_no_type_of_the_first_release_is_gone(union: Any) -> None:
    known = {told["body"]["type"] for name in ("commands", "events") for told in FIRST[name]}
    assert bodies(union).keys() & known
    assert known <= bodies(CommandBody).keys() | bodies(EventBody).keys()


@pytest.mark.parametrize("kind", ["commands", "events"])
def test_what_the_first_release_had_is_still_all_that_it_needs(kind: str) -> None:
    """A field that was added since has a default; else the older neighbour could say nothing any more."""
    for told in FIRST[kind]:
        model = bodies(CommandBody if kind == "commands" else EventBody)[told["body"]["type"]]
        model.model_validate(told["body"])


def test_the_next_version_is_accepted_before_anybody_sends_it() -> None:
    assert ACCEPTED_VERSIONS == (SCHEMA_VERSION, SCHEMA_VERSION + 1)


@pytest.mark.parametrize("model", [NodeStatus, JoinRequest, EventAnswer, Receipt])
def test_fields_of_tomorrow_are_passed_over(model: type[BaseModel]) -> None:
    name = {one: key for key, one in SINGLE.items()}[model]
    assert model.model_validate({**FIRST[name], "of_tomorrow": {"a": [1]}}) == model.model_validate(FIRST[name])


def test_a_change_of_key_without_a_zone_is_refused() -> None:
    with pytest.raises(ValidationError):
        KeyChange.model_validate({"node": "a", "old_key": "b", "new_key": "c", "made_at": "2026-11-21T10:00:00"})
