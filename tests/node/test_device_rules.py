"""The page where an engineer sets what a device may do."""

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from pacs_node.clinic.models import ApplicationEntity, AuditEntry, RefusedAssociation
from pacs_node.dimse.tls import TLS_REFUSED

pytestmark = pytest.mark.django_db

FORM = {
    "rights": ["store", "worklist"],
    "addresses": "192.168.1.20, 10.1.0.0/16",
    "host": "192.168.1.20",
    "port": "104",
    "uses_tls": "on",
    "character_set": "ISO_IR 144",
    "issuer_of_patient_id": "CLINIC-A",
    "preferred_transfer_syntaxes": "1.2.840.10008.1.2.4.80",
    "forbidden_transfer_syntaxes": "1.2.840.10008.1.2.4.50 1.2.840.10008.1.2.4.51",
    "maximum_pdu_bytes": "16384",
    "quirks": ["uncompressed-only", "made-up"],
}


@pytest.fixture
def device() -> ApplicationEntity:
    return ApplicationEntity.objects.create(ae_title="CT1", origin="centre")


@pytest.fixture
def engineer(client: Client) -> Client:
    client.force_login(User.objects.create_user("erik", is_staff=True))
    return client


def test_an_engineer_sets_the_rules_of_a_device(engineer: Client, device: ApplicationEntity) -> None:
    assert f"/devices/{device.pk}/" in engineer.get("/devices/").content.decode()
    assert "CT1" in engineer.get(f"/devices/{device.pk}/").content.decode()
    assert engineer.post(f"/devices/{device.pk}/", FORM)["Location"] == "/devices/"
    device.refresh_from_db()
    assert (device.may_store, device.may_worklist, device.may_query, device.may_commit) == (True, True, False, False)
    assert (device.address, device.host, device.port) == ("192.168.1.20,10.1.0.0/16", "192.168.1.20", 104)
    assert (device.uses_tls, device.maximum_pdu_bytes, device.quirks) == (True, 16384, ["uncompressed-only"])
    assert device.forbidden_transfer_syntaxes == "1.2.840.10008.1.2.4.50,1.2.840.10008.1.2.4.51"
    assert device.origin == "local"
    assert AuditEntry.objects.get(action="ae.changed").detail["port"] == 104


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("addresses", "10.0.0.300", "10.0.0.300 is neither an address"),
        ("port", "70000", "70000 is no port"),
        ("port", "one", "one is no whole number"),
        ("maximum_pdu_bytes", "100", "at least 4096"),
        ("forbidden_transfer_syntaxes", "1.2.3", "1.2.3 is no transfer syntax"),
        ("character_set", "KOI-8", "KOI-8 is no character set"),
    ],
)
def test_a_rule_that_cannot_be_is_explained_and_changes_nothing(
    engineer: Client, device: ApplicationEntity, field: str, value: str, words: str
) -> None:
    response = engineer.post(f"/devices/{device.pk}/", {**FORM, field: value})
    assert response.status_code == 422
    assert words in response.content.decode()
    assert ApplicationEntity.objects.get().host == ""


def test_others_of_the_site_may_not_set_rules(client: Client, device: ApplicationEntity) -> None:
    client.force_login(User.objects.create_user("anna"))
    assert client.get(f"/devices/{device.pk}/").status_code == 403
    assert client.post(f"/devices/{device.pk}/", FORM).status_code == 403
    assert ApplicationEntity.objects.get().port == 0


def test_the_page_speaks_russian(engineer: Client, device: ApplicationEntity) -> None:
    page = engineer.get(f"/devices/{device.pk}/", headers={"Accept-Language": "ru"}).content.decode()
    for words in ("Что ему можно", "подтверждение хранения", "Сохранить правила"):
        assert words in page


def test_a_failed_tls_handshake_is_explained(engineer: Client) -> None:
    RefusedAssociation.objects.create(calling_ae_title="", called_ae_title="", address="10.0.0.9", reason=TLS_REFUSED)
    page: Any = engineer.get("/refused/").content.decode()
    assert "its certificate is missing" in page
    assert "/admit/" not in page
