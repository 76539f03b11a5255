"""Render the training clips once: a memory-mapped pool of uint8 frames, filled by several processes, resumable.

Each instance of a scene gets two clips:
  near  frames 0..59: the stream's first chunk (the sinks) and the four chunks after it;
  far   four chunks that start at a latent frame drawn log-uniformly up to 3e5 (21 hours of video),
        with two latent frames before them, so that the autoencoder's memory is warm as it is in a running stream.

    python training/clips.py --instances 1600 --workers 2 [--portrait]

One of three asks for something beyond scene and variant (wishes.py), so that any number of them is a fair share of all.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prompts import PROMPTS
from scenes import FPS, PLAIN, painter
from wishes import Wish, draw, wordings

WORK = Path(__file__).parent / "work"
NEAR, WARM, FAR = 60, 8, 48  # pixel frames
HEIGHT, WIDTH = 144, 256
HELD_OUT = 24  # clips without wishes, the last of the first 1,600, that no stage trains on
SHOWN = 2  # raised when an instance shows something else: pools and latents of before are not taken for these
JUDGES = range(5000, 10_000)  # seeds of judge.py, freetext.py, lasting.py and endurance.py, and of no training
UPRIGHT = 4800  # the first instance of those that stand upright


@dataclass(frozen=True)
class Instance:
    """What instance number i shows: scene, variant, wish, and the latent frame index at which its far clip starts."""

    scene: str
    variant: str
    seed: int
    far: int
    wish: Wish

    @property
    def wordings(self) -> tuple[str, ...]:
        """Those that training sees."""
        if self.wish:
            return wordings(self.scene, self.variant, self.wish)[:-1]
        return PROMPTS[self.scene][self.variant]


def drawn_far(rng: np.random.Generator) -> int:
    """The first latent frame of a chunk, log-uniform up to 3e5."""
    return int(np.exp(rng.uniform(np.log(15), np.log(3e5)))) // 3 * 3


def instance(index: int, wishes: bool = True) -> Instance:
    """wishes: False as the networks of docs/study.md were trained."""
    pairs = [(scene, variant) for scene, variants in PROMPTS.items() for variant in variants]
    scene, variant = pairs[index % len(pairs)]
    rng = np.random.default_rng([7, index])
    far = drawn_far(rng)
    asks = wishes and index // len(pairs) % 3 == 1  # of every variant
    wish = draw(scene, variant, rng) if asks else PLAIN
    return Instance(scene, variant, index // len(pairs), far, wish)


def unseen(clips: int) -> list[int]:
    """Those of so many that are held out."""
    return [i for i in range(min(clips, 1600)) if not instance(i).wish][-HELD_OUT:]


def frame_indices(far: int) -> torch.Tensor:
    return torch.cat([torch.arange(NEAR), torch.arange(4 * far - WARM, 4 * far + FAR)])


def trained(clips: int) -> list[int]:
    """The others."""
    held = set(unseen(clips))
    return [i for i in range(clips) if i not in held]


def pool_name(instances: int, portrait: bool = False) -> str:
    return f"{'portrait-' * portrait}{instances}-{SHOWN}"


def size_of(portrait: bool = False) -> tuple[int, int]:
    """Height and width in pixels."""
    return (WIDTH, HEIGHT) if portrait else (HEIGHT, WIDTH)


def pool_file(name: str, instances: int, portrait: bool = False) -> Path:
    return WORK / f"{name}-{pool_name(instances, portrait)}.npy"


def open_pool(instances: int, portrait: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(clips [instances, 116, H, W, 3] uint8, done [instances] uint8), both memory-mapped, made if missing. In portrait
    they are those from UPRIGHT on."""
    WORK.mkdir(parents=True, exist_ok=True)
    maps = []
    shapes = {"clips": (instances, NEAR + WARM + FAR, *size_of(portrait), 3), "clips-done": (instances,)}
    for name, shape in shapes.items():
        path = pool_file(name, instances, portrait)
        mode = "r+" if path.exists() else "w+"
        maps.append(np.lib.format.open_memmap(path, mode=mode, dtype=np.uint8, shape=None if mode == "r+" else shape))
    return maps[0], maps[1]


def load_pool(instances: int, portrait: bool = False) -> np.ndarray:
    return np.load(pool_file("clips", instances, portrait), mmap_mode="r")


def load_done(instances: int, portrait: bool = False) -> np.ndarray:
    return np.load(pool_file("clips-done", instances, portrait), mmap_mode="r")


def all_done(instances: int, portrait: bool = False) -> bool:
    return pool_file("clips-done", instances, portrait).exists() and bool(load_done(instances, portrait).all())


def fill(instances: int, first: int, step: int, portrait: bool = False) -> None:
    torch.set_num_threads(1)
    clips, done = open_pool(instances, portrait)
    for i in range(first, instances, step):
        if not done[i]:
            it = instance(i + UPRIGHT * portrait)
            paint = painter(it.scene, it.variant, it.seed, *size_of(portrait), it.wish)
            parts = [paint(part.double() / FPS) for part in frame_indices(it.far).split(29)]
            clips[i] = (torch.cat(parts).clamp(0, 1) * 255).round().byte().numpy()
            done[i] = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--portrait", action="store_true")
    args = parser.parse_args()
    open_pool(args.instances, args.portrait)
    context = multiprocessing.get_context("spawn")
    shares = [(args.instances, k, args.workers, args.portrait) for k in range(args.workers)]
    jobs = [context.Process(target=fill, args=share) for share in shares]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()


if __name__ == "__main__":
    main()
