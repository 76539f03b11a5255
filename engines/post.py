"""The two optional graphs behind a bundle's decoder, and the size and rate that they make of its frames.

`smooth`: frames uint8 [N, H, W, 3], the frame before them `last` [1, H, W, 3] and `scene` int64 [1] -> k parts
`smoothed_0` … uint8 [N, H, W, 3], which follow each other, and `last_next`. It begins with `last`, puts k − 1 frames between
each two, and keeps the chunk's last frame for the next: every chunk gives k·N frames, and each frame comes one frame later
than without. scene: 0 the chunk goes on from `last`; 1 it is cut: `last` is shown until the new scene's first frame, and
nothing between; 2 there is no `last`: the first frame stands for it.

`upscale`: frames uint8 [N, H, W, 3] -> upscaled uint8 [N, s·H, s·W, 3]; with `smooth` it runs once a part.

N, H and W are those of the decoder. A bundle whose first chunk decodes to fewer frames (`decode_first`) has `smooth_first`
and `upscale_first` too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import UserError

if TYPE_CHECKING:
    from .bundle import Geometry, Graph

POST = ("smooth", "upscale")  # in the order in which they run
TIMES = (2, 4)
Choice = Literal["all", "smooth", "upscale", "none"]
CHOICES: tuple[Choice, ...] = ("all", "smooth", "upscale", "none")
GOES_ON, CUT, FIRST = 0, 1, 2  # what `scene` says


@dataclass(frozen=True)
class Output:
    """The picture that leaves a stream."""

    width: int
    height: int
    fps: int
    chunk_frames: int

    @property
    def chunk_seconds(self) -> float:
        return self.chunk_frames / self.fps

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at {self.fps} fps"


def decodes(name: str) -> bool:
    """Whether a graph runs in the decoder's lane, beside the denoising of the next chunk."""
    return name.partition("_")[0] in ("decode", *POST)


def times_of(graphs: Mapping[str, Graph]) -> int:
    """k of the graph `smooth`."""
    return sum(spec.name.startswith("smoothed_") for spec in graphs["smooth"].outputs)


def output_of(geometry: Geometry, graphs: Mapping[str, Graph], post: tuple[str, ...]) -> Output:
    """The picture with these of the post graphs."""
    times = times_of(graphs) if "smooth" in post else 1
    scale = graphs["upscale"].outputs[0].shape[1] // geometry.height if "upscale" in post else 1
    return Output(scale * geometry.width, scale * geometry.height, times * geometry.fps, times * geometry.chunk_frames)


def check_choice(choice: str | None, graphs: Mapping[str, Graph], path: object) -> None:
    """Raises UserError for a choice of post graphs that is unknown, or is of a graph that is not there."""
    if choice is not None and choice not in CHOICES:
        raise UserError(f"post {choice!r}: expected one of {', '.join(CHOICES)}")
    if choice in POST and choice not in graphs:
        raise UserError(f"{path}: has no graph {choice}: expected one by everframe post add")


def chosen_of(choice: str, graphs: Mapping[str, Graph]) -> tuple[str, ...]:
    """The post graphs that run, in their order."""
    return tuple(name for name in POST if name in graphs and choice in ("all", name))


def runs(name: str, post: tuple[str, ...]) -> bool:
    """Whether a graph is used in a stream with these of the post graphs: `smooth_first` with `smooth`."""
    kind = name.partition("_")[0]
    return kind not in POST or kind in post


def check_post(graphs: Mapping[str, Graph]) -> None:
    """Raises ValueError for post graphs that do not fit the decoder."""
    for name in POST:
        if (name in graphs and "decode_first" in graphs) != (f"{name}_first" in graphs):
            raise ValueError(f"graphs: {name}_first must be there exactly when there are {name} and decode_first")
    if not any(name in graphs for name in POST):
        return
    for suffix in ("", "_first"):
        if (decoder := graphs.get(f"decode{suffix}")) is None:
            continue
        frames = next((spec.shape for spec in decoder.outputs if spec.name == "frames"), [])
        if len(frames) != 4:
            raise ValueError(f"graphs.decode{suffix}: its frames are {frames}, post graphs expect [N, H, W, 3]")
        n, h, w, colours = frames
        if (graph := graphs.get(f"smooth{suffix}")) is not None:
            found = {spec.name: (spec.shape, spec.dtype) for spec in (*graph.inputs, *graph.outputs)}
            one = ([1, h, w, colours], "uint8")
            parts = {f"smoothed_{i}": (frames, "uint8") for i in range(len(graph.outputs) - 1)}
            want = {"frames": (frames, "uint8"), "last": one, "scene": ([1], "int64"), "last_next": one, **parts}
            if found != want or len(parts) not in TIMES:
                raise ValueError(f"graphs.smooth{suffix}: does not fit the decoder's frames {frames}")
        if (graph := graphs.get(f"upscale{suffix}")) is not None:
            found = {spec.name: (spec.shape, spec.dtype) for spec in (*graph.inputs, *graph.outputs)}
            want = [{"frames": (frames, "uint8"), "upscaled": ([n, s * h, s * w, colours], "uint8")} for s in TIMES]
            if found not in want:
                raise ValueError(f"graphs.upscale{suffix}: does not fit the decoder's frames {frames}")
