"""``seed_demo --file JSON``: sites, nodes, devices, people and receivers from one file. Twice is like once.

The file is one object; every list may be absent:

``sites``
    ``code, name, kind`` (own_pacs, gateway, consultant, centre), ``accession_prefix, time_zone,
    issuer_of_patient_id, address, phone``.
``nodes``
    ``name, site`` (code), ``kind`` (archive, clinic, gateway), ``join_code`` (optional: else one is made).
``devices``
    ``site, node`` (name, or null), ``name, ae_title, modality, character_set, address, host, port, slot_minutes``.
``users``
    ``username, password, role, site`` (code) or ``sites`` (codes), ``last_name, first_name, position, language``.
``api_tokens``
    ``username, name, token`` (optional: else one is made).
``hl7_receivers``
    ``name, host, port`` and the other fields of integration's Hl7Receiver.

It prints one JSON object with what was given or made now: ``{"join_codes": [node], "api_tokens": [name]}``, and with
``--show-secrets`` the codes and tokens themselves, ``{"join_codes": {node: code}, "api_tokens": {name: token}}``. What
exists is left as people changed it, but that devices take the file's values.
"""

import json
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from ris_central.accounts import actions as accounts
from ris_central.accounts.models import ApiToken, User
from ris_central.federation.actions import create_join_code
from ris_central.federation.models import Node
from ris_central.orders.actions import save_device
from ris_central.orders.models import Device
from ris_central.organizations.actions import add_site, set_sites
from ris_central.organizations.models import Site
from standards.errors import RegisError


class Command(BaseCommand):
    """Fill a region."""

    help = "Make the sites, nodes, devices, people and receivers of a file; say as JSON what was made."

    def add_arguments(self, parser: CommandParser) -> None:
        """--file, --show-secrets."""
        parser.add_argument("--file", type=Path, required=True)
        parser.add_argument(
            "--show-secrets", action="store_true", help="Print join codes and tokens: never where output is logged."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """All of the file or nothing of it."""
        try:
            plan = json.loads(options["file"].read_text(encoding="utf-8"))
            with transaction.atomic():
                made = seed(plan)
        except (OSError, json.JSONDecodeError, RegisError) as error:
            raise CommandError(f"{options['file']}: {error}") from error
        except KeyError as error:
            raise CommandError(f"{options['file']}: an entry lacks {error}.") from error
        shown = made if options["show_secrets"] else {kind: sorted(secrets) for kind, secrets in made.items()}
        self.stdout.write(json.dumps(shown, ensure_ascii=False))


def seed(plan: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Make what the plan names and is not there yet; returns join codes and tokens."""
    for entry in plan.get("sites", []):
        if not Site.objects.filter(code=entry["code"]).exists():
            add_site(**entry)
    sites = {site.code: site for site in Site.objects.all()}
    codes = {entry["name"]: _node(entry, sites) for entry in plan.get("nodes", [])}
    for entry in plan.get("devices", []):
        _device(dict(entry), sites)
    for entry in plan.get("users", []):
        _user(dict(entry), sites)
    tokens = {entry["name"]: _token(entry) for entry in plan.get("api_tokens", [])}
    # integration is a neighbour of this command's callers, not a layer below them: its model is asked for by name.
    receivers = apps.get_model("integration", "Hl7Receiver")
    for entry in plan.get("hl7_receivers", []):
        receivers._default_manager.update_or_create(name=entry["name"], defaults=entry)
    return {
        "join_codes": {name: code for name, code in codes.items() if code},
        "api_tokens": {name: token for name, token in tokens.items() if token},
    }


def _node(entry: dict[str, Any], sites: dict[str, Site]) -> str:
    node = Node.objects.filter(name=entry["name"]).first()
    if node is not None and node.joined_at is not None:
        return ""
    if node is not None and not entry.get("join_code") and node.join_codes.filter(used_at=None).exists():
        return ""
    _, code = create_join_code(
        sites[entry["site"]], entry["kind"], entry["name"], code=entry.get("join_code"), hours=24 * 30
    )
    return code


def _device(entry: dict[str, Any], sites: dict[str, Site]) -> None:
    site = sites[entry.pop("site")]
    name = entry.pop("node", None)
    node = Node.objects.get(name=name) if name else None
    found = Device.objects.filter(site=site, ae_title=entry["ae_title"]).first()
    device = found or Device(site=site)
    values = {**entry, "node": node}
    if found is not None and all(getattr(found, field) == value for field, value in values.items()):
        return
    for field, value in values.items():
        setattr(device, field, value)
    save_device(device)


def _user(entry: dict[str, Any], sites: dict[str, Site]) -> None:
    if User.objects.filter(username=entry["username"]).exists():
        return
    codes = entry.get("sites") or [entry["site"]]
    user, _ = accounts.create_user(
        username=entry["username"],
        role=entry["role"],
        full_name=f"{entry.get('last_name', '')} {entry.get('first_name', '')}".strip(),
        position=entry.get("position", ""),
        language=entry.get("language", "ru"),
        password=entry["password"],
    )
    set_sites(user, [sites[code] for code in codes])


def _token(entry: dict[str, Any]) -> str:
    user = User.objects.get(username=entry["username"])
    given = entry.get("token", "")
    if given and ApiToken.objects.filter(digest=accounts.token_digest(given)).exists():
        return str(given)
    if not given and user.api_tokens.filter(name=entry["name"], revoked_at=None).exists():
        return ""
    return accounts.issue_token(user, entry["name"], token=given)
