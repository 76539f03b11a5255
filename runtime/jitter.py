"""Bases of the multi-head RoPE jitter, one for every head of every layer: drawn so that no two coincide, or designed.

The paper draws ε_h ~ U[−1, 1] for every head and uses it in all layers (`rope.draw_jitter`). With one for every head of
every layer there are L·H bases in place of H; drawn independently, some of them would still coincide. *Stratified*:
[−1, 1] is cut into L·H equal parts and one ε is drawn from each; a layer gets one from each of H neighbourhoods, so that it
spans the range as the whole does. *Designed*: searched, so that the mean cosine stays low and never comes back far, up to
some reach.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..engines.progress import QUIET, Report
from .rope import axis_frequencies, head_thetas, mean_cosine

NEAR = 30  # latent frames: below, every spectrum is still near its start, and no ε changes that
GRID, CHOICES = 1024, 3  # values of ε that a design chooses from, at least, and to every head
SWEEPS = 8


def stratified_jitter(layers: int, heads: int, seed: int) -> NDArray[np.float64]:
    """ε in [−1, 1], [layers, heads]: one from each of layers·heads equal parts, in every layer one from each of `heads`."""
    draw = np.random.Generator(np.random.Philox(seed))
    return spread(one_in_each(layers * heads, draw).reshape(heads, layers), draw)


def few_bases(count: int, layers: int, heads: int, seed: int) -> NDArray[np.float64]:
    """ε in [−1, 1], [layers, heads], only so many different ones, one from each of as many equal parts; as many heads with
    each, to one, anywhere in the network. What the number of bases is worth shows in one network then."""
    draw = np.random.Generator(np.random.Philox(seed))
    values = one_in_each(count, draw)
    return values[draw.permutation(np.arange(layers * heads) % count)].reshape(layers, heads)


def one_in_each(count: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """A number from each of so many equal parts of [−1, 1], rising."""
    return -1.0 + 2.0 * (np.arange(count) + draw.uniform(size=count)) / count


def spread(values: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """values [heads, layers], each row a neighbourhood -> [layers, heads]: every layer gets one of each, in any order."""
    return draw.permuted(draw.permuted(values, axis=1).T, axis=1)


def far_cosine(frequencies: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    """R(Δ), mean over all spectra [..., K], for Δ = NEAR … reach latent frames."""
    flat, distances = frequencies.reshape(-1, frequencies.shape[-1]), np.arange(NEAR, reach + 1)
    return np.mean([mean_cosine(one, distances) for one in flat], 0)


def highest_return(cosine: NDArray) -> NDArray:
    """How far a curve [..., n] comes back above the lowest it has been at before: what a query would mistake for near."""
    return (cosine - np.minimum.accumulate(cosine, -1)).max(-1)


def designed_jitter(
    theta: float, channels: int, sigma: float, layers: int, heads: int, reach: int, seed: int, report: Report = QUIET
) -> NDArray[np.float64]:
    """ε in [−1, 1], [layers, heads], no two the same, that make R(Δ), mean over all of them, small at strength sigma: its
    highest value for Δ from NEAR to reach, plus its highest return.

    (The value alone is largest at Δ = NEAR; made small for itself, all bases crowd at the two ends and realign.) From the
    stratified draw of `seed` on, one ε after the other is exchanged for the value of a grid, not in use yet, that leaves the
    sum lowest, until a sweep improves nothing. The same arguments give the same ε.
    """
    start = stratified_jitter(layers, heads, seed).ravel()
    # Whole cells to a part of the draw, which takes no cell twice.
    size = len(start) * max(CHOICES, -(-GRID // len(start)))
    grid = -1.0 + 2.0 * (np.arange(size) + 0.5) / size
    spectra = axis_frequencies(head_thetas(theta, sigma, grid), channels)
    share = np.stack([far_cosine(one, reach) for one in spectra]).astype(np.float32) / len(start)
    draw = np.random.Generator(np.random.Philox(seed))
    chosen = ((start + 1.0) / 2.0 * size).astype(np.int64)
    for sweep in range(SWEEPS):
        improved = False
        for done, place in enumerate(draw.permutation(len(chosen))):
            report.step(f"searching the jitter's bases, sweep {sweep + 1} of at most {SWEEPS}", done, len(chosen))
            others = np.delete(chosen, place)
            curves = share + share[others].sum(0)
            height = curves.max(1) + highest_return(curves)
            now = height[chosen[place]]
            height[others] = np.inf
            if height.min() < now - 1e-6:
                chosen[place], improved = int(height.argmin()), True
        if not improved:
            break
    return spread(np.sort(grid[chosen]).reshape(heads, layers), draw)
