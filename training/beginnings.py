"""Beginnings of many more clips than the pool has, of the scenes that need them, chosen by what should be seen in them.

What is missing in a stream's first chunk is missing for good. Of a clip only its first twelve frames are rendered and
encoded, a tenth of the work. One sun somewhere over the whole horizon is what this teacher didn't learn, nor one anywhere
near the middle (four of ten it drew in pieces or not at all); one in one place it can: a few good pictures in place of
many, as arXiv 2309.15807 tunes with. So a sea's sun is where all are, by less than a latent's cell, and of a reef's fish
nearly all are in the picture, for of these a stream shows less than it learnt from. Of some seas and hills the later chunks
are here too.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brushes import Canvas, Texture
from clips import JUDGES, SHOWN, Instance, drawn_far, frame_indices, size_of
from latents import PER_CLIP, encode_near_and_far, fill
from prompts import PROMPTS
from rollout import CHUNK
from run import WORK, progress_of
from scenes import FISH, PLAIN, SUN, along_reef, canvas, cover_of, life_of, render, sun_of
from settings import AUTOENCODER, CELL
from team import Team
from transformer import Batches
from weights import trained_autoencoder
from wishes import draw

FIRST = 1000  # seed: those before are the pools'
LEVEL = 0.27  # of the height, counted from above: about there stands a chosen sea's sun
AWAY = 0.3  # of a latent's cell that it is from there and from the middle, at most
OPEN = 0.35  # and the level above which its noise is a cloud no lower; of all, a half
SEEN = 6  # of seven fish, how many are in a chosen reef's first picture
LATER = {"sea": 60, "hills": 40}  # of each variant whose later chunks are here too
EACH = {"sea": 200, "hills": 200, "reef": 500}  # beginnings of each variant of a scene that is learnt from them,
KEPT = 50  # and of one that stays as it is
LEARNT = 0.7  # share of what is drawn that is of the former
ASKING = {"reef": 0.5}  # share of those that ask for something (wishes.py), of counts above all; of the other scenes:
ASKING_ELSE = 0.15


def fish_of(c: Canvas) -> int:
    """How many of a reef that asks for no count are in its first picture, all but a fin perhaps."""
    for _ in range(2):  # its textures
        Texture.drawn(c.rng)
    _, _, (along, _, _, size, _) = life_of(c, FISH)
    at = along_reef(c, along)
    return int(((at > size) & (at < c.aspect - size)).sum())


def seeds(scene: str, variant: str, count: int, portrait: bool = False) -> list[int]:
    """The first so many that are taken."""
    height, width = size_of(portrait)

    def taken(seed: int) -> bool:
        of = canvas(scene, variant, seed, height, width)
        if scene == "sea":
            _, across, down = sun_of(of)
            aside, below = abs(across - of.aspect / 2) * height / CELL, abs(down - LEVEL) * height / CELL
            return max(aside, below) < AWAY and cover_of(of) >= OPEN
        return scene != "reef" or portrait or fish_of(of) >= SEEN  # an upright one shows fewer

    free = (seed for seed in itertools.count(FIRST) if seed not in JUDGES)
    return list(itertools.islice(filter(taken, free), count))


def beginning(scene: str, variant: str, seed: int) -> Instance:
    scenes = list(PROMPTS)
    rng = np.random.default_rng([11, seed, scenes.index(scene), list(PROMPTS[scene]).index(variant)])
    asks = rng.random() < ASKING.get(scene, ASKING_ELSE)
    wish = draw(scene, variant, rng) if asks else PLAIN
    return Instance(scene, variant, seed, drawn_far(rng), wish)


def sun_cells(like: Tensor) -> tuple[slice, slice]:
    """The rows and columns of latents [.., 2h, 2w] where the chosen seas' suns are: the same of all."""
    height, width = like.shape[-2:]
    down, across = LEVEL * height, width / 2
    reach = SUN * height + AWAY
    return slice(int(down - reach), math.ceil(down + reach)), slice(int(across - reach), math.ceil(across + reach))


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

        shape = (len(shown), per_clip, AUTOENCODER.latent_channels, *(side // CELL for side in size))
        fill(path, shape, team, 1 if device == "cpu" else 8, encode)
    return np.load(path)


def later(
    scenes: Sequence[str],
    texts: dict[str, Tensor],
    device: str,
    team: Team,
    share: float = 1.0,
    portrait: bool = False,
) -> Batches:
    """Sequences of those scenes of LATER, near and far."""
    shown = listed({scene: LATER[scene] for scene in scenes}, share, portrait)
    latents = encoded("later", shown, lambda one: frame_indices(one.far), PER_CLIP, device, team, portrait)
    return Batches(latents, texts, device, shown=shown)


@dataclass(frozen=True)
class Drawn:
    """Some first chunks."""

    chunks: Tensor  # [B, C, F, 2h, 2w]
    text: Tensor  # [B, text_len, text_dim]
    kinds: list[tuple[str, str]]  # scene and variant

    @property
    def scenes(self) -> list[str]:
        return [scene for scene, _ in self.kinds]


class Beginnings:
    """First chunks of many clips, encoded once for the autoencoder as it is."""

    def __init__(
        self,
        scenes: Sequence[str],
        texts: dict[str, Tensor],
        device: str,
        team: Team,
        share: float = 1.0,
        portrait: bool = False,
    ):
        """scenes: those that are learnt from them."""
        each = {scene: EACH[scene] if scene in scenes else KEPT for scene in PROMPTS}
        shown = {scene: listed({scene: n}, share, portrait) for scene, n in each.items()}
        self.all = list(itertools.chain.from_iterable(shown.values()))
        self.texts = {k: v.to(device) for k, v in texts.items()}
        latents = [
            encoded(f"beginnings-{scene}", some, lambda _: torch.arange(4 * CHUNK), CHUNK, device, team, portrait)
            for scene, some in shown.items()
        ]
        self.latents = torch.from_numpy(np.concatenate(latents)).to(device)  # [n, F, C, 2h, 2w]
        self.rng = np.random.default_rng()
        of = [b.scene for b in self.all]
        shares = (LEARNT / len(scenes), (1 - LEARNT) / (len(PROMPTS) - len(scenes)))
        self.chances = np.array([shares[scene not in scenes] / of.count(scene) for scene in of])

    def draw(self, size: int, scenes: Sequence[str] = tuple(PROMPTS)) -> Drawn:
        """Of these scenes."""
        chances = self.chances * [b.scene in scenes for b in self.all]
        rows = self.rng.choice(len(self.all), size, p=chances / chances.sum()).tolist()
        text = torch.stack([self.texts[str(self.rng.choice(self.all[i].wordings))] for i in rows])
        kinds = [(self.all[i].scene, self.all[i].variant) for i in rows]
        return Drawn(self.latents[rows].float().transpose(1, 2), text, kinds)
