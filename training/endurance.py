"""Does a stream go on changing? Ten minutes of a prompt of every scene beside ten minutes of its render.

    python training/endurance.py [--bundle B] [--minutes 10] [--scenes sea reef]

A second of video every second becomes a small picture. From these: how different the picture is ten seconds on, as a
share of the render's difference; how often it stands still; and how near it ever comes to a repetition, as the distance
at the best lag over that at the median lag (a loop: 0; chance: near 1).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from everframe.runtime import Stream, open_bundle

from measures import Frames, motion, picture
from prompts import PROMPTS
from scenes import FPS, render

# Frames of a second whose motion is measured: one of their four differences is across latent frames, as in a stream.
MOMENT = 5
APART = 10  # seconds between pictures that are compared, and the shortest loop that is looked for
STILL = 0.25  # of the median motion: less is standing still


@dataclass(frozen=True)
class Endurance:
    change: float  # root mean square difference of pictures APART seconds apart, in grey levels
    still: float  # share of the seconds with less than STILL of the median motion of a reference
    repetition: float  # distance at the best lag over that at the median lag


def distances(pictures: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """Mean distance of pictures [n, ...] that stand so many apart, for lags from `first` to half of them."""
    flat = pictures.reshape(len(pictures), -1)
    lags = range(first, len(flat) // 2 + 1)
    return np.array([np.sqrt(((flat[lag:] - flat[:-lag]) ** 2).mean(1)).mean() for lag in lags])


def endurance(pictures: NDArray[np.float64], motions: NDArray[np.float64], usual: float) -> Endurance:
    """pictures [seconds, ...], the motion within each second, and the motion that is usual for the scene."""
    away = distances(pictures, APART)
    return Endurance(
        change=float(away[0]),
        still=float((motions < STILL * usual).mean()),
        repetition=float(away.min() / np.median(away)) if np.median(away) else 0.0,
    )


def condense(seconds: list[Frames]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Seconds of video -> a picture of a moment of each (not of its mean, which moves less), and its motion."""
    return np.stack([picture(s[:1]) for s in seconds]), np.array([motion(s) for s in seconds])


def streamed(stream: Stream, seconds: int) -> list[Frames]:
    out, left = [], np.empty((0, 1, 1, 3), np.uint8)
    while len(out) < seconds:
        frames = stream.next_chunk().frames
        left = np.concatenate([left, frames]) if len(left) else frames
        while len(left) >= FPS and len(out) < seconds:
            out.append(left[:MOMENT].copy())  # a view would keep all of it
            left = left[FPS:]
    return out


def rendered(scene: str, variant: str, seed: int, seconds: int) -> list[Frames]:
    parts = [render(scene, variant, seed, torch.arange(MOMENT) + FPS * s) for s in range(seconds)]
    return [(255 * part).round().byte().numpy() for part in parts]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--scenes", nargs="*", default=list(PROMPTS))
    parser.add_argument("--seed", type=int, default=9000)
    args = parser.parse_args()
    seconds, bundle = round(60 * args.minutes), open_bundle(args.bundle)
    print(f"{'':8} {'change':>8} {'still':>8} {'repetition':>11}   the render's {'change':>8} {'repetition':>11}")
    for scene in args.scenes:
        variant = next(iter(PROMPTS[scene]))
        pictures, motions = condense(rendered(scene, variant, args.seed, seconds))
        usual = float(np.median(motions))
        true = endurance(pictures, motions, usual)
        with Stream(bundle, prompt=PROMPTS[scene][variant][0], seed=args.seed) as stream:
            made = endurance(*condense(streamed(stream, seconds)), usual)
        print(
            f"{scene:8} {made.change / true.change:8.2f} {made.still:8.3f} {made.repetition:11.2f}"
            f"   {'':12} {true.change:8.2f} {true.repetition:11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
