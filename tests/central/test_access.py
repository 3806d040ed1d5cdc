"""Every address of the centre, tried by a stranger and by each role. What the table does not list must be refused."""

import re
from collections.abc import Callable, Iterator

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import URLResolver, get_resolver

from ris_central.accounts.models import Role, User
from ris_central.audit.models import AuditEvent
from tests.factories import centre

pytestmark = pytest.mark.django_db
Browser = Callable[[User | None], Client]

LETTERS = {
    "R": Role.RADIOLOGIST,
    "E": Role.EXPERT,
    "G": Role.REGISTRAR,
    "C": Role.CLERK,
    "I": Role.ENGINEER,
    "A": Role.ADMINISTRATOR,
}
EVERYBODY = "".join(LETTERS)
STUDIES = "REGCA"
OPEN = {"login", "logout", "set_language", "healthz", "metrics", "api-schema"}
NODES_ONLY = {"federation-join", "federation-keys", "federation-events", "federation-status", "federation-holdings"}
PERMITTED = {
    EVERYBODY: ["api-me", "api-sites-list", "api-sites-detail", "password_change", "home", "worklist"],
    STUDIES: [
        *("patients", "patient", "api-patients-list", "api-patients-detail"),
        *(
            "study",
            "study_proof",
            "study_beside",
            "study_opening",
            "study_send",
            "study_fetch",
            "study_foreign",
            "api-studies-list",
            "api-studies-detail",
        ),
        *("dicomweb_studies", "dicomweb_series", "dicomweb_study_series", "dicomweb_images"),
        *("viewer_config", "viewer", "viewer_file"),
        *("report_pdf", "api-reports-list", "api-reports-detail", "consult_pdf"),
    ],
    EVERYBODY + "*": ["api-image-tokens"],
    "G": ["patient_new", "patient_edit", "book", "patient_choice", "api-orders-cancel"],
    "RGA": ["schedule", "step", "returned", "api-orders-list", "api-orders-detail"],
    "RGIA": ["api-devices-list", "api-devices-detail"],
    "IA": [
        *("foreign_source_new", "foreign_source", "foreign_source_state", "foreign_source_probe"),
        "foreign_source_remove",
        "event_retry",
        *("site_mirror_send", "site_mirror_hold"),
        "site_mirror_compare",
        "site_difference",
        "devices",
        "device_new",
        "device",
        "admit",
        "hl7",
        "hl7_send_now",
    ],
    "RIA": ["node", "node_configuration", "region", "region_csv", "alerts", "sites", "site", "site_mirror"],
    "A": [
        "site_storage_model",
        *("people", "person_new", "person", "person_password", "person_active"),
        *("site_new", "join_code", "audit", "audit_verify", "api-audit-list"),
        *("hl7_receiver_new", "hl7_receiver"),
        *("node_rotate", "node_revoke", "node_audit", "configuration_restore", "node_configuration_follow"),
        *("node_configuration_edit", "node_configuration_json", "alert_channel_new", "alert_channel"),
        *("alert_channel_test", "alert_channel_remove", "region_configuration"),
        *("region_configuration_edit", "region_configuration_json"),
    ],
    "GA": ["returned_decide"],
    "RA": ["study_hold"],
    "R": [
        "report_node_draft",
        "report_save",
        "report_sign",
        "report_addendum",
        "api-reports-addenda",
        "consult_ask",
        "consult_cancel",
    ],
    "RE": [
        *("consults", "consult", "api-consults-list", "api-consults-detail"),
        *("api-consults-conclude", "api-consults-opinion", "api-consults-take"),
    ],
    "E": ["consult_take", "consult_return", "consult_reject", "consult_save", "consult_conclude"],
    "C": [
        *("discs", "disc_order", "disc_cancel", "disc_retry", "disc_download"),
        *("api-discs-list", "api-discs-detail", "api-discs-cancel", "api-discs-retry"),
    ],
}
ALLOWED = {
    name: {LETTERS[letter] for letter in letters if letter in LETTERS}
    for letters, names in PERMITTED.items()
    for name in names
}


