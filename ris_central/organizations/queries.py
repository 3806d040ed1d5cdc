"""Which sites a person works at, and which they may see."""

from django.contrib.auth.models import AnonymousUser
from django.db.models import QuerySet

from gateway.envelope import MirrorRule
from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.organizations.models import Site

SMALL_MODALITIES = ["CR", "DX", "MG", "US", "ES", "XC", "SR", "PR", "KO", "DOC", "ECG"]
"""What the hybrid model mirrors at once: a few images, or none but text."""


def sites_of(user: User) -> QuerySet[Site]:
    """The sites that the user is a member of."""
    return Site.objects.filter(memberships__user=user)


def visible_to(user: User | AnonymousUser) -> QuerySet[Site]:
    """The sites of the user; all of them for who administers the region."""
    if not isinstance(user, User) or not user.is_active:
        return Site.objects.none()
    return Site.objects.all() if can(user, Capability.ADMINISTER) else sites_of(user)


def reference_sites() -> QuerySet[Site]:
    """The centres that answer consults: every clinic may ask them, so everybody may know them."""
    return Site.objects.filter(kind=Site.Kind.CONSULTANT)


def people_of(site: Site) -> QuerySet[User]:
    """The active members of a site."""
    return User.objects.filter(memberships__site=site, is_active=True).order_by("username")


def people_visible_to(user: User) -> QuerySet[User]:
    """Everybody for who administers the region, else nobody."""
    people = User.objects.order_by("last_name", "first_name", "username").prefetch_related("memberships__site")
    return people if can(user, Capability.ADMINISTER) else people.none()


def mirror_rules_of(site: Site) -> list[MirrorRule]:
    """The rules by which the site's node mirrors unless somebody wrote its own: what its model of storage says.

    A gateway keeps nothing for itself, so whatever the site's model, all of it goes at once.
    """
    if site.kind == Site.Kind.GATEWAY:
        return []
    match site.storage_model:
        case Site.StorageModel.DISTRIBUTED:
            return [MirrorRule(when="on-demand")]
        case Site.StorageModel.HYBRID:
            return [MirrorRule(modalities=SMALL_MODALITIES), MirrorRule(when="night")]
        case _:
            return []
