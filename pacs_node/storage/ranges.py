"""A file that is read from elsewhere by ranges of bytes."""

import io
from collections.abc import Callable
from typing import Any


class ObjectReader(io.RawIOBase):
    """Seekable reading of an object by ranges, a window at a time."""

    def __init__(self, read_range: Callable[[int, int], bytes], size: int) -> None:
        self._read_range = read_range
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = (0, self._position, self._size)[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        room = memoryview(buffer)
        last = min(self._position + len(room), self._size) - 1
        if last < self._position:
            return 0
        data = self._read_range(self._position, last)
        room[: len(data)] = data
        self._position += len(data)
        return len(data)
