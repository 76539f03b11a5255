"""What a clip is measured for, and how the clips of all prompts together stand against renders of the same prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from measures import (
    Frames,
    colour_distance,
    diversity,
    geometric,
    judder,
    laplacian,
    motion,
    octaves,
    picture,
    quantiles,
    tempo,
)
from things import things_of

COUNTED = {  # things, and the scene they are in; within a factor of 1.5 is the goal
    "fish": "reef",
    "fish size": "reef",
    "windows": "city",
    "window size": "city",
    "trees": "snow",
    "tree size": "snow",
}
FACTOR = 1.5


@dataclass(frozen=True)
class Figures:
    """Everything that is measured on the clips of one prompt, mean over the clips."""

    octaves: NDArray[np.float64]  # energy, finest first
    laplacian: float
    motion: float
    judder: float
    tempo: NDArray[np.float64]  # energy of change, fastest octave first
    colours: NDArray[np.float64]  # quantiles [3, n]
    diversity: float
    things: dict[str, float]


def measure(scene: str, clips: list[Frames]) -> Figures:
    """Energies are averaged before they are compared: a clip in which little happens must not weigh as much as one in
    which a lot does."""
    things = [things_of(scene, clip) for clip in clips]
    return Figures(
        octaves=np.mean([octaves(c) for c in clips], 0),
        laplacian=float(np.mean([laplacian(c) for c in clips])),
        motion=float(np.mean([motion(c) for c in clips])),
        judder=judder(clips),
        tempo=np.mean([tempo(c) for c in clips], 0),
        colours=np.mean([quantiles(c) for c in clips], 0),
        diversity=diversity([picture(c) for c in clips]),
        things={name: float(np.mean([t[name] for t in things])) for name in things[0]},
    )


def shares(made: Figures, true: Figures) -> dict[str, float]:
    """Ratios made/true (1: as much as in the renders), and the distance of the colours in grey levels."""
    fine, rate = made.octaves / true.octaves, made.tempo / true.tempo
    ratios = {
        "finest": float(fine[0]),
        "next": float(fine[1]),
        "third": float(fine[2]),
        "Laplacian": made.laplacian / true.laplacian,
        "motion": made.motion / true.motion,
        "judder": made.judder / true.judder,
        "fast": float(rate[0]),
        "slow": float(rate[2]),
        "colour": colour_distance(made.colours, true.colours),
    }
    if made.diversity and true.diversity:  # of one clip there is none
        ratios["diversity"] = made.diversity / true.diversity
    return ratios | {name: made.things[name] / value for name, value in true.things.items() if value}


@dataclass(frozen=True)
class Goal:
    text: str
    value: float
    met: bool


Row = dict[str, float]


def by_scene(rows: dict[tuple[str, str], Row]) -> dict[str, Row]:
    """Geometric means over the variants (of the colour distance, the mean)."""
    out: dict[str, Row] = {}
    for scene in dict.fromkeys(scene for scene, _ in rows):
        own = [row for (s, _), row in rows.items() if s == scene]
        out[scene] = {
            k: float(np.mean([r[k] for r in own])) if k == "colour" else geometric([r[k] for r in own])
            for k in own[0]
            if all(k in r for r in own)
        }
    return out


def factor(rows: dict[tuple[str, str], Row], scene: str, column: str) -> float:
    """How far off a scene is, by which factor its variants are in the mean, too much or too little: what one variant has too
    much of does not make good what another lacks. Infinitely, where one lacks all of what its renders have."""
    shares = [row[column] for (s, _), row in rows.items() if s == scene and column in row]
    return float(np.exp(np.mean(np.abs(np.log(shares))))) if shares and min(shares) > 0 else float("inf")


def goals(rows: dict[tuple[str, str], Row], named: tuple[int, int], prompts: int) -> list[Goal]:
    """The goals of a stream; `named`: how many scenes, and scenes with variants, were recognised."""
    scenes = dict.fromkeys(scene for scene, _ in rows)

    def least(column: str, mean: float, worst: float) -> Goal:
        values = [1 / factor(rows, scene, column) for scene in scenes]  # noise is no detail: too much is as bad
        text = f"{column} octave ≥ {mean} (geometric mean over scenes), no scene under {worst}"
        return Goal(text, geometric(values), geometric(values) >= mean and min(values) >= worst)

    off = max((factor(rows, scene, "motion") - 1 for scene in scenes), default=1.0)
    counts = [factor(rows, scene, name) for name, scene in COUNTED.items() if scene in scenes]
    wrong = sum(by > FACTOR for by in counts)
    disc = min((row["disc"] for row in rows.values() if "disc" in row), default=0.0)
    return [
        least("finest", 0.5, 0.25),
        least("next", 0.7, 0.25),
        Goal("motion within a factor of 1.2 in every scene: how far beyond 1 the largest is", off, off <= 0.2),
        Goal("sun or moon there in ≥ 95 % of frames, for every prompt that has one", disc, disc >= 0.95),
        Goal(f"of {len(counts)} counts and sizes outside a factor of {FACTOR}", wrong, wrong == 0),
        Goal(f"scenes named, of {prompts}", named[0], named[0] == prompts),
        Goal(f"scenes with variant named, of {prompts}", named[1], named[1] == prompts),
    ]
