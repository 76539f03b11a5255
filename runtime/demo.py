"""Where the shipped demo bundle lives."""

from __future__ import annotations

from pathlib import Path

from ..engines.bundle import Bundle

DEMO_BUNDLE = Path(__file__).parent / "demo.everframe"


def open_bundle(path: str | Path | None = None) -> Bundle:
    """Open and verify a bundle; without a path, the shipped demo. Raises UserError."""
    return Bundle.open(DEMO_BUNDLE if path is None else path)
