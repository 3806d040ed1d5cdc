"""A node of a site that was alone, and speaks to the centre in numbered events."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.test import Client
from django.utils import timezone

from gateway.envelope import RawEvent
from ris_central.accounts.models import User
from ris_central.federation import intake
from ris_central.federation.models import Command, InboxEvent
from ris_central.orders.models import ReturnDifference, ScheduledProcedureStep, ServiceRequest
from standards.uids import new_uid
from tests.factories import centre
from worklist.feed import WorklistItem

Browser = Callable[[User | None], Client]
NAME = "Выдумкин^Пример^Ёлкович"


class Van:
    """A node of a site that speaks to the centre in numbered events."""

    def __init__(self) -> None:
        self.site = centre.site()
        self.node = centre.node(self.site, name="van")
        self.device = centre.device(self.site, ae_title="VANCT", at=self.node)
        self.seq = 0

    def tell(self, kind: str, **body: Any) -> None:
        self.seq += 1
        raw = RawEvent(
            schema_version=1, epoch="e1", seq=self.seq, occurred_at=timezone.now(), body={"type": kind, **body}
        )
        intake.take(self.node, [raw])
        row = InboxEvent.objects.get(node=self.node, seq=self.seq)
        assert row.error == ""

    def item(self, number: int = 501, hour: int = 10, **changes: Any) -> WorklistItem:
        accession = f"A{number:08d}"
        starts = centre.tomorrow(hour)
        values = {
            "scheduled_procedure_step_id": f"{accession}-1",
            "scheduled_station_ae_title": "VANCT",
            "modality": "CT",
            "starts_at": starts,
            "ends_at": starts + timedelta(minutes=30),
            "accession_number": accession,
            "requested_procedure_id": accession,
            "requested_procedure_description": "КТ груди",
            "study_instance_uid": new_uid(),
            "requested_procedure_priority": "HIGH",
            "patient_name": NAME,
            "patient_id": f"P{accession}",
            "issuer_of_patient_id": "CLINIC-A",
            "patient_birth_date": "19700228",
            "patient_sex": "M",
        }
        return WorklistItem.model_validate(values | changes)

    def register(self, item: WorklistItem | None = None, **more: Any) -> ServiceRequest:
        item = item or self.item()
        said = {"item": item.model_dump(mode="json"), "revision": 1, "by": "anna", "at": now(), **more}
        self.tell("order.registered", **said)
        return ServiceRequest.objects.get(study_instance_uid=item.study_instance_uid)

    def change(self, base: WorklistItem, revision: int = 2, **changes: Any) -> WorklistItem:
        item = base.model_copy(update=changes)
        self.tell(
            "order.changed",
            item=item.model_dump(mode="json"),
            base=base.model_dump(mode="json"),
            revision=revision,
            by="anna",
            at=now(),
        )
        return item

    def cancel(self, item: WorklistItem, revision: int = 2) -> None:
        self.tell("order.cancelled", item=item.model_dump(mode="json"), revision=revision, by="anna", at=now())

    def last_schedule(self) -> dict[str, Any]:
        found = Command.objects.filter(node=self.node, type="schedule").order_by("pk").last()
        assert found is not None
        return dict(found.body)


def now() -> str:
    return datetime.now(UTC).isoformat()


def step_of(order: ServiceRequest) -> ScheduledProcedureStep:
    return order.steps.select_related("device", "service_request__patient").get()


def only_difference() -> ReturnDifference:
    return ReturnDifference.objects.get()


def decide(browser_of: Browser, who: User, side: str) -> ReturnDifference:
    row = only_difference()
    answer = browser_of(who).post(f"/schedule/returned/{row.pk}/decide/", {"side": side}, follow=True)
    assert answer.status_code == 200
    row.refresh_from_db()
    return row
