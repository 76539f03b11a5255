"""Beginnings of many more clips than the pool has, of the scenes that need them, and seas whose sun stands in the middle.

What is missing in a stream's first chunk is missing for good. Of a clip only its first twelve frames are rendered and
encoded, a tenth of the work. Seas are chosen: one sun somewhere over the whole horizon is what this teacher didn't learn,
one near the middle it can (a few good pictures in place of many, as arXiv 2309.15807 tunes with). Of some of these the
later chunks are here too.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from clips import SHOWN, Instance, drawn_far, frame_indices, size_of
from latents import PER_CLIP, encode_near_and_far, fill
from prompts import PROMPTS
from rollout import CHUNK
from run import WORK, progress_of
from scenes import PLAIN, canvas, cover_of, render, sun_of
from settings import AUTOENCODER
from team import Team
from transformer import Batches
from weights import trained_autoencoder
from wishes import draw

FIRST = 1000  # seed: those up to 4999 are no pool's and no judge's
MIDDLE = 0.15  # a chosen sea's sun is no further from the middle, in heights of the picture; of all, three in ten
OPEN = 0.35  # and the level above which its noise is a cloud no lower; of all, a half
LATER = {"sea": 80, "hills": 40}  # of each variant whose later chunks are here too
EACH = {"sea": 400, "reef": 700, "snow": 250, "city": 200, "hills": 100, "lava": 100, "aurora": 100, "fire": 100}
SHARE = {
    "sea": 0.35,
    "reef": 0.35,
    "snow": 0.07,
    "city": 0.07,
    "hills": 0.04,
    "lava": 0.04,
    "aurora": 0.04,
    "fire": 0.04,
}
ASKING = {"reef": 0.5}  # share of those that ask for something (wishes.py), of counts above all; of the other scenes:
ASKING_ELSE = 0.15


def seeds(scene: str, variant: str, count: int, portrait: bool = False) -> list[int]:
    """The first so many that are taken."""
    height, width = size_of(portrait)

    def taken(seed: int) -> bool:
        if scene != "sea":
            return True
        of = canvas(scene, variant, seed, height, width)
        _, across, _ = sun_of(of)
        return abs(across - width / height / 2) < MIDDLE and cover_of(of) >= OPEN

    return list(itertools.islice(filter(taken, itertools.count(FIRST)), count))


def beginning(scene: str, variant: str, seed: int) -> Instance:
    scenes = list(PROMPTS)
    rng = np.random.default_rng([11, seed, scenes.index(scene), list(PROMPTS[scene]).index(variant)])
    asks = rng.random() < ASKING.get(scene, ASKING_ELSE)
    wish = draw(scene, variant, rng) if asks else PLAIN
    return Instance(scene, variant, seed, drawn_far(rng), wish)


def listed(each: dict[str, int], share: float = 1.0, portrait: bool = False) -> list[Instance]:
    """So many of each variant, or a share of them; those of a smaller number are the first of a larger one's."""
    return [
        beginning(scene, variant, seed)
        for scene, n in each.items()
        for variant in PROMPTS[scene]
        for seed in seeds(scene, variant, max(1, round(share * n)), portrait)
    ]


def encoded(
    name: str,
    shown: list[Instance],
    frames: Callable[[Instance], Tensor],
    per_clip: int,
    device: str,
    team: Team,
    portrait: bool = False,
) -> np.ndarray:
    """Latents [n, per_clip, C, 2h, 2w] of those frames of clips, encoded once for the autoencoder as it is."""
    size, name = size_of(portrait), name + "-portrait" * portrait
    what = hashlib.sha256(f"{SHOWN} {shown}".encode()).hexdigest()[:8]
    path = WORK / f"{name}-{what}-{progress_of('autoencoder')}.npy"
    if not path.exists():
        ae = trained_autoencoder().to(device)

        def encode(rows: list[int]) -> Tensor:
            clips = [
                render(one.scene, one.variant, one.seed, frames(one), *size, one.wish)
                for one in map(shown.__getitem__, rows)
            ]
            return encode_near_and_far(ae, torch.stack(clips).permute(0, 1, 4, 2, 3).to(device))

        shape = (len(shown), per_clip, AUTOENCODER.latent_channels, *(side // 8 for side in size))
        fill(path, shape, team, 1 if device == "cpu" else 8, encode)
    return np.load(path)


def later(texts: dict[str, Tensor], device: str, team: Team, share: float = 1.0, portrait: bool = False) -> Batches:
    """Sequences of seas and hills, near and far."""
    shown = listed(LATER, share, portrait)
    latents = encoded("later", shown, lambda one: frame_indices(one.far), PER_CLIP, device, team, portrait)
    return Batches(latents, texts, device, shown=shown)


class Beginnings:
    """Latents [n, F, C, 2h, 2w] of first chunks, encoded once for the autoencoder as it is."""

    def __init__(self, texts: dict[str, Tensor], device: str, team: Team, share: float = 1.0, portrait: bool = False):
        self.all, self.device = listed(EACH, share, portrait), device
        self.texts = {k: v.to(device) for k, v in texts.items()}
        latents = encoded("beginnings", self.all, lambda _: torch.arange(4 * CHUNK), CHUNK, device, team, portrait)
        self.latents = torch.from_numpy(latents).to(device)
        self.rng = np.random.default_rng()
        scenes = [b.scene for b in self.all]
        self.chances = np.array([SHARE[scene] / scenes.count(scene) for scene in scenes])

    def draw(self, size: int, scenes: Sequence[str] = tuple(SHARE)) -> tuple[Tensor, Tensor, list[str]]:
        """Chunks [B, C, F, 2h, 2w], their texts [B, text_len, text_dim] and their scenes, which are of those."""
        chances = self.chances * [b.scene in scenes for b in self.all]
        rows = self.rng.choice(len(self.all), size, p=chances / chances.sum()).tolist()
        text = [self.texts[str(self.rng.choice(self.all[i].wordings))] for i in rows]
        return self.latents[rows].float().transpose(1, 2), torch.stack(text), [self.all[i].scene for i in rows]
