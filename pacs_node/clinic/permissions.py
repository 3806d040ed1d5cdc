"""Who may do what at the node's own pages."""

import hmac
from ipaddress import ip_address

from django.contrib.auth.models import AnonymousUser, User
from django.http import HttpRequest

from pacs_node.clinic.models import RosterMember
from pacs_node.config import config

ENGINEER_ROLES = frozenset({"engineer", "administrator", "regional_administrator"})


def may_scrape(request: HttpRequest) -> bool:
    """Whether the figures of the node are given: to this machine, or with the token where one is set."""
    token = config().metrics_token
    if token:
        return hmac.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode())
    try:
        return ip_address(str(request.META.get("REMOTE_ADDR", ""))).is_loopback
    except ValueError:
        return False


def is_engineer(user: User | AnonymousUser) -> bool:
    """Whether this person may admit devices and read the audit trail: local staff, and engineers of the roster."""
    if not isinstance(user, User):
        return False
    return user.is_staff or RosterMember.objects.filter(user=user, role__in=ENGINEER_ROLES).exists()
