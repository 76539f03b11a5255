"""The runtime room: the loop that turns a bundle into endless video. Never imports torch.

from everframe.runtime import Stream, open_bundle

with Stream(open_bundle(), seed=7) as stream:
    for chunk in stream:
        ...  # chunk.frames: uint8 [4F, H, W, 3]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..engines.base import EngineOptions as EngineOptions
    from ..engines.bundle import Bundle as Bundle
    from ..engines.errors import UserError as UserError
    from .chunks import Chunk as Chunk
    from .chunks import Timings as Timings
    from .demo import DEMO_BUNDLE as DEMO_BUNDLE
    from .demo import open_bundle as open_bundle
    from .generation import PromptChange as PromptChange
    from .generation import generate as generate
    from .outputs import open_output as open_output
    from .prompts import TRANSITIONS as TRANSITIONS
    from .prompts import Transition as Transition
    from .stream import Stream as Stream

# Imported at the first use of a name: the command line's help, and whoever needs one module of this room, load no more.
_HOMES = {
    "EngineOptions": "..engines.base",
    "Bundle": "..engines.bundle",
    "UserError": "..engines.errors",
    "DEMO_BUNDLE": ".demo",
    "open_bundle": ".demo",
    "PromptChange": ".generation",
    "generate": ".generation",
    "TRANSITIONS": ".prompts",
    "Chunk": ".chunks",
    "Stream": ".stream",
    "Timings": ".chunks",
    "Transition": ".prompts",
    "open_output": ".outputs",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
