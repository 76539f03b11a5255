"""How the command line speaks."""

from __future__ import annotations

from rich.console import Console


def say(console: Console, line: str) -> None:
    """Print one message as it is: neither wrapped nor coloured by its words, so that a path in it can be copied."""
    console.print(line, highlight=False, soft_wrap=True)
