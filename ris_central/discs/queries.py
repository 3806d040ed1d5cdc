"""Which disc jobs a person may see."""

from django.contrib.auth.models import AnonymousUser
from django.db.models import QuerySet

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.catalogue.queries import memberships_of
from ris_central.discs.models import DiscJob


def visible_to(user: User | AnonymousUser) -> QuerySet[DiscJob]:
    """The jobs of the clerk's sites; all for who administers the region."""
    if not isinstance(user, User):
        return DiscJob.objects.none()
    if can(user, Capability.ADMINISTER):
        return DiscJob.objects.all()
    if not can(user, Capability.BURN):
        return DiscJob.objects.none()
    return DiscJob.objects.filter(site__in=memberships_of(user))
