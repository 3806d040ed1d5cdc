"""Who may do what at the node's own pages."""

from django.contrib.auth.models import AnonymousUser, User

from pacs_node.clinic.models import RosterMember

ENGINEER_ROLES = frozenset({"engineer", "administrator", "regional_administrator"})


def is_engineer(user: User | AnonymousUser) -> bool:
    """Whether this person may admit devices and read the audit trail: local staff, and engineers of the roster."""
    if not isinstance(user, User):
        return False
    return user.is_staff or RosterMember.objects.filter(user=user, role__in=ENGINEER_ROLES).exists()
