"""``joincode SITE KIND NAME``: a one-time code with which a node joins."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from ris_central.federation import actions
from ris_central.federation.models import Node
from ris_central.organizations.models import Site
from standards.errors import RegisError


class Command(BaseCommand):
    """Print a one-time code for a node, on a line of its own."""

    help = "Register the node NAME of a site and print a one-time code with which it joins."

    def add_arguments(self, parser: CommandParser) -> None:
        """SITE, KIND, NAME and --hours."""
        parser.add_argument("site", help="code of the site")
        parser.add_argument("kind", choices=Node.Kind.values)
        parser.add_argument("name", help="name of the node in the region: letters, digits, hyphens")
        parser.add_argument("--hours", type=int, default=actions.CODE_HOURS, help="how long the code is good")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the code, or say in one sentence why not."""
        site = Site.objects.filter(code=options["site"]).first()
        if site is None:
            raise CommandError(f"There is no site {options['site']}.")
        try:
            _, code = actions.create_join_code(site, options["kind"], options["name"], hours=options["hours"])
        except RegisError as error:
            raise CommandError(str(error)) from error
        self.stdout.write(code)
