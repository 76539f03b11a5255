"""A file of weights beside a bundle's graphs, which grows as they are made: what is equal has one place in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

ALIGN = 4096  # so that a runtime can map a tensor where it lies
LEAST = 1024  # bytes; smaller tensors stay in the graph
SHARED = "weights.data"  # its name in a bundle


class DataFile:
    """The file; it is made when the first content comes."""

    def __init__(self, file: Path):
        self.file, self._end = file, 0
        self._places: dict[bytes, int] = {}  # hash of the content -> offset

    def place(self, content: bytes) -> int:
        """Offset of this content, which is written unless it is here already."""
        key = hashlib.sha256(content).digest()
        if key not in self._places:
            self._places[key] = self.append(content)
        return self._places[key]

    def append(self, content: bytes) -> int:
        """Write it, and return its offset."""
        offset = -(-self._end // ALIGN) * ALIGN
        with open(self.file, "r+b" if self._end else "wb") as f:
            f.seek(offset)
            f.write(content)
        self._end = offset + len(content)
        return offset