def addresses(resolver: URLResolver | None = None, prefix: str = "/") -> Iterator[tuple[str, str]]:
    """``(name, address)`` of every pattern, its arguments filled in."""
    for pattern in (resolver or get_resolver()).url_patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from addresses(pattern, route)
            continue
        filled = re.sub(r"<int:\w+>", "1", route)
        filled = re.sub(r"<path:\w+>", "index.html", filled)
        filled = re.sub(r"<slug:\w+>", "old-pacs", filled)
        filled = filled.replace("(?P<study>[0-9.]{1,64})", "1.2.3").replace(
            "(?P<path>studies/.+)", "studies/1.2.3/series"
        )
        filled = re.sub(r"\(\?P<\w+>\[\^/\.\]\+\)", "1", filled)
        filled = filled.replace(r"\Z", "").replace("^", "").rstrip("$").removesuffix("/?")
        yield pattern.name or route, filled


def refused(answer: HttpResponse) -> bool:
    """Refused, or sent to log in."""
    return answer.status_code in (401, 403) or answer.get("Location", "").startswith("/login/")


def ask(client: Client, address: str) -> HttpResponse:
    """GET, or POST where GET is not understood."""
    answer = client.get(address)
    return client.post(address) if answer.status_code == 405 else answer  # type: ignore[return-value]


def test_the_table_names_every_address_and_no_other() -> None:
    names = {name for name, _ in addresses()}
    assert names == OPEN | NODES_ONLY | ALLOWED.keys()


@pytest.mark.parametrize("role", [None, *Role.values])
def test_each_role_gets_what_the_table_lists_and_nothing_else(role: str | None, browser_of: Browser) -> None:
    centre.user()  # somebody else has the key 1, which the addresses close and give new passwords
    browser = browser_of(centre.user(role, centre.site()) if role else None)
    wrong = []
    for name, address in addresses():
        if name in OPEN:
            continue
        answer = ask(browser, address)
        if name in NODES_ONLY:
            right = 400 <= answer.status_code < 500
        else:
            right = refused(answer) != (role in ALLOWED.get(name, set()))
        if not right or answer.status_code >= 500:
            wrong.append((name, address, answer.status_code))
    assert wrong == []


def test_a_refusal_leaves_a_row_with_who_and_what(browser_of: Browser) -> None:
    clerk = centre.user(Role.CLERK, centre.site())
    assert browser_of(clerk).get("/audit/").status_code == 403
    row = AuditEvent.objects.get(action="request.refused")
    assert (row.actor, row.entity_id, row.outcome, row.detail["status"]) == (clerk, "audit", "refused", 403)
    browser_of(None).get("/patients/1/")
    assert AuditEvent.objects.get(action="request.refused", actor=None).entity_id == "patient"


def test_api_refusals_are_problem_documents(browser_of: Browser) -> None:
    answer = browser_of(None).get("/api/v1/patients")
    assert (answer.status_code, answer["Content-Type"]) == (401, "application/problem+json")
    assert answer.json()["code"] == "not-authenticated"
    assert "Bearer" in answer["WWW-Authenticate"]
    refusal = browser_of(centre.user(Role.ENGINEER)).get("/api/v1/patients")
    assert (refusal.status_code, refusal.json()["code"]) == (403, "permission-denied")
    missing = browser_of(None).get("/api/v1/nothing")
    assert (missing.status_code, missing["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("role", [None, Role.CLERK])
def test_the_schema_of_rest_is_open_and_names_every_address(role: str | None, browser_of: Browser) -> None:
    user = centre.user(role, centre.site()) if role else None
    answer = browser_of(user).get("/api/schema/", {"format": "json"})
    assert answer.status_code == 200
    described = {re.sub(r"{\w+}", "1", path) for path in answer.json()["paths"]}
    assert described == {address for name, address in addresses() if name.startswith("api-") and name != "api-schema"}


def test_every_list_of_rest_is_found_with_and_without_a_slash(browser_of: Browser) -> None:
    lists = [(name, address) for name, address in addresses() if name.startswith("api-") and name.endswith("-list")]
    assert len(lists) >= 9
    for name, address in lists:
        role = next(role for role in Role.values if role in ALLOWED[name])
        browser = browser_of(centre.user(role, centre.site()))
        assert [browser.get(address + slash).status_code for slash in ("", "/")] == [200, 200], name


@pytest.mark.parametrize("role", Role.values)
def test_every_entry_of_the_navigation_opens_for_who_sees_it(role: str, browser_of: Browser) -> None:
    browser = browser_of(centre.user(role, centre.site()))
    start = browser.get("/home/", follow=True)
    assert start.status_code == 200
    navigation = [entry["url"] for entry in start.context["navigation"]]
    assert len(navigation) == len(set(navigation))
    for entry in start.context["navigation"]:
        assert browser.get(entry["url"]).status_code == 200, entry["url"]
