"""Name the scene of a video: nearest class by simple statistics, learnt from rendered clips alone.

    python training/judge.py [--bundle B]      generates every prompt of the bank and prints what each is taken for

A clip becomes the mean colour of 8×5 tiles and the mean absolute change of each tile per frame. Classes are
(scene, variant); the distance is Euclidean after scaling every feature by its deviation within classes. The judge never
sees a generated frame before it judges, and is itself tested on held-out rendered clips.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from everframe.runtime import Stream, open_bundle

from scenes import PROMPTS, render

CLASSES = [(scene, variant) for scene, variants in PROMPTS.items() for variant in variants]
TILES = (5, 8)


def features(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """frames [T, H, W, 3] uint8 -> [160]"""
    _, h, w, _ = frames.shape
    rows, columns = TILES
    h, w = h // rows * rows, w // columns * columns

    def tiled(values: NDArray) -> NDArray:
        return values.reshape(len(values), rows, h // rows, columns, w // columns, -1).mean((0, 2, 4))

    x = frames[:, :h, :w].astype(np.float64) / 255
    motion = np.abs(np.diff(x, axis=0)).mean(-1, keepdims=True)
    return np.concatenate([tiled(x).ravel(), 4 * tiled(motion).ravel()])


def rendered(scene: str, variant: str, seed: int) -> NDArray[np.uint8]:
    frames = render(scene, variant, seed, torch.arange(12) + 37 * seed)
    return (frames * 255).round().byte().numpy()


class Judge:
    def __init__(self, examples: int = 10, first_seed: int = 5000):
        rows = [np.stack([features(rendered(s, v, first_seed + i)) for i in range(examples)]) for s, v in CLASSES]
        self.means = np.stack([r.mean(0) for r in rows])
        self.scale = np.sqrt(np.mean([r.var(0) for r in rows], 0)) + 0.02

    def name(self, frames: NDArray[np.uint8]) -> tuple[str, str]:
        """The (scene, variant) that the clip looks most like."""
        distance = (((features(frames) - self.means) / self.scale) ** 2).sum(1)
        return CLASSES[int(distance.argmin())]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    judge, bundle = Judge(), open_bundle(args.bundle)
    scenes = variants = 0
    for prompt in bundle.manifest.prompts:
        true = next((s, v) for s, v in CLASSES if prompt in PROMPTS[s][v])
        with Stream(bundle, prompt=prompt, seed=args.seed) as stream:
            clips = [stream.next_chunk().frames for _ in range(args.chunks)]
        taken = judge.name(clips[-1])
        scenes, variants = scenes + (taken[0] == true[0]), variants + (taken == true)
        print(f"{'ok ' if taken == true else 'no '} {prompt}: {'/'.join(taken)}")
    n = len(bundle.manifest.prompts)
    print(f"scene right for {scenes} of {n} prompts, scene and variant for {variants}")


if __name__ == "__main__":
    main()
