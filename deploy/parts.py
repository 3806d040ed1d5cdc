"""`regis centre …` and `regis node …`: the management commands of the two Django projects."""

import os
import sys

import django
import typer
from django.core.management import execute_from_command_line, get_commands

SETTINGS = {"centre": "ris_central.settings", "node": "pacs_node.settings"}


def manage(project: str, arguments: list[str]) -> None:
    """Run a management command of a project: `run web`, `migrate`, `seed-demo` and so on, with dashes if one likes."""
    os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS[project]
    arguments = arguments or ["help"]
    django.setup()  # so that the projects' own commands are known
    plain = {name.replace("_", ""): name for name in get_commands()}
    arguments[0] = plain.get(arguments[0].replace("-", "").replace("_", ""), arguments[0])
    if arguments[0] == "migrate" and not any(word.startswith("--no") for word in arguments):
        arguments = [*arguments, "--no-input"]
    execute_from_command_line([f"regis {project}", *arguments])


def command(project: str, about: str) -> typer.Typer:
    """A sub-command that hands all its words to Django, options and `--help` included."""
    app = typer.Typer(add_completion=False)

    @app.command(
        name=project,
        help=about,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )
    def run(context: typer.Context) -> None:
        manage(project, context.args)

    return app


centre = command("centre", "Run and administer the centre: run web|worker|hl7, migrate, doctor, adduser, backup, …")
node = command("node", "Run and administer a node: run pacs|gateway, migrate, join URL CODE, import DIR, doctor, …")

if __name__ == "__main__":
    manage(sys.argv[1], sys.argv[2:])
