"""``resetpassword NAME``: a new one-time password, when no administrator can log in."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ris_central.accounts.actions import reset_password, set_active
from ris_central.accounts.models import User


class Command(BaseCommand):
    """Reset a password."""

    help = "Print a new one-time password of a user, once; a locked account is open again."

    def add_arguments(self, parser: CommandParser) -> None:
        """NAME."""
        parser.add_argument("username")
        parser.add_argument("--reopen", action="store_true", help="also open an account that was closed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Reset it, or say that there is no such user."""
        user = User.objects.filter(username=options["username"]).first()
        if user is None:
            raise CommandError(f"There is no user {options['username']}.")
        if options["reopen"] and not user.is_active:
            set_active(user, True)
        if not user.is_active:
            raise CommandError(f"The account {options['username']} is closed: add --reopen to open it.")
        self.stdout.write(reset_password(user))
