"""The ways to fill the temporal tables that the sink-collapse study compares, and which of them a bundle can do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...engines.bundle import Bundle, Geometry, RopeSpec
from ...engines.errors import UserError
from ..rope import axis_frequencies, head_frequencies, head_thetas, stretched_frequencies
from .spectra import epsilon_of

SIGMAS = (0.0, 0.2, 0.5, 0.8)  # jitter strengths
STRETCHED = ("pi", "ntk", "yarn", "riflex")
FOLLOWING = ("relative", "relative-jitter", "horizon")  # by a bundle exported with --rope relative
JITTERED = ("heads", "layers", "designed")  # by a bundle with tables of every layer, --jitter-by layer
FEW = re.compile(r"bases-[1-9]\d{0,5}")  # by the same: so many different bases
OTHERS = (*STRETCHED, *FOLLOWING, *JITTERED)


@dataclass(frozen=True)
class Variant:
    """One way to fill the temporal tables.

    jitter: the bundle's own ε at strength sigma. heads: the paper's draw, a base a head; layers: the stratified draw, a base
    for every head of every layer; designed: searched up to the length of the stream, at most LONGEST; bases-N: N different
    ones over all heads; these at the bundle's strength. relative: sinks right behind the window, without jitter;
    relative-jitter: with the bundle's; horizon: without, at the end of what the model was trained to reach. pi, ntk, yarn,
    riflex: the spectrum stretched.
    """

    method: str
    sigma: float = 0.0  # of the jitter

    @property
    def label(self) -> str:
        return f"jitter {self.sigma:g}" if self.method == "jitter" else self.method

    def frequencies(self, rope: RopeSpec, trained: int, reach: int) -> NDArray[np.float64]:
        """ω of every head, [heads, channels/2], or of every head of every layer, [layers, heads, channels/2]."""
        if self.method in STRETCHED:
            stretched = stretched_frequencies(self.method, rope.theta, rope.channels, trained, reach)
            return np.repeat(stretched[None], np.shape(rope.epsilon)[-1], 0)
        if self.method in ("jitter", "relative", "horizon"):
            return head_frequencies(rope, self.sigma)
        if self.method == "relative-jitter":
            return head_frequencies(rope, rope.jitter_sigma)
        layers, heads = np.shape(rope.epsilon)
        epsilon = epsilon_of(self.method, rope, layers, heads, reach)
        return axis_frequencies(head_thetas(rope.theta, rope.jitter_sigma, epsilon), rope.channels)

    def distance(self, geometry: Geometry, trained: int) -> int | None:
        """Of sinks that follow the window; None: they stay."""
        if self.method == "horizon":
            return max(geometry.behind, trained - geometry.chunk)
        return geometry.behind if self.method in FOLLOWING else None


def variants(sigmas: Sequence[float], others: Sequence[str]) -> list[Variant]:
    """Raises UserError for a sigma out of range or an unknown method."""
    for sigma in sigmas:
        if not 0 <= sigma < 1:
            raise UserError(f"sigma {sigma}: expected 0 <= sigma < 1")
    for other in others:
        if other not in OTHERS and not FEW.fullmatch(other):
            raise UserError(f"method {other!r}: expected one of {', '.join(OTHERS)}, or bases-N")
    return [*(Variant("jitter", s) for s in sigmas), *(Variant(o) for o in others)]


def of_layers(method: str) -> bool:
    """Whether it needs tables of every layer."""
    return method in JITTERED or bool(FEW.fullmatch(method))


def fitting(bundle: Bundle, methods: Sequence[str]) -> list[str]:
    """The methods that the bundle can do; those that its σ of 0 makes the same as others are not among them."""
    return [method for method in methods if not lack(bundle, method)]


def lack(bundle: Bundle, method: str) -> str:
    """Why a method does not fit the bundle; empty: it does."""
    inputs = {spec.name: spec.shape for spec in bundle.manifest.graphs["step"].inputs}
    heads = bundle.manifest.network.layers * bundle.manifest.network.heads
    if (method == "relative-jitter" or of_layers(method)) and not bundle.manifest.rope.jitter_sigma:
        return "has a jitter of 0, at which it is no other; export it with --jitter above 0"
    if method in FOLLOWING and "sink_cos" not in inputs:
        return "has no tables for it; export it with --rope relative"
    if of_layers(method) and len(inputs["rope_cos"]) != 4:
        return "has no tables for it; export it with --jitter-by layer"
    if FEW.fullmatch(method) and int(method.removeprefix("bases-")) > heads:
        return f"has {heads} heads in all its layers, no more bases than that"
    return ""
