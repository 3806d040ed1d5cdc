"""Who may ask, answer and withdraw consults."""

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.catalogue.models import Study
from ris_central.consults.models import Consult
from ris_central.organizations.models import Membership


def is_member(user: User, site_key: int) -> bool:
    """Whether the user belongs to the site."""
    return Membership.objects.filter(user=user, site=site_key).exists()


def may_ask(user: User, study: Study) -> bool:
    """Radiologists ask about the studies of their own site."""
    return can(user, Capability.CONSULT) and is_member(user, study.site_id)


def may_answer(user: User, consult: Consult) -> bool:
    """Experts of the reference centre that was asked."""
    return can(user, Capability.OPINE) and is_member(user, consult.reference_site_id)
