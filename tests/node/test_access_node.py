"""Who may see what at a node: strangers, bearers of tokens, people of the site."""

import re
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from gateway.models import JoinState
from pacs_node.clinic.models import AuditEntry, RefusedAssociation
from standards.tokens import generate_key
from standards.uids import new_uid
from tests.node.dicomweb_node import Centre, ct_slice, join, take_in

pytestmark = pytest.mark.django_db

OPEN = {"healthz", "metrics", "login/", "i18n/setlang/", "viewer", "viewer/", "viewer/app-config.js", "logout/"}
"""What a stranger may reach: health, the way in, and the viewer's program, which shows nothing without a token."""


@pytest.fixture
def centre() -> Centre:
    return join()


def every_address() -> list[str]:
    """One concrete path for each pattern of the node."""

    def walk(patterns: list[Any], prefix: str) -> list[str]:
        found = []
        for entry in patterns:
            part = str(entry.pattern).removeprefix("^").removesuffix("$").removesuffix("\\Z")
            if isinstance(entry, URLResolver):
                found += walk(entry.url_patterns, prefix + part)
            elif isinstance(entry, URLPattern):
                found.append(prefix + part)
        return found

    examples = {"uid": "1.2.3", "int": "1", "path": "x.js", "str": "1"}
    addresses = walk(get_resolver().url_patterns, "")
    return [re.sub(r"<(\w+):\w+>", lambda m: examples[m[1]], a).replace(".*", "anything/else") for a in addresses]


def test_the_walk_sees_all_addresses() -> None:
    addresses = every_address()
    assert {"", "state/", "audit/", "dicom-web/studies", "dicom-web/studies/1.2.3/metadata"} <= set(addresses)
    assert len(addresses) > 30


@pytest.mark.parametrize("method", ["get", "post", "put", "delete"])
def test_a_stranger_gets_nowhere(client: Client, centre: Centre, method: str) -> None:
    RefusedAssociation.objects.create(
        pk=1, calling_ae_title="X", called_ae_title="Y", address="10.0.0.9", reason="unknown"
    )
    for address in every_address():
        if address in OPEN or address.startswith("viewer/"):
            continue
        response = getattr(client, method)(f"/{address}")
        to_login = response.status_code == 302 and response["Location"].startswith("/login/")
        assert response.status_code in (401, 403, 405) or to_login, (address, response.status_code)
        assert b"1.2.3" not in response.content
    assert RefusedAssociation.objects.filter(pk=1).exists()


def test_health_says_nothing_of_patients(client: Client, centre: Centre) -> None:
    take_in(ct_slice(new_uid(), new_uid()))
    for address in ("/healthz", "/metrics"):
        text = client.get(address).content.decode()
        assert "Щёголев" not in text
        assert "A-0001" not in text


def paths_of(study: str) -> list[str]:
    below = f"studies/{study}/series/1.2/instances/1.2.3"
    return [
        f"studies/{study}",
        f"studies/{study}/metadata",
        f"studies/{study}/series",
        f"studies/{study}/instances",
        f"studies/{study}/rendered",
        f"studies/{study}/thumbnail",
        f"studies/{study}/series/1.2",
        f"studies/{study}/series/1.2/metadata",
        f"studies/{study}/series/1.2/instances",
        below,
        f"{below}/metadata",
        f"{below}/frames/1",
        f"{below}/frames/1/rendered",
        f"{below}/bulkdata/7FE00010",
        f"{below}/rendered",
        f"{below}/thumbnail",
    ]


def test_a_token_of_another_study_is_refused_on_every_path_and_written_down(client: Client, centre: Centre) -> None:
    mine, other = new_uid(), new_uid()
    take_in(ct_slice(mine, new_uid()))
    take_in(ct_slice(other, new_uid(), patient_id="B"))
    for path in paths_of(other):
        response = client.get(f"/dicom-web/{path}", headers=centre.bearer(mine))
        assert (response.status_code, response.json()["code"]) == (403, "study-not-granted"), path
        assert response["Content-Type"] == "application/problem+json"
    refused = AuditEntry.objects.get(action="dicomweb.study-not-granted")
    assert (refused.actor, refused.outcome, refused.entity) == ("dr-somova", "refused", other)
    assert not AuditEntry.objects.filter(action="study.viewed").exists()


def test_a_refusal_does_not_tell_whether_the_study_exists(client: Client, centre: Centre) -> None:
    held, unknown = new_uid(), new_uid()
    take_in(ct_slice(held, new_uid()))
    headers = centre.bearer("1.2.3")
    answers = [client.get(f"/dicom-web/studies/{uid}/metadata", headers=headers) for uid in (held, unknown)]
    assert answers[0].content == answers[1].content
    assert answers[0].status_code == answers[1].status_code == 403


