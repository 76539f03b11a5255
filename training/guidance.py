"""How far the teachers of refine.py are moved away from the young one, by scene and variant (autoguidance, arXiv 2406.02507,
equation 1): what stands in a chunk, the mean over its latent frames, and what differs between them, which is what moves."""

from __future__ import annotations

import torch
from torch import Tensor

from astray import SKY
from distill import GUIDANCE

Pair = tuple[float, float]  # what stands, what moves

# A sea's above its horizon: with 0.9 suns were bright and no discs.
SKY_GUIDANCE = (0.2, 0.2)
# Of the scenes that the student learns; in the sea below the horizon. Of its teacher's noon 1 of what moves there gives 32 %
# of the next octave and 19 % of the motion, of which a student gets a part: of a moonlit sea guided by 0.2 and 2.2 the
# teacher had 2.4 times the renders' next octave, the student of the pair below 1.2.
GUIDED: dict[tuple[str, str], Pair] = {
    ("sea", "sunset"): (0.2, 2.0),
    ("sea", "noon"): (-0.2, 2.5),
    ("sea", "moonlit"): (0.3, 2.2),
    ("hills", "morning"): (0.8, 0.8),
    ("hills", "midday"): (0.8, 0.8),
    ("hills", "autumn"): (0.9, 0.9),
    ("reef", "turquoise"): (1.3, 1.3),
    ("reef", "deep"): (1.3, 1.3),
    ("reef", "lagoon"): (1.8, 1.8),
}
# Of those that it keeps: how much further than it was. More of the first where its pictures are too faint, of the second
# where they are too still. Of the sea's next octave 1 of the first gives 41 % and of its motion 8 %, 1 of the second 21
# and 11 %; of the hills' 21 and 8 %, 5 and 30 %; of the aurora's 80 and 6 %, none and 22 %; of the reef's 15 and 8 %, 15
# and 14 %. With neither a student loses detail: of the aurora's next octave a seventh in 950 steps.
FURTHER: dict[tuple[str, str], Pair] = {
    ("sea", "sunset"): (-0.3, 1.6),
    ("sea", "noon"): (-0.2, 1.8),
    ("sea", "moonlit"): (-0.8, 1.5),
    ("hills", "morning"): (0.7, 0.0),
    ("hills", "midday"): (0.6, -0.4),
    ("hills", "autumn"): (0.8, -0.2),
    ("lava", "red"): (0.3, 0.3),
    ("lava", "blue"): (0.1, 0.0),
    ("lava", "green"): (0.5, -1.2),
    ("city", "night"): (0.2, -0.8),
    ("city", "neon"): (0.3, 0.1),
    ("city", "dusk"): (0.3, -1.2),
    ("snow", "night"): (0.8, -0.6),
    ("snow", "dusk"): (1.2, -0.8),
    ("snow", "day"): (0.6, -0.2),
    ("aurora", "green"): (0.4, 0.0),
    ("aurora", "violet"): (0.4, -0.5),
    ("aurora", "rose"): (0.35, 0.0),
    ("fire", "orange"): (0.6, -0.5),
    ("fire", "blue"): (0.5, 0.0),
    ("fire", "red"): (0.7, -0.6),
    ("reef", "turquoise"): (0.8, 0.3),
    ("reef", "deep"): (0.5, 0.2),
    ("reef", "lagoon"): (0.9, -0.7),
}


def rows_of(one: tuple[str, str], like: Tensor, pair: Pair, sky: Pair) -> tuple[Tensor, Tensor]:
    """A pair in the rows of a chunk [.., 2h, 2w]; above a sea's horizon `sky`. Each [2h, 1]"""
    stands, moves = (torch.full((like.shape[-2], 1), measure, device=like.device) for measure in pair)
    if one[0] == "sea":
        above = round(SKY * len(stands))
        stands[:above], moves[:above] = sky
    return stands, moves


def guidance_of(one: tuple[str, str], like: Tensor) -> tuple[Tensor, Tensor]:
    """Of the teacher from which a student learns a scene and variant, as `rows_of`."""
    return rows_of(one, like, GUIDED.get(one, (GUIDANCE, GUIDANCE)), SKY_GUIDANCE)


def further_of(one: tuple[str, str], like: Tensor) -> tuple[Tensor, Tensor]:
    """Of what the student was where it keeps a scene and variant, as `rows_of`; a sea's sky stays as it is, for what moves
    there, guided, was the edge of its sun."""
    return rows_of(one, like, FURTHER.get(one, (0.0, 0.0)), (0.0, 0.0))
