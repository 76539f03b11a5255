"""The runtime room: the loop that turns a bundle into endless video. Never imports torch.

from everframe.runtime import Stream, open_bundle

with Stream(open_bundle(), seed=7) as stream:
    for chunk in stream:
        ...  # chunk.frames: uint8 [4F, H, W, 3]
"""

from ..engines.base import EngineOptions
from ..engines.bundle import Bundle
from ..engines.errors import UserError
from .demo import DEMO_BUNDLE, open_bundle
from .stream import TRANSITIONS, Chunk, Stream, Timings, Transition
from .video import open_output

__all__ = [
    "DEMO_BUNDLE",
    "TRANSITIONS",
    "Bundle",
    "Chunk",
    "EngineOptions",
    "Stream",
    "Timings",
    "Transition",
    "UserError",
    "open_bundle",
    "open_output",
]
