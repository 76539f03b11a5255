"""How long work tells what it does: lines that stay, and steps that pass. Whoever calls it decides where they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Report:
    """line(text): a message. step(what, done, total): so many of total are done; total None: nobody knows how many."""

    line: Callable[[str], None] = lambda text: None
    step: Callable[[str, int, int | None], None] = lambda what, done, total: None


QUIET = Report()
