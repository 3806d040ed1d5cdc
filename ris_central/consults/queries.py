"""Which consults a person may see."""

from django.contrib.auth.models import AnonymousUser
from django.db.models import Case, IntegerField, Q, QuerySet, Value, When

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.catalogue.queries import memberships_of
from ris_central.consults.models import Consult
from ris_central.consults.transitions import OPEN
from ris_central.organizations.models import Site


def visible_to(user: User | AnonymousUser) -> QuerySet[Consult]:
    """For experts those put to their centre, while open, and their own; for clinicians those of their site."""
    if not isinstance(user, User) or not user.is_active:
        return Consult.objects.none()
    if can(user, Capability.ADMINISTER):
        return Consult.objects.all()
    seen = Q(pk=None)
    if can(user, Capability.OPINE):
        seen |= Q(reference_site__in=memberships_of(user), status__in=list(OPEN)) | Q(expert=user)
    if can(user, Capability.CONSULT):
        seen |= Q(requesting_site__in=memberships_of(user))
    return Consult.objects.filter(seen)


def desk(user: User) -> QuerySet[Consult]:
    """Open consults, urgent first, then who waits longest; after them what was concluded lately."""
    rank = Case(
        When(status__in=list(OPEN), is_urgent=True, then=Value(0)),
        When(status__in=list(OPEN), then=Value(1)),
        default=Value(2),
        output_field=IntegerField(),
    )
    return (
        visible_to(user)
        .select_related("study__patient", "study__site", "requesting_site", "reference_site", "requester", "expert")
        .annotate(rank=rank)
        .order_by("rank", "requested_at", "pk")
    )


def reference_sites() -> QuerySet[Site]:
    """Centres that can be asked."""
    return Site.objects.filter(kind=Site.Kind.CONSULTANT)
