"""Numbers that no command can mean, refused for all commands in one place: nan, infinities, and absurdly large ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ...engines.errors import UserError

LARGEST_FLOAT, LARGEST_INT = 1e9, 2**64  # seconds of thirty years; seeds


def guard(command: Any) -> Any:
    """The command, and all below it, with their options' numbers checked before they run."""
    for below in getattr(command, "commands", {}).values():
        guard(below)
    if command.callback is not None:
        command.callback = _checked(command.callback)
    return command


def check_number(name: str, value: float) -> None:
    """Raises UserError."""
    most = LARGEST_FLOAT if isinstance(value, float) else LARGEST_INT
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{name} {value}: expected a finite number")
    if abs(value) > most:
        shown = f"{value:g}" if isinstance(value, float) else f"with {len(str(abs(value)))} digits"
        raise UserError(f"--{name} {shown}: expected at most {most:g}")


def _checked(callback: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(callback)
    def run(*args: Any, **options: Any) -> Any:
        for name, value in options.items():
            for one in value if isinstance(value, list | tuple) else (value,):
                if isinstance(one, int | float) and not isinstance(one, bool):
                    check_number(name.replace("_", "-"), one)
        return callback(*args, **options)

    return run
