"""One file fills a region, and filling it twice changes nothing."""

import json
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from ris_central.accounts.models import User
from ris_central.federation.models import JoinCode, Node
from ris_central.integration.models import Hl7Receiver
from ris_central.orders.models import Device
from ris_central.organizations.models import Membership, Site

pytestmark = pytest.mark.django_db

PLAN = {
    "sites": [{"code": "a", "name": "Clinic A", "kind": "own_pacs", "accession_prefix": "A"}],
    "nodes": [{"name": "a", "site": "a", "kind": "clinic"}],
    "devices": [{"site": "a", "node": "a", "name": "CT", "ae_title": "CT_A", "modality": "CT"}],
    "users": [{"username": "u", "password": "demo-1234", "role": "registrar", "site": "a", "last_name": "Ю"}],
    "api_tokens": [{"username": "u", "name": "demo"}],
    "hl7_receivers": [{"name": "his", "host": "127.0.0.1", "port": 2576}],
}


def seed(tmp_path: Path, plan: dict[str, object]) -> dict[str, dict[str, str]]:
    file = tmp_path / "seed.json"
    file.write_text(json.dumps(plan), encoding="utf-8")
    out = StringIO()
    call_command("seed_demo", "--file", str(file), "--show-secrets", stdout=out)
    found: dict[str, dict[str, str]] = json.loads(out.getvalue())
    return found


def test_one_file_fills_a_region(tmp_path: Path, client: Client) -> None:
    made = seed(tmp_path, PLAN)
    assert set(made["join_codes"]) == {"a"}
    assert client.post("/login/", {"username": "u", "password": "demo-1234"}).status_code == 302
    token = {"Authorization": f"Bearer {made['api_tokens']['demo']}"}
    devices = Client(headers=token).get("/api/v1/devices").json()["results"]
    assert [(device["ae_title"], device["node"]) for device in devices] == [("CT_A", "a")]


def test_the_same_file_again_changes_nothing(tmp_path: Path) -> None:
    models = (Site, Node, Device, User, Membership, Hl7Receiver, JoinCode)
    seed(tmp_path, PLAN)
    before = [list(model._default_manager.order_by("pk").values()) for model in models]
    assert seed(tmp_path, PLAN) == {"join_codes": {}, "api_tokens": {}}
    assert [list(model._default_manager.order_by("pk").values()) for model in models] == before


def test_given_codes_and_tokens_are_taken(tmp_path: Path) -> None:
    plan = {
        **PLAN,
        "nodes": [{"name": "a", "site": "a", "kind": "clinic", "join_code": "abcd-efgh-ijkl-mnop"}],
        "api_tokens": [{"username": "u", "name": "demo", "token": "given-token"}],
    }
    for _ in range(2):
        made = seed(tmp_path, plan)
        assert made == {"join_codes": {"a": "abcd-efgh-ijkl-mnop"}, "api_tokens": {"demo": "given-token"}}


def test_secrets_are_printed_only_when_asked_for(tmp_path: Path) -> None:
    nodes = [{"name": "a", "site": "a", "kind": "clinic", "join_code": "abcd-efgh-ijkl-mnop"}]
    tokens = [{"username": "u", "name": "demo", "token": "given-token"}]
    file = tmp_path / "seed.json"
    file.write_text(json.dumps({**PLAN, "nodes": nodes, "api_tokens": tokens}), encoding="utf-8")
    out = StringIO()
    call_command("seed_demo", "--file", str(file), stdout=out)
    assert json.loads(out.getvalue()) == {"join_codes": ["a"], "api_tokens": ["demo"]}
    assert Client(headers={"Authorization": "Bearer given-token"}).get("/api/v1/me").status_code == 200


def test_a_file_with_a_mistake_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="lacks 'role'"):
        seed(tmp_path, {**PLAN, "users": [{"username": "u", "password": "x", "site": "a"}]})
    assert not Site.objects.exists()
