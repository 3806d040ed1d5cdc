"""Who may write, sign and read reports."""

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can
from ris_central.catalogue.models import Study
from ris_central.organizations.models import Membership


def may_write(user: User, study: Study) -> bool:
    """Radiologists write the reports of their own site's studies; seeing a prior elsewhere is not enough."""
    return can(user, Capability.REPORT) and Membership.objects.filter(user=user, site=study.site_id).exists()
