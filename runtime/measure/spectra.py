"""What a design of the jitter gains over draws, from the spectrum alone: for a bundle, and for Wan2.1-1.3B."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from ...engines.bundle import Bundle, RopeSpec
from ..jitter import designed_jitter, far_cosine, few_bases, highest_return, stratified_jitter
from ..rope import axis_frequencies, draw_jitter, head_thetas

DRAWS = 8  # seeds over which the figures of a draw are averaged
LONGEST = 2000  # latent frames up to which a study searches a design: for more it takes minutes
Network = tuple[int, int, float, int, float]  # layers, heads, theta, temporal channels of a head, sigma
WAN: Network = (30, 12, 10000.0, 44, 0.8)


def epsilon_of(kind: str, rope: RopeSpec, layers: int, heads: int, reach: int) -> NDArray[np.float64]:
    """ε of a kind by the bundle's own seed: heads [heads]; layers, designed, bases-N [layers, heads]."""
    if kind.startswith("bases-"):
        return few_bases(int(kind.removeprefix("bases-")), layers, heads, rope.jitter_seed)
    if kind == "heads":
        return draw_jitter(heads, rope.jitter_seed)
    if kind == "layers":
        return stratified_jitter(layers, heads, rope.jitter_seed)
    design = rope.theta, rope.channels, rope.jitter_sigma, layers, heads, min(reach, LONGEST), rope.jitter_seed
    return found_once(*design)


found_once = cache(designed_jitter)  # every record of a study asks for its spectra again


def spectra_table(bundle: Bundle, reach: int) -> dict[str, dict[str, list[float]]]:
    """By network and kind of jitter: the highest R(Δ), mean over all heads and layers, for Δ from jitter.NEAR to reach, and
    its highest return."""
    net, rope = bundle.manifest.network, bundle.manifest.rope
    own = net.layers, net.heads, rope.theta, rope.channels, rope.jitter_sigma
    return {name: figures(*one, reach) for name, one in ((bundle.manifest.name, own), ("wan2.1-1.3b", WAN))}


@cache
def figures(layers: int, heads: int, theta: float, channels: int, sigma: float, reach: int) -> dict[str, list[float]]:
    """Of draws, means over DRAWS seeds; none: plain RoPE; independent: U[−1, 1] for every head of every layer."""
    kinds = {
        "none": [np.full(1, 0.0)],
        "heads": [draw_jitter(heads, seed) for seed in range(DRAWS)],
        "independent": [draw_jitter(layers * heads, seed) for seed in range(DRAWS)],
        "layers": [stratified_jitter(layers, heads, seed) for seed in range(DRAWS)],
        "designed": [designed_jitter(theta, channels, sigma, layers, heads, reach, 0)],
    }
    found = {}
    for kind, draws in kinds.items():
        curves = [far_cosine(axis_frequencies(head_thetas(theta, sigma, one), channels), reach) for one in draws]
        highest, back = (np.mean([f(curve) for curve in curves]) for f in (np.max, highest_return))
        found[kind] = [round(float(highest), 4), round(float(back), 4)]
    return found


def spectra_lines(bundle: Bundle, reach: int) -> list[str]:
    """The table for the terminal."""
    lines = []
    for name, rows in spectra_table(bundle, reach).items():
        told = ", ".join(f"{kind} {highest:.3f} {back:.3f}" for kind, (highest, back) in rows.items())
        lines.append(f"{name}: highest mean cosine and highest return up to frame {reach}: {told}")
    return lines
