"""The command line of the whole house. `app.py` finds each room's commands when one of them is asked for."""

from __future__ import annotations


def main() -> None:
    """Entry point of `everframe`."""
    from .app import run

    run()
