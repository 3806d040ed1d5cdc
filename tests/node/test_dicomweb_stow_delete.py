"""Letting go of studies over HTTP."""

from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client
from django.utils import timezone

from gateway.models import Delivery, OutboxEntry
from pacs_node.clinic.models import AuditEntry
from pacs_node.storage.models import StudyRetention
from pacs_node.storage.stores import storage
from pacs_node.study_index.models import Instance
from standards.uids import new_uid
from tests.node.dicomweb_node import Centre, ct_slice, join, take_in

pytestmark = pytest.mark.django_db


@pytest.fixture
def centre() -> Centre:
    return join()


def three(study: str, series: str) -> list[Instance]:
    return [take_in(ct_slice(study, series, number=number)).instance for number in (1, 2, 3)]


def test_nobody_may_delete_by_default(client: Client, centre: Centre, django_user_model: Any) -> None:
    study = new_uid()
    three(study, new_uid())
    headers = centre.bearer("*", operations=("read", "store"))
    refused = client.delete(f"/dicom-web/studies/{study}", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "operation-not-granted")
    assert client.delete(f"/dicom-web/studies/{study}").status_code == 401
    client.force_login(django_user_model.objects.create_user("anna", password="radiant-day"))
    assert client.delete(f"/dicom-web/studies/{study}").status_code == 403
    assert Instance.objects.filter(released_at=None).count() == 3
    assert AuditEntry.objects.filter(action="dicomweb.operation-not-granted").exists()


def test_who_has_the_right_deletes_one_a_series_or_all(client: Client, centre: Centre) -> None:
    study, series, other = new_uid(), new_uid(), new_uid()
    first, *_ = three(study, series)
    take_in(ct_slice(study, other))
    headers = centre.bearer(study, operations=("delete", "read"))
    root = f"/dicom-web/studies/{study}"
    assert (
        client.delete(f"{root}/series/{series}/instances/{first.sop_instance_uid}", headers=headers).status_code == 204
    )
    assert not storage().exists(first.path)
    assert len(client.get(f"{root}/instances", headers=headers).json()) == 3
    assert client.delete(f"{root}/series/{series}", headers=headers).status_code == 204
    assert len(client.get(f"{root}/instances", headers=headers).json()) == 1
    assert client.delete(root, headers=headers).status_code == 204
    assert client.delete(root, headers=headers).status_code == 404
    assert client.get(f"{root}/metadata", headers=headers).status_code == 404
    released = [line for line in storage().journal(study) if line["type"] == "released"]
    assert {line["sop_instance_uid"] for line in released} == set(
        Instance.objects.values_list("sop_instance_uid", flat=True)
    )
    assert AuditEntry.objects.filter(action="study.deleted", entity=study, actor="dr-somova").count() == 3
    told = [entry.body["released"] for entry in OutboxEntry.objects.exclude(body={}) if "released" in entry.body]
    assert sum(len(instances) for instances in told) == 4


def test_what_was_deleted_can_be_stored_again(client: Client, centre: Centre) -> None:
    study, series, sop = new_uid(), new_uid(), new_uid()
    content = ct_slice(study, series, sop=sop)
    take_in(content)
    headers = centre.bearer(study, operations=("delete", "read"))
    assert client.delete(f"/dicom-web/studies/{study}", headers=headers).status_code == 204
    take_in(content)
    assert client.get(f"/dicom-web/studies/{study}/instances", headers=headers).json()[0]["00080018"]["Value"] == [sop]


def test_a_pinned_or_undelivered_study_stays(client: Client, centre: Centre) -> None:
    study = new_uid()
    instances = three(study, new_uid())
    headers = centre.bearer(study, operations=("delete",))
    pin = StudyRetention.objects.create(study_instance_uid=study, pinned=True)
    answer = client.delete(f"/dicom-web/studies/{study}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "study-pinned")
    pin.delete()
    Delivery.objects.create(
        instance_key=instances[0].pk,
        destination="archive",
        series_key=instances[0].series_id,
        study_instance_uid=study,
        sop_instance_uid=instances[0].sop_instance_uid,
        dataset_sha256=instances[0].dataset_sha256,
        next_attempt_at=timezone.now(),
    )
    answer = client.delete(f"/dicom-web/studies/{study}", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "not-delivered")
    assert all(storage().exists(instance.path) for instance in instances)


def test_a_person_with_the_right_deletes_with_the_page_token(
    client: Client, centre: Centre, django_user_model: Any
) -> None:
    study = new_uid()
    three(study, new_uid())
    user = django_user_model.objects.create_user("anna", password="radiant-day")
    call_command("grant", "anna", "delete")
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user)
    answer = strict.delete(f"/dicom-web/studies/{study}")
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf-failed")
    strict.get("/state/")
    token = strict.cookies[next(name for name in strict.cookies if "csrf" in name)].value
    assert strict.delete(f"/dicom-web/studies/{study}", headers={"X-CSRFToken": token}).status_code == 204
    call_command("grant", "anna", "delete", "--off")
    take_in(ct_slice(study, new_uid(), number=9))
    assert strict.delete(f"/dicom-web/studies/{study}", headers={"X-CSRFToken": token}).status_code == 403
