"""Sites, memberships, and people with their site."""

from collections.abc import Iterable
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db import IntegrityError, transaction
from django.http import HttpRequest

from ris_central.accounts import actions as accounts
from ris_central.accounts.models import User
from ris_central.audit.actions import record
from ris_central.organizations.listeners import people_changed, storage_model_changed
from ris_central.organizations.models import Membership, Site
from standards.errors import ConflictError, PermanentError


@transaction.atomic
def add_site(
    *,
    code: str,
    name: str,
    kind: str,
    accession_prefix: str,
    time_zone: str = "Europe/Moscow",
    issuer_of_patient_id: str = "",
    storage_model: str = Site.StorageModel.CENTRALISED,
    address: str = "",
    phone: str = "",
    request: HttpRequest | None = None,
) -> Site:
    """A new site of the region.

    Raises: PermanentError("code-taken", "unknown-zone").
    """
    try:
        ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise PermanentError("unknown-zone", time_zone) from error
    site = Site(
        code=code,
        name=name,
        kind=kind,
        accession_prefix=accession_prefix.upper(),
        time_zone=time_zone,
        issuer_of_patient_id=issuer_of_patient_id or code.upper(),
        storage_model=storage_model or Site.StorageModel.CENTRALISED,
        address=address,
        phone=phone,
    )
    try:
        with transaction.atomic():
            site.save()
    except IntegrityError as error:
        raise ConflictError("code-taken", f"{code} or {accession_prefix}") from error
    record("site.added", request=request, actor=None if request else "centre", entity=site, detail={"code": code})
    return site


@transaction.atomic
def set_storage_model(site: Site, storage_model: str, *, request: HttpRequest | None = None) -> None:
    """Have the images of a site lie elsewhere by rule from now on; what is where stays until the rules move it.

    Raises: PermanentError("unknown-storage-model").
    """
    if storage_model not in Site.StorageModel.values:
        raise PermanentError("unknown-storage-model", storage_model)
    if site.storage_model == storage_model:
        return
    former, site.storage_model = site.storage_model, storage_model
    site.save(update_fields=["storage_model"])
    record(
        "site.storage-model",
        request=request,
        actor=None if request else "centre",
        entity=site,
        detail={"from": former, "to": storage_model},
    )
    storage_model_changed(site)


@transaction.atomic
def set_sites(user: User, sites: Iterable[Site], request: HttpRequest | None = None) -> None:
    """Make the user a member of exactly these sites."""
    wanted = {site.pk: site for site in sites}
    current = {membership.site_id: membership for membership in user.memberships.select_related("site")}
    for key in current.keys() - wanted.keys():
        current[key].delete()
    for key in wanted.keys() - current.keys():
        Membership.objects.create(user=user, site=wanted[key])
    changed = wanted.keys() ^ current.keys()
    if changed:
        codes = sorted(site.code for site in wanted.values())
        record(
            "user.sites-set", request=request, actor=None if request else "centre", entity=user, detail={"sites": codes}
        )
        for site in Site.objects.filter(pk__in=changed):
            people_changed(site)


@transaction.atomic
def add_person(*, sites: Iterable[Site], request: HttpRequest | None = None, **account: Any) -> tuple[User, str]:
    """A new user who works at these sites; see ``accounts.actions.create_user`` for the rest."""
    user, password = accounts.create_user(request=request, **account)
    set_sites(user, sites, request)
    return user, password


def account_changed(action: str, user: User, request: HttpRequest | None, detail: dict[str, Any]) -> None:
    """Somebody's account changed, so the people of their sites did."""
    if action.startswith("user."):
        for site in Site.objects.filter(memberships__user=user):
            people_changed(site)
