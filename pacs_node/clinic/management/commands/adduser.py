"""``adduser NAME``: make a login of this node from the command line."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pacs_node.clinic.actions import add_person
from standards.errors import RegisError


class Command(BaseCommand):
    """Make a local login."""

    help = "Make a local login of this node and print its password, once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """NAME, and whether it is an engineer."""
        parser.add_argument("username")
        parser.add_argument("--engineer", action="store_true", help="may admit devices")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make it, or say in one sentence why not."""
        username = options["username"]
        try:
            password = add_person(username, engineer=options["engineer"], actor="command line")
        except RegisError as error:
            if error.code == "username-taken":
                raise CommandError(f"There is a login {username} already.") from error
            raise CommandError(str(error)) from error
        self.stderr.write(f"{username}: the password, shown only now:")
        self.stdout.write(password)
