"""Settle the sun: whatever the noise of its first chunk, a sea's sun or moon is drawn in its one place, whole.

    python training/settle.py --steps 7100 [--minutes 25]

At σ = 1 noise says nothing of the picture, but the student reads a sun's place from it, for its teacher had seen suns
anywhere once: of one seed in five the sun was two blobs, faint or torn, mostly so in all three variants, and a stream keeps
what its first chunk has drawn. So there every step, from every noise, is drawn to the sun of one render of that variant and
wish, which fades out around it; all else of a sea's first chunk, the other scenes and all streams to what the student did
before (one in eight of these is a sea with the sun that it had, little beside the half of the steps that is of suns). What
it did is in training/work/distill-settled.safetensors, which has to be kept until it has learnt; remove it to settle
another student.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from everframe.export.wan import Wan

from astray import SKY
from beginnings import LEVEL, encoded, seeds
from clips import Instance, drawn_far, size_of
from distill import Teacher, rollout_loss
from phrases import phrase
from prompts import PROMPTS
from reword import Encoder, arguments, as_it_was, learn, reworded_loss, size_and_chunks
from rollout import CHUNK, COLUMNS, KV, ROWS, Tables
from scenes import canvas, cover_of
from team import Team
from weights import trained_transformer
from wishes import Wish, every

PEAK = 3e-4
REACH = 2.2  # cells of 8 pixels; the sun counts in full to nine tenths of it from its middle, a fifth at twice as far
COUNTS = 5.0  # what its place counts beside the rest
OF = 40  # seas, of which the one with the fewest clouds is taken
PLAIN = 0.5  # share of the seas, of which nothing is asked
TOLD = 0.5  # share of all that is told in a wording that training had, not in one of phrases.py


def around_sun(height: int, width: int) -> Tensor:
    """How much the cells of a sea belong to its sun: 1 where it is, fading out around it, 0 below the horizon. [2h, 2w]"""
    down, across = torch.arange(height) + 0.5 - LEVEL * height, torch.arange(width) + 0.5 - width / 2
    near = (1.5 * torch.exp(-(down[:, None].square() + across.square()) / (2 * REACH**2))).clamp(max=1)
    near[round(SKY * height) :] = 0
    return near


def open_sky(variant: str, portrait: bool) -> int:
    """The seed of the chosen sea (beginnings.py) that has the fewest clouds."""
    some, size = seeds("sea", variant, OF, portrait), size_of(portrait)
    return max(some, key=lambda seed: cover_of(canvas("sea", variant, seed, *size)))


def clear_seas(portrait: bool) -> list[Instance]:
    """One for each variant and wish without clouds."""
    return [
        Instance("sea", variant, seed, 0, wish)
        for variant, seed in {variant: open_sky(variant, portrait) for variant in PROMPTS["sea"]}.items()
        for wish in [Wish(), *every("sea", variant)]
        if wish.weather != "cloudy"
    ]


class Settled(Teacher):
    """What the student was, but with these suns, in first chunks: what follows keeps the sun that it sees."""

    def __init__(self, was: Wan, suns: Tensor, near: Tensor):
        """suns: [B, C, F, 2h, 2w]; near: how much of them there, [2h, 2w]"""
        super().__init__(was, guidance=0.0)
        self.suns, self.near = suns, near

    @torch.no_grad()
    def x0(self, x: Tensor, sigma: float, rope: tuple[Tensor, Tensor], contexts: list[KV], c: int) -> Tensor:
        return super().x0(x, sigma, rope, contexts, c).lerp(self.suns, self.near)


class Suns:
    """First chunks of `clear_seas`, rendered."""

    def __init__(self, tables: Tables, team: Team, portrait: bool):
        self.tables, self.all = tables, clear_seas(portrait)
        latents = encoded("suns", self.all, lambda _: torch.arange(4 * CHUNK), CHUNK, tables.device, team, portrait)
        self.latents = torch.from_numpy(latents).to(tables.device).float().transpose(1, 2)  # [n, C, F, 2h, 2w]
        self.near = around_sun(*self.latents.shape[3:]).to(tables.device)
        plain = [i for i, one in enumerate(self.all) if not one.wish]
        self.chances = np.full(len(self.all), (1 - PLAIN) / (len(self.all) - len(plain)))
        self.chances[plain] = PLAIN / len(plain)

    def loss(self, student: Wan, was: Wan, encode: Encoder, size: int, rng: np.random.Generator) -> Tensor:
        rows = rng.choice(len(self.all), size, p=self.chances).tolist()
        said = [
            str(rng.choice(one.wordings)) if rng.random() < TOLD else phrase("sea", one.variant, one.wish, rng)
            for one in map(self.all.__getitem__, rows)
        ]
        suns, text = self.latents[rows], encode(said, self.tables.device)[:, None]
        # A stream may begin far on, and the keys and values of later chunks are rotated as far.
        starts = [[0 if rng.random() < 0.5 else drawn_far(rng) for _ in rows]]
        batch, teacher = (torch.zeros_like(suns)[:, None], text, starts), Settled(was, suns, self.near)
        weight = 1 + (COUNTS - 1) * self.near
        return rollout_loss(student, teacher, self.tables, batch, 1, true=0.0, weight=weight)


def main() -> None:
    args = arguments(PEAK)
    team = Team(args.workers)
    torch.manual_seed(0)
    rng = np.random.default_rng()
    places = [Tables(args.device), Tables(args.device, size=(COLUMNS, ROWS))]
    suns = [Suns(tables, team, portrait) for tables, portrait in zip(places, (False, True), strict=True)]
    was = as_it_was(team, "settled").to(args.device)
    kept, student, encode = Teacher(was, guidance=0.0), trained_transformer("distill").to(args.device), Encoder()

    def loss_of(kind: str, at: int) -> Tensor:
        if kind == "suns":
            return suns[at].loss(student, was, encode, args.batch, rng)
        return reworded_loss(student, kept, places[at], encode, rng, *size_and_chunks(kind, args.batch), same=True)

    learn(args, team, student, ("suns", "first chunks", "suns", "streams"), loss_of)


if __name__ == "__main__":
    main()
