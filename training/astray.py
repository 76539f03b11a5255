"""Pasts in which a stream has lost what its sinks still show, or has spoilt it: from them it has to come back.

A true past never teaches that: the chunks before agree with the sinks, and are nearer. So a sea loses its sun, and hills
their ground to that of others, from some chunk on, in what later chunks see; what they should be is the truth. Or a sea's
sun is faint, in pieces, or one of two or three, from the first chunk on as often as later, or in that alone: what should
follow is the strongest of them, whole and round, for what a stream has drawn badly in its first chunk stays in its sinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clips import Instance, size_of
from rollout import CHUNKS, Lose, nothing
from scenes import SUN, canvas, sun_of
from settings import CELL
from transformer import Batches

REACH = 4  # cells around the sun's own that are covered: its halo is wide
GROUND = 4 / 9  # of the height, from which on a hilly picture is ground, or the haze in front of it
SKY = 4 / 9  # of a sea's height: above its horizon
WHOLE = 0.3  # share of the sequences that lose nothing
FADED = 0.5  # how much of its sun a sea loses at least
SPOILT = 0.6  # share of the seas that lose something whose sun is spoilt, not covered
FAINT, PIECES = (0.3, 1.1), 0.6  # how strong a spoilt sun is, and how far its cells' strengths are apart at most
AGAIN, WEAKER = 0.5, (0.3, 0.85)  # chance of another beside it, and how strong that is of its own strength
ABOVE, BELOW, DISC = 2.0, 0.5, 8.0  # what a sea's sky, its water and its sun count

Sun = tuple[tuple[int, int], Tensor]  # where one stands beside its place, rows and columns; how strong its cells are


@dataclass(frozen=True)
class Astray:
    """A sequence, as Batches.draw makes them; its scene and variant; what later chunks see of a chunk; and what counts how
    much [2h, 2w]."""

    drawn: tuple[Tensor, Tensor, list[list[int]]]
    kind: tuple[str, str]
    lose: Lose
    weight: Tensor


def place_of(one: Instance, chunk: Tensor) -> tuple[int, int, int]:
    """Of a sea's latent [.., 2h, 2w]: the row of its horizon, the column and the row of its sun."""
    height, width = size_of(portrait=chunk.shape[-2] > chunk.shape[-1])
    horizon, across, down = sun_of(canvas(one.scene, one.variant, one.seed, height, width))
    return int(horizon * height / CELL), int(across * height / CELL), int(down * height / CELL)


