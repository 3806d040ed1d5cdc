"""`regis`: one command; every sub-command is a module of this package, imported only when it is asked for."""

import importlib
import sys
from typing import Any

import typer
from typer.core import TyperGroup

_MODULES = {
    "service": "deploy.service",
}


class Regis(TyperGroup):
    """The sub-commands, by name. A process of the region must not pay for importing the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order that the help shows them."""
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        module = _MODULES.get(cmd_name)
        return typer.main.get_command(importlib.import_module(module).app) if module else None


app = typer.Typer(cls=Regis, name="regis", no_args_is_help=True, add_completion=False)


@app.callback()
def regis() -> None:
    """Regis, the imaging network of a region."""


if __name__ == "__main__":
    sys.exit(app())
