"""Pasts in which a stream has lost what its sinks still show, or has spoilt it: from them it has to come back.

A true past never teaches that: the chunks before agree with the sinks, and are nearer. So a sea loses its sun, and hills
their ground to that of others, from some chunk on, in what later chunks see; what they should be is the truth. Or a sea's
sun is faint, in pieces, or a little aside, from the first chunk on as often as later: what should follow is whole and round,
for what a stream has drawn badly in its first chunk stays in its sinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clips import Instance, size_of
from rollout import CHUNKS, Lose, nothing
from scenes import SUN, canvas, sun_of
from transformer import Batches

CELL = 8  # pixels of a latent's side
REACH = 4  # cells around the sun's own that are covered: its halo is wide
GROUND = 4 / 9  # of the height, from which on a hilly picture is ground, or the haze in front of it
SKY = 4 / 9  # of a sea's height: above its horizon
WHOLE = 0.3  # share of the sequences that lose nothing
FADED = 0.5  # how much of its sun a sea loses at least
SPOILT = 0.6  # share of the seas that lose something whose sun is spoilt, not covered
FAINT, PIECES = (0.2, 1.2), 0.6  # how strong a spoilt sun is, and how far its cells' strengths are apart at most
ABOVE, BELOW, DISC = 2.0, 0.5, 8.0  # what a sea's sky, its water and its sun count


@dataclass(frozen=True)
class Astray:
    """A sequence, as Batches.draw makes them; its scene and variant; what later chunks see of a chunk; and what counts how
    much [2h, 2w] where what they see tells where the sun is."""

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
    """Cells from a sun's own to the last that its disc may touch."""
    return round(SUN * chunk.shape[-2] + 1)


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


def with_spoilt_sun(chunk: Tensor, one: Instance, aside: int, by: tuple[int, int], strength: Tensor) -> Tensor:
    """A sea's sun [.., C, F, 2h, 2w], moved by so many rows and columns, each cell as strong over the sky that is so many
    cells beside it as given [C, 1, n, n]."""
    rows, columns = around(one, chunk, disc_reach(chunk))
    beside = chunk[..., rows, (columns + aside) % chunk.shape[-1]]
    moved = chunk.roll(by, (-2, -1))[..., rows, columns]
    out = chunk.clone()
    out[..., rows, columns] = beside + strength[..., : len(rows), : len(columns)] * (moved - beside)
    return out


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
    if spoilt and rng.random() < 0.5:
        lost_from = 0  # the sinks too
    side = 2 * disc_reach(truth) + 1
    pieces = 1 + float(rng.uniform(0, PIECES)) * torch.randn(truth.shape[1], 1, side, side)
    strength = (float(rng.uniform(*FAINT)) * pieces).to(truth)
    by = int(rng.integers(-1, 2)), int(rng.integers(-1, 2))

    def lose(chunk: Tensor, c: int) -> Tensor:
        if c < lost_from:
            return chunk
        if spoilt:
            return with_spoilt_sun(chunk, one, aside, by, strength)
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