def test_a_search_lists_only_the_studies_of_the_token(client: Client, centre: Centre) -> None:
    mine, other = new_uid(), new_uid()
    take_in(ct_slice(mine, new_uid()))
    take_in(ct_slice(other, new_uid(), number=2))
    for path, query in (("studies", {}), ("studies", {"PatientID": "A-0001"}), ("series", {}), ("instances", {})):
        rows = client.get(f"/dicom-web/{path}", query, headers=centre.bearer(mine)).json()
        assert {row["0020000D"]["Value"][0] for row in rows} == {mine}
    asked = client.get("/dicom-web/studies", {"StudyInstanceUID": other}, headers=centre.bearer(mine))
    assert asked.json() == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"ttl": -120}, "token-expired"),
        ({"audience": "clinic-b"}, "token-wrong-audience"),
        ({"key": generate_key()}, "token-invalid"),
    ],
)
def test_tokens_that_are_late_foreign_or_forged_are_refused(
    client: Client, centre: Centre, options: dict[str, Any], code: str
) -> None:
    study = new_uid()
    take_in(ct_slice(study, new_uid()))
    response = client.get(f"/dicom-web/studies/{study}/metadata", headers=centre.bearer(study, **options))
    assert (response.status_code, response.json()["code"]) == (401, code)
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert AuditEntry.objects.filter(action=f"dicomweb.{code}", outcome="refused").count() == 1


@pytest.mark.parametrize("header", ["Bearer x.y.z", "Bearer", "Basic YTpi", "Bearer é"])
def test_what_is_no_token_is_refused(client: Client, centre: Centre, header: str) -> None:
    response = client.get("/dicom-web/studies", headers={"Authorization": header})
    assert response.status_code == 401


def test_a_token_without_reading_cannot_read(client: Client, centre: Centre) -> None:
    study = new_uid()
    response = client.get(f"/dicom-web/studies/{study}", headers=centre.bearer(study, operations=("store",)))
    assert (response.status_code, response.json()["code"]) == (403, "operation-not-granted")


def test_a_token_for_all_nodes_of_the_region_is_good_here(client: Client, centre: Centre) -> None:
    study = new_uid()
    take_in(ct_slice(study, new_uid()))
    headers = centre.bearer(study, audience="regis-nodes")
    assert client.get(f"/dicom-web/studies/{study}/series", headers=headers).status_code == 200


def test_a_token_in_the_address_is_not_accepted(client: Client, centre: Centre) -> None:
    study = new_uid()
    for name in ("token", "access_token", "Authorization"):
        response = client.get(f"/dicom-web/studies/{study}", {name: centre.token(study)})
        assert response.status_code == 401


def test_a_node_that_is_not_joined_trusts_no_token(client: Client, centre: Centre) -> None:
    JoinState.objects.all().delete()
    assert client.get("/dicom-web/studies", headers=centre.bearer("*")).status_code == 401


def test_staff_of_the_site_see_all_that_the_node_holds(client: Client, django_user_model: type[User]) -> None:
    client.force_login(django_user_model.objects.create_user("anna", password="radiant-day"))
    study = new_uid()
    take_in(ct_slice(study, new_uid()))
    assert len(client.get("/dicom-web/studies").json()) == 1
    assert client.get(f"/dicom-web/studies/{study}/metadata").status_code == 200


def test_a_bad_token_is_not_made_good_by_a_login(client: Client, centre: Centre, django_user_model: type[User]) -> None:
    client.force_login(django_user_model.objects.create_user("anna", password="radiant-day"))
    assert client.get("/dicom-web/studies", headers={"Authorization": "Bearer x"}).status_code == 401


def test_looking_is_one_row_a_person_study_and_sitting(client: Client, centre: Centre) -> None:
    study = new_uid()
    take_in(ct_slice(study, new_uid()))
    for path in (f"studies/{study}/series", f"studies/{study}/metadata", f"studies/{study}"):
        for _ in range(3):
            client.get(f"/dicom-web/{path}", headers=centre.bearer(study))
    assert AuditEntry.objects.filter(action="study.viewed", actor="dr-somova", entity=study).count() == 1


def test_looking_for_what_is_not_here_is_no_look(client: Client, centre: Centre) -> None:
    study = new_uid()
    assert client.get(f"/dicom-web/studies/{study}/metadata", headers=centre.bearer(study)).status_code == 404
    assert not AuditEntry.objects.filter(action="study.viewed").exists()


def test_no_other_origin_is_let_in(client: Client, centre: Centre) -> None:
    response = client.get("/dicom-web/studies", headers=centre.bearer("*") | {"Origin": "https://elsewhere.example"})
    assert not [name for name in response.headers if name.lower().startswith("access-control")]
