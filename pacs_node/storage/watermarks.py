"""How full a disk may become: refuse before it is full, accept again only when there is room, tier before either."""

import re
from dataclasses import dataclass
from typing import Final

from standards.errors import PermanentError

_AMOUNT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|[kMGT]?B?)\s*", re.ASCII)
_UNITS: Final = {"": 1, "B": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Space:
    """An amount of a disk: bytes, or a share of the whole."""

    amount: int = 0
    percent: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Space":
        """``5%``, ``20GB``, ``500 MB`` or a plain number of bytes; empty is nothing. Raises: PermanentError."""
        if not text.strip():
            return cls()
        match = _AMOUNT.fullmatch(text)
        if match is None:
            raise PermanentError("invalid-setting", f"{text!r} is no amount of space: 5%, 20GB or bytes")
        number, unit = float(match[1]), match[2]
        if unit == "%":
            return cls(percent=min(number, 100.0))
        return cls(int(number * _UNITS[unit.rstrip("B") if unit != "B" else "B"]))

    def of(self, total: int) -> int:
        """In bytes, on a disk of ``total`` bytes."""
        return int(total * self.percent / 100) if self.percent is not None else self.amount


class Watermarks:
    """Whether a disk takes more: refused below ``refuse``, taken again above ``accept`` only (hysteresis)."""

    def __init__(self, refuse: Space, accept: Space = Space(), tier: Space = Space()) -> None:
        self.refuse = refuse
        self.accept = accept
        self.tier = tier
        self._refusing = False

    def refuses(self, total: int, free: int) -> bool:
        """Whether nothing more is taken with ``free`` of ``total`` bytes left; remembers what it said last."""
        low = self.refuse.of(total)
        high = max(low, self.accept.of(total) if self.accept != Space() else low + low // 5)
        self._refusing = free < (high if self._refusing else low)
        return self._refusing

    def wanted(self, total: int, free: int) -> int:
        """How many bytes tiering should free now: none while the disk is above its mark."""
        return max(0, self.tier.of(total) - free)
