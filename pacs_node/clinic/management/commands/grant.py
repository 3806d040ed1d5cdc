"""``grant NAME delete``: give a login of this node a right that nobody has by default."""

from argparse import ArgumentParser
from typing import Any, Final

from django.contrib.auth.models import Permission, User
from django.core.management.base import BaseCommand, CommandError

from pacs_node.clinic import audit

_RIGHTS: Final = {"delete": ("study_index", "delete_study")}


class Command(BaseCommand):
    """Give or take a right."""

    help = "Give a local login the right to delete studies over DICOMweb; --off takes it away."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """NAME and the right."""
        parser.add_argument("username")
        parser.add_argument("right", choices=sorted(_RIGHTS))
        parser.add_argument("--off", action="store_true", help="take it away")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, audited."""
        user = User.objects.filter(username=options["username"]).first()
        if user is None:
            raise CommandError(f"There is no login {options['username']}.")
        label, codename = _RIGHTS[options["right"]]
        permission = Permission.objects.get(content_type__app_label=label, codename=codename)
        if options["off"]:
            user.user_permissions.remove(permission)
        else:
            user.user_permissions.add(permission)
        action = "right.taken" if options["off"] else "right.given"
        audit.record(action, actor="command line", entity=user.username, detail={"right": options["right"]})
        self.stdout.write(f"{user.username}: {options['right']} is {'off' if options['off'] else 'on'}.")
