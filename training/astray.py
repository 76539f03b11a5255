"""Pasts in which a stream has lost what its sinks still show: from them it has to come back.

A true past never teaches that: the chunks before agree with the sinks, and are nearer. So a sea loses its sun, and hills
their ground to that of others, from some chunk on, in what later chunks see; what they should be is the truth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clips import Instance, size_of
from rollout import CHUNKS, Lose, nothing
from scenes import canvas, sun_of
from transformer import Batches

CELL = 8  # pixels of a latent's side
REACH = 4  # cells around the sun's own that are covered: its halo is wide
GROUND = 8  # row of cells from which on a hilly picture is ground, or the haze in front of it
WHOLE = 0.35  # share of the sequences that lose nothing
FADED = 0.5  # how much of its sun a sea loses at least


def without_sun(chunk: Tensor, one: Instance, aside: int, glitter: bool = False, share: float = 1.0) -> Tensor:
    """What is around a sea's sun [.., 2h, 2w] is covered, by a share or wholly, by what is beside it in the same rows, so
    many cells to the right; with its glitter or not."""
    height, width = size_of()
    sun = sun_of(canvas(one.scene, one.variant, one.seed, height, width))
    horizon, across, down = (int(v * height / CELL) for v in sun)
    rows = slice(max(0, down - REACH), None if glitter else min(horizon, down + REACH + 1))
    columns = torch.arange(max(0, across - REACH), min(chunk.shape[-1], across + REACH + 1))
    beside = chunk[..., rows, :][..., (columns + aside) % chunk.shape[-1]]
    out = chunk.clone()
    out[..., rows, columns] = out[..., rows, columns].lerp(beside, share)
    return out


def with_ground(chunk: Tensor, other: Tensor) -> Tensor:
    return torch.cat([chunk[..., :GROUND, :], other[..., GROUND:, :]], -2)


def astray(batches: Batches) -> tuple[tuple[Tensor, Tensor, list[list[int]]], Lose, tuple[str, str]]:
    """A sequence, as Batches.draw makes them, what becomes of its chunks, and its scene and variant."""
    i = int(batches.rng.choice(batches.trained))
    one, near = batches.shown[i], bool(batches.rng.random() < 0.5)
    kind = one.scene, one.variant
    others = [k for k in batches.of[kind] if k != i]
    truth, other = (batches.chunks(k, near) for k in (i, int(batches.rng.choice(others or [i]))))
    lost_from = int(batches.rng.integers(1, CHUNKS - 1))
    aside, glitter = (2 * REACH + 1) * int(batches.rng.choice((-1, 1))), bool(batches.rng.random() < 0.5)
    share = float(batches.rng.uniform(FADED, 1.0))

    def lose(chunk: Tensor, c: int) -> Tensor:
        if c < lost_from:
            return chunk
        if one.scene == "sea":
            return without_sun(chunk, one, aside, glitter, share)
        return with_ground(chunk, other[None, c])

    first = 3 if near else one.far
    starts = [[0], *([first + 3 * c] for c in range(CHUNKS - 1))]
    drawn = truth[None], batches.prompt(i).expand(1, CHUNKS, -1, -1), starts
    return drawn, nothing if batches.rng.random() < WHOLE else lose, kind
