"""`regis`: one command; every sub-command is a module of this package, imported only when it is asked for."""

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

_COMMANDS = {
    "demo": ("deploy.demo", "app"),
    "test": ("deploy.checks", "app"),
    "bench": ("deploy.bench", "app"),
    "centre": ("deploy.parts", "centre"),
    "node": ("deploy.parts", "node"),
    "disc": ("deploy.disc", "app"),
    "service": ("deploy.service", "app"),
}


class Regis(TyperGroup):
    """The sub-commands, by name. A process of the region must not pay for importing the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order that the help shows them."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        return typer.main.get_command(getattr(importlib.import_module(module), attribute))


app = typer.Typer(cls=Regis, name="regis", no_args_is_help=True, add_completion=False)


@app.callback()
def regis() -> None:
    """Regis, the imaging network of a region."""


if __name__ == "__main__":
    sys.exit(app())
