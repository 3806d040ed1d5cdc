"""The version of this program, as pyproject.toml says it: nodes tell it, discs name it, stored files carry it."""

import tomllib
from pathlib import Path
from typing import Final

VERSION: Final = str(
    tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
)