def around(one: Instance, chunk: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The rows [r, 1] and columns [c] that are no further from its sun."""
    _, across, down = place_of(one, chunk)
    sides = ((down, chunk.shape[-2]), (across, chunk.shape[-1]))
    rows, columns = (torch.arange(max(0, at - reach), min(end, at + reach + 1)) for at, end in sides)
    return rows[:, None], columns


def disc_reach(chunk: Tensor) -> int:
    """Cells from a sun's own to the last that is spoilt: one more than its disc may touch."""
    return round(SUN * chunk.shape[-2] + 2)


def sky_of(like: Tensor) -> Tensor:
    """What the rows of a sea's latent [.., 2h, 2w] count. [2h, 1]"""
    weight = torch.full((like.shape[-2], 1), BELOW, device=like.device)
    weight[: round(SKY * len(weight))] = ABOVE
    return weight


def without_sun(chunk: Tensor, one: Instance, aside: int, glitter: bool = False, share: float = 1.0) -> Tensor:
    """What is around a sea's sun [.., 2h, 2w] is covered, by a share or wholly, by what is beside it in the same rows, so
    many cells to the right; with its glitter or not."""
    horizon, _, down = place_of(one, chunk)
    _, columns = around(one, chunk, REACH)
    rows = slice(max(0, down - REACH), None if glitter else min(horizon, down + REACH + 1))
    beside = chunk[..., rows, :][..., (columns + aside) % chunk.shape[-1]]
    out = chunk.clone()
    out[..., rows, columns] = out[..., rows, columns].lerp(beside, share)
    return out


def with_spoilt_sun(chunk: Tensor, one: Instance, aside: int, suns: Sequence[Sun]) -> Tensor:
    """In place of a sea's sun [.., C, F, 2h, 2w] some like it, each moved by so many rows and columns, its cells as strong
    over the sky that is so many cells beside it as given [C, 1, n, n]. What is moved is what it adds to that sky."""
    rows, columns = around(one, chunk, disc_reach(chunk))
    beside = chunk[..., rows, (columns + aside) % chunk.shape[-1]]
    sun = chunk[..., rows, columns] - beside
    drawn = beside.clone()
    for (down, right), strength in suns:
        moved = torch.zeros_like(sun)
        (to_rows, rows_of), (to_columns, columns_of) = shifted(len(rows), down), shifted(len(columns), right)
        moved[..., to_rows, to_columns] = sun[..., rows_of, columns_of]
        drawn += strength[..., : len(rows), : len(columns)].to(chunk) * moved
    out = chunk.clone()
    out[..., rows, columns] = drawn
    return out


def shifted(n: int, by: int) -> tuple[slice, slice]:
    """Of n places: where those go that stay inside when all are moved, and where they were."""
    return slice(max(0, by), n + min(0, by)), slice(max(0, -by), n - max(0, by))


def spoilt_suns(rng: np.random.Generator, channels: int, side: int) -> list[Sun]:
    """Its own, a cell aside at most, and after it weaker ones."""
    strength, suns, reach = float(rng.uniform(*FAINT)), [], 1
    while True:
        pieces = 1 + float(rng.uniform(0, PIECES)) * torch.randn(channels, 1, side, side)
        by = int(rng.integers(-reach, reach + 1)), int(rng.integers(-reach, reach + 1))
        suns.append((by, strength * pieces))
        if len(suns) == 3 or rng.random() >= AGAIN:
            return suns
        strength, reach = strength * float(rng.uniform(*WEAKER)), 3


def with_ground(chunk: Tensor, other: Tensor) -> Tensor:
    ground = round(GROUND * chunk.shape[-2])
    return torch.cat([chunk[..., :ground, :], other[..., ground:, :]], -2)


def astray(batches: Batches) -> Astray:
    rng = batches.rng
    i = int(rng.choice(batches.trained))
    one, near = batches.shown[i], bool(rng.random() < 0.5)
    kind = one.scene, one.variant
    others = [k for k in batches.of[kind] if k != i]
    truth, other = (batches.chunks(k, near) for k in (i, int(rng.choice(others or [i]))))
    aside, glitter = (2 * REACH + 1) * int(rng.choice((-1, 1))), bool(rng.random() < 0.5)
    share, spoilt = float(rng.uniform(FADED, 1.0)), one.scene == "sea" and bool(rng.random() < SPOILT)
    lost_from = int(rng.integers(1, CHUNKS - 1))
    lost_to = CHUNKS
    if spoilt and rng.random() < 0.6:  # the sinks too, or them alone
        lost_from, lost_to = 0, 1 if rng.random() < 0.4 else CHUNKS
    suns = spoilt_suns(rng, truth.shape[1], 2 * disc_reach(truth) + 1)

    def lose(chunk: Tensor, c: int) -> Tensor:
        if not lost_from <= c < lost_to:
            return chunk
        if spoilt:
            return with_spoilt_sun(chunk, one, aside, suns)
        if one.scene == "sea":
            return without_sun(chunk, one, aside, glitter, share)
        return with_ground(chunk, other[None, c])

    weight = torch.ones(truth.shape[-2:], device=truth.device)
    if one.scene == "sea":
        weight *= sky_of(truth)
        weight[around(one, truth, disc_reach(truth))] = DISC
    first = 3 if near else one.far
    starts = [[0], *([first + 3 * c] for c in range(CHUNKS - 1))]
    drawn = truth[None], batches.prompt(i).expand(1, CHUNKS, -1, -1), starts
    return Astray(drawn, kind, nothing if rng.random() < WHOLE else lose, weight)
