"""``join URL CODE``: make this node part of a region."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from gateway import joining
from standards.errors import RegisError

_SENTENCES = {
    "join-code-wrong": "The centre does not know this code. Check it for typing errors, or ask for a new one.",
    "join-code-spent": "This code was already used by another node. Ask the centre for a new one.",
    "join-code-expired": "This code is past its time. Ask the centre for a new one.",
    "join-kind-mismatch": "This code is for another kind of node. {detail}",
    "already-joined": "This node is already joined {detail}. Use --force to join again under a new epoch.",
    "unreachable": "The centre cannot be reached. {detail}",
    "bad-certificate": "The certificate of the centre is not trusted; set REGIS_NODE_TLS_CA to its authority. {detail}",
    "http-404": "There is no Regis centre at this address.",
}


class Command(BaseCommand):
    """Join the centre with a one-time code."""

    help = "Join the centre at URL with a one-time CODE."

    def add_arguments(self, parser: CommandParser) -> None:
        """URL, CODE and --force."""
        parser.add_argument("url", help="address of the centre, https://…")
        parser.add_argument("code", help="one-time code from the centre")
        parser.add_argument("--force", action="store_true", help="join again although joined, under a new epoch")

    def handle(self, *args: Any, **options: Any) -> None:
        """Join, or say in one sentence why not."""
        try:
            state = joining.join(options["url"], options["code"], force=options["force"])
        except RegisError as error:
            sentence = _SENTENCES.get(error.code, "The centre refused: {code}. {detail}")
            raise CommandError(sentence.format(code=error.code, detail=error.detail)) from error
        self.stdout.write(f"Joined {state.centre_url} as {state.name}.")
