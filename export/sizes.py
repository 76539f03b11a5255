"""The numbers that a network is made of, whichever file said them."""

from __future__ import annotations

from collections.abc import Iterable


def check_sizes(sizes: Iterable[tuple[str, object]]) -> None:
    """Raises ValueError for one, by its name, that is no whole number above 0."""
    for name, value in sizes:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} {value!r}: expected a whole number above 0")
