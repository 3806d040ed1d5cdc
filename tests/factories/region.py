"""Sites, people, nodes and the events that nodes send, for tests of the centre. All names are fictional."""

import hashlib
from datetime import UTC, datetime, timedelta
from itertools import count

from django.utils import timezone

from gateway.envelope import (
    Event,
    EventBody,
    InstanceDescription,
    PatientIdentity,
    SeriesChanged,
    SeriesDescription,
    SeriesReleased,
    StudyDescription,
)
from ris_central.accounts.models import Role, User
from ris_central.catalogue.actions import arrivals
from ris_central.catalogue.models import Study
from ris_central.federation.models import Node
from ris_central.organizations.models import Membership, Site
from standards.digests import root_hash
from standards.uids import new_uid

NAME = "Щёголев-Ящуржинский^Пётр^Ёжикович"
CT = "1.2.840.10008.5.1.4.1.1.2"
_numbers = count(1)


def site(code: str, kind: str = Site.Kind.OWN_PACS) -> Site:
    """A site with its own issuer."""
    number = next(_numbers)
    return Site.objects.create(
        code=code,
        name=f"Клиника {code}",
        kind=kind,
        accession_prefix=f"{number:03d}",
        issuer_of_patient_id=f"ISS-{code}",
    )


def person(username: str, role: str = Role.RADIOLOGIST, at: Site | None = None) -> User:
    """Somebody with the password ``correct horse``."""
    user = User.objects.create_user(
        username, password="correct horse", role=role, last_name="Врачёва", first_name="Анна Ильинична"
    )
    if at is not None:
        Membership.objects.create(user=user, site=at)
    return user


def node(name: str, at: Site, kind: str = Node.Kind.CLINIC, url: str = "") -> Node:
    """A joined node."""
    return Node.objects.create(
        name=name,
        site=at,
        kind=kind,
        url=url or f"https://{name}.example",
        ae_title=name.upper()[:16],
        joined_at=timezone.now(),
    )


def instance(number: int, *, content: str = "", uid: str | None = None) -> InstanceDescription:
    """One CT image; ``content`` changes its digest."""
    uid = uid or new_uid()
    digest = hashlib.sha256(f"{uid}{content}".encode()).hexdigest()
    return InstanceDescription(
        sop_instance_uid=uid,
        sop_class_uid=CT,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        dataset_sha256=digest,
        pixel_sha256=digest,
        frames_sha256=digest,
        size=524_288,
        instance_number=number,
    )


class Acquisition:
    """A study at a scanner: makes the events that nodes send of it."""

    def __init__(
        self,
        *,
        patient_id: str = "A-100",
        images: int = 3,
        study_uid: str | None = None,
        modality: str = "CT",
        name: str = NAME,
        accession_number: str = "",
    ) -> None:
        self.patient = PatientIdentity(
            patient_id=patient_id, patient_name=name, patient_birth_date="19570312", patient_sex="M"
        )
        self.study = StudyDescription(
            study_instance_uid=study_uid or new_uid(),
            study_date="20261121",
            study_time="093000",
            study_description="КТ органов грудной клетки",
            accession_number=accession_number,
        )
        self.series = SeriesDescription(series_instance_uid=new_uid(), modality=modality, series_number=1)
        self.images = [instance(number) for number in range(1, images + 1)]
        self._held: dict[int, set[tuple[str, str]]] = {}

    def changed(self, at: Node, images: list[InstanceDescription] | None = None) -> Event:
        """The event that tells that these images (all of them) arrived at a node."""
        images = self.images if images is None else images
        held = self._held.setdefault(at.pk, set())
        held |= {(one.sop_instance_uid, one.dataset_sha256) for one in images}
        body = SeriesChanged(
            patient=self.patient,
            study=self.study,
            series=self.series,
            added=images,
            count=len(held),
            root_hash=root_hash(held),
        )
        return event(body)

    def released(self, at: Node, images: list[InstanceDescription] | None = None) -> Event:
        """The event that tells that a node let go of these images."""
        gone = [(one.sop_instance_uid, one.dataset_sha256) for one in (images or self.images)]
        held = self._held.setdefault(at.pk, set())
        held -= set(gone)
        body = SeriesReleased(
            study_instance_uid=self.study.study_instance_uid,
            series_instance_uid=self.series.series_instance_uid,
            patient_id=self.patient.patient_id,
            released=gone,
            count=len(held),
            root_hash=root_hash(held),
        )
        return event(body)

    def arrive(self, at: Node, images: list[InstanceDescription] | None = None) -> Study:
        """Tell the catalogue, and give the study as it is then."""
        arrivals.take_series_changed(at, self.changed(at, images))
        return self.known()

    def known(self) -> Study:
        """The study as the catalogue has it."""
        return Study.objects.select_related("patient", "site").get(study_instance_uid=self.study.study_instance_uid)


def event(body: EventBody) -> Event:
    """A numbered fact of now."""
    return Event(epoch="e", seq=next(_numbers), occurred_at=datetime.now(UTC), body=body)


def make_quiet(study: Study) -> None:
    """Let the study's last image be an hour ago."""
    Study.objects.filter(pk=study.pk).update(last_instance_at=timezone.now() - timedelta(hours=1))
