"""A clinic with its node, an archive and people, for tests of what is where."""

from datetime import timedelta

from django.utils import timezone

from gateway.envelope import DeliveryProgress
from ris_central.accounts.models import Role
from ris_central.catalogue.actions import arrivals
from ris_central.catalogue.models import Study
from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from tests.factories import region


class Place:
    """A clinic with a node behind NAT, an archive that answers, and people."""

    def __init__(self, archive_url: str) -> None:
        self.site = region.site("a")
        self.clinic = region.node("clinic-a", self.site, url="https://127.0.0.1:9")
        self.archive = region.node(
            "archive", region.site("centre", Site.Kind.CENTRE), Node.Kind.ARCHIVE, url=archive_url
        )
        self.heard(self.clinic)
        self.heard(self.archive)
        self.doctor = region.person("doctor", Role.RADIOLOGIST, self.site)
        self.engineer = region.person("engineer", Role.ENGINEER, self.site)
        self.administrator = region.person("admin", Role.ADMINISTRATOR)

    def heard(self, node: Node, ago: timedelta = timedelta(0)) -> None:
        Node.objects.filter(pk=node.pk).update(last_seen_at=timezone.now() - ago)

    def progress(self, study: Study, **told: object) -> None:
        body = DeliveryProgress.model_validate(
            {
                "study_instance_uid": study.study_instance_uid,
                "destination": "archive",
                "total": study.instances_known,
                "receipted": 0,
                "failed": 0,
                **told,
            }
        )
        arrivals.take_delivery_progress(self.clinic, region.event(body))
