"""Opening a study to a person who has no other right to it, and closing it again."""

from collections.abc import Iterable

from django.contrib.auth.models import Permission
from django.db import transaction

from ris_central.accounts.models import User
from ris_central.catalogue.models import Study, StudyUserObjectPermission
from ris_central.catalogue.queries import GRANT


def _permission() -> Permission:
    return Permission.objects.get(codename=GRANT, content_type__app_label="catalogue")


@transaction.atomic
def grant(study: Study, users: Iterable[User]) -> None:
    """Let these people see the study; granting twice changes nothing."""
    permission = _permission()
    StudyUserObjectPermission.objects.bulk_create(
        [StudyUserObjectPermission(content_object=study, user=user, permission=permission) for user in users],
        ignore_conflicts=True,
    )


@transaction.atomic
def revoke(study: Study, users: Iterable[User]) -> int:
    """Close the study to these people; how many grants there were."""
    deleted, _ = StudyUserObjectPermission.objects.filter(
        content_object=study, user__in=[user.pk for user in users], permission=_permission()
    ).delete()
    return deleted
