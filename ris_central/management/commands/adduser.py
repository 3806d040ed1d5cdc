"""``adduser NAME``: make a person from the command line; the way to the first administrator."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ris_central.accounts.models import Role
from ris_central.organizations.actions import add_person
from ris_central.organizations.models import Site
from standards.errors import RegisError


class Command(BaseCommand):
    """Make a user."""

    help = "Make a user and print a one-time password, once. Without --role it is a regional administrator."

    def add_arguments(self, parser: CommandParser) -> None:
        """NAME and what is known of the person."""
        parser.add_argument("username")
        parser.add_argument("--role", choices=Role.values, default=Role.ADMINISTRATOR.value)
        parser.add_argument("--full-name", default="", help="family name first")
        parser.add_argument("--site", action="append", default=[], help="code of a site; may be given again")
        parser.add_argument("--language", choices=["ru", "en"], default="ru")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the person, or say in one sentence why not."""
        sites = list(Site.objects.filter(code__in=options["site"]))
        if unknown := set(options["site"]) - {site.code for site in sites}:
            raise CommandError(f"There is no site {', '.join(sorted(unknown))}.")
        try:
            _, password = add_person(
                username=options["username"],
                role=options["role"],
                full_name=options["full_name"],
                language=options["language"],
                sites=sites,
            )
        except RegisError as error:
            if error.code == "username-taken":
                raise CommandError(f"There is a user {options['username']} already.") from error
            raise CommandError(str(error)) from error
        self.stderr.write(
            f"{options['username']}: one-time password, shown only now; it is changed at the first login:"
        )
        self.stdout.write(password)
