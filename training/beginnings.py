"""Beginnings of many more clips than the pool has, of the scenes that need them.

What is missing in a stream's first chunk is missing for good. Of a clip only its first twelve frames are rendered and
encoded, a tenth of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clips import Instance, size_of
from latents import encode_clip, fill
from prompts import PROMPTS
from rollout import CHUNK, COLUMNS, ROWS
from run import WORK, progress_of
from scenes import PLAIN, render
from settings import AUTOENCODER
from team import Team
from weights import trained_autoencoder
from wishes import draw

FIRST = 1000  # seed: those up to 1999 are no pool's and no judge's
EACH = {"sea": 900, "reef": 700, "snow": 250, "city": 200, "hills": 100, "lava": 100, "aurora": 100, "fire": 100}
SHARE = {
    "sea": 0.50,
    "reef": 0.20,
    "snow": 0.07,
    "city": 0.07,
    "hills": 0.04,
    "lava": 0.04,
    "aurora": 0.04,
    "fire": 0.04,
}
ASKING = {"reef": 0.5}  # share of those that ask for something (wishes.py), of counts above all; of the other scenes:
ASKING_ELSE = 0.15


def beginning(scene: str, variant: str, seed: int) -> Instance:
    scenes = list(PROMPTS)
    rng = np.random.default_rng([11, seed, scenes.index(scene), list(PROMPTS[scene]).index(variant)])
    asks = rng.random() < ASKING.get(scene, ASKING_ELSE)
    return Instance(scene, variant, seed, 0, draw(scene, variant, rng) if asks else PLAIN)


def listed(share: float = 1.0) -> list[Instance]:
    """All, or a share of them; those of a smaller number are the first of a larger one's."""
    counts = {scene: max(1, round(share * n)) for scene, n in EACH.items()}
    return [
        beginning(scene, variant, FIRST + i)
        for i in range(max(counts.values()))
        for scene, n in counts.items()
        if i < n
        for variant in PROMPTS[scene]
    ]


class Beginnings:
    """Latents [n, F, C, 2h, 2w] of first chunks, encoded once for the autoencoder as it is."""

    def __init__(self, texts: dict[str, Tensor], device: str, team: Team, share: float = 1.0):
        self.all, self.texts, self.device = listed(share), {k: v.to(device) for k, v in texts.items()}, device
        path = WORK / f"beginnings-{len(self.all)}-{progress_of('autoencoder')}.npy"
        shape = (len(self.all), CHUNK, AUTOENCODER.latent_channels, 2 * ROWS, 2 * COLUMNS)
        if not path.exists():
            ae = trained_autoencoder().to(device)

            def encode(rows: list[int]) -> Tensor:
                clips = [
                    render(b.scene, b.variant, b.seed, torch.arange(4 * CHUNK), *size_of(), b.wish)
                    for b in map(self.all.__getitem__, rows)
                ]
                return encode_clip(ae, torch.stack(clips).permute(0, 1, 4, 2, 3).to(device))

            fill(path, shape, team, 1 if device == "cpu" else 8, encode)
        self.latents = torch.from_numpy(np.load(path)).to(device)
        self.rng = np.random.default_rng()
        scenes = [b.scene for b in self.all]
        self.chances = np.array([SHARE[scene] / scenes.count(scene) for scene in scenes])

    def draw(self, size: int, scenes: Sequence[str] = tuple(SHARE)) -> tuple[Tensor, Tensor, list[str]]:
        """Chunks [B, C, F, 2h, 2w], their texts [B, text_len, text_dim] and their scenes, which are of those."""
        chances = self.chances * [b.scene in scenes for b in self.all]
        rows = self.rng.choice(len(self.all), size, p=chances / chances.sum()).tolist()
        text = [self.texts[str(self.rng.choice(self.all[i].wordings))] for i in rows]
        return self.latents[rows].float().transpose(1, 2), torch.stack(text), [self.all[i].scene for i in rows]
