"""What each layer costs when it alone is quantised, and which ones to leave out.

From states of real float streams, one chunk is made with the original graph and with a graph in which one layer is
quantised: same history, same noise. The difference is that layer's own. Errors of different layers are taken as
independent, so their squares add; layers leave, the worst first, until the sum promises the wanted PSNR.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..engines.base import EngineOptions
from ..engines.bundle import Bundle
from ..runtime.measure.plots import pyplot
from ..runtime.stream import Stream
from .linears import Linear
from .observe import with_graphs
from .quantize import Range, quantise

GOAL = 38.0  # dB: three above the gate, because the estimate is one


@dataclass(frozen=True)
class Sensitivity:
    """Mean squared errors of one layer."""

    layer: str
    latent: float  # of x0, relative to the latents' variance
    frames: float  # of decoded frames, grey levels squared


@dataclass(frozen=True)
class Reference:
    """A state of a float stream and the chunk it makes next."""

    prompt: str
    seed: int
    state: tuple[dict[str, Any], dict[str, Any]]
    latent: np.ndarray
    frames: np.ndarray


def references(
    bundle: Bundle, prompts: Sequence[str], seed: int, after: int, options: EngineOptions | None = None
) -> list[Reference]:
    """One per prompt, with `after` chunks of history."""
    found = []
    for prompt in prompts:
        with Stream(bundle, prompt=prompt, seed=seed, overlap=False, verify=False, options=options) as stream:
            for _ in range(after):
                stream.next_chunk()
            state = stream.snapshot()
            chunk = stream.next_chunk()
        found.append(Reference(prompt, seed, state, chunk.latent, chunk.frames))
    return found


def measure(
    bundle: Bundle,
    linears: Sequence[Linear],
    found: Mapping[str, Range],
    precision: str,
    known: Sequence[Reference],
    work: Path,
    tell: Callable[[int, int], None],
    options: EngineOptions | None = None,
) -> list[Sensitivity]:
    """Every layer alone. tell(layers done, layers)."""
    results = []
    for number, linear in enumerate(linears):
        graph = "decode" if linear.conv else "step"
        model = onnx.load(bundle.graph_path(graph), load_external_data=False)
        # A large model's other weights are not read: its graph refers to the file that lies linked in `work`.
        quantise(model, [linear], bundle.path, precision, found, refer=True)
        changed = with_graphs(bundle, work, {graph: (graph, model, ())})
        latent, frames = [], []
        with Stream(changed, seed=known[0].seed, overlap=False, verify=False, options=options) as stream:
            for one in known:
                stream.restore(*one.state)
                chunk = stream.next_chunk()
                latent.append(np.mean((chunk.latent - one.latent) ** 2) / one.latent.var())
                frames.append(np.mean((chunk.frames.astype(np.float32) - one.frames) ** 2))
        results.append(Sensitivity(linear.name, float(np.mean(latent)), float(np.mean(frames))))
        tell(number + 1, len(linears))
    return results


def exclusions(results: Sequence[Sensitivity], goal: float = GOAL) -> list[str]:
    """Names of the layers to leave in float, the worst first."""
    budget = 255**2 / 10 ** (goal / 10)
    total, left = sum(r.frames for r in results), []
    for result in sorted(results, key=lambda r: -r.frames):
        if total <= budget:
            break
        total -= result.frames
        left.append(result.layer)
    return left


def plot(results: Sequence[Sensitivity], excluded: Sequence[str], file: Path) -> bool:
    """Error of every layer; False when matplotlib is not installed."""
    if (plt := pyplot()) is None:
        return False

    figure, axes = plt.subplots(2, 1, figsize=(max(6, 0.22 * len(results)), 6), sharex=True)
    colours = ["tab:red" if r.layer in excluded else "tab:blue" for r in results]
    axes[0].bar(range(len(results)), [r.latent for r in results], color=colours)
    axes[0].set_ylabel("x0: error / variance")
    axes[1].bar(range(len(results)), [r.frames for r in results], color=colours)
    axes[1].set_ylabel("frames: squared grey levels")
    axes[1].set_xticks(range(len(results)), [r.layer for r in results], rotation=90, fontsize=7)
    axes[0].set_title("each layer quantised alone (red: left in float)")
    for ax in axes:
        ax.set_yscale("log")
        ax.grid(alpha=0.3, axis="y")
    figure.tight_layout()
    figure.savefig(file, dpi=90)
    plt.close(figure)
    return True
