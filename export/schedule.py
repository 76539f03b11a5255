"""The few-step flow-matching schedule that is baked into the step graph, of either sampler.

renoise: every pass predicts x0, and fresh noise makes the next pass' input of it. unipc: a solver of the flow's equation,
which draws no noise after the chunk's own (`unipc.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .families import Sampler
from .unipc import increments

TRAIN_STEPS = 1000
LARGEST = 0.999  # of s, before the shift, where UniPC begins: it needs a signal to noise ratio above 0


FALLING = f"falling numbers from {TRAIN_STEPS} to 1"


def falling(steps: Sequence[int]) -> bool:
    """Whether a schedule can be made of these: they begin at most at TRAIN_STEPS, fall, and end above 0."""
    return (
        bool(steps) and steps[0] <= TRAIN_STEPS and steps[-1] >= 1 and all(b < a for a, b in itertools.pairwise(steps))
    )


@dataclass(frozen=True)
class Schedule:
    """Step list as the research code writes it, e.g. (1000, 750, 500, 250) with shift 5."""

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    context_noise: int = 0  # timestep of the commit pass
    # Share of fresh noise when x0 is noised again, 0 < eta <= 1. 1: all of it, as the research code does; less: the rest is
    # the noise that the model itself sees in x_t, so that the path is nearly the flow's own (η of DDIM, arXiv 2010.02502).
    eta: Annotated[float, Field(gt=0, le=1)] = 1.0  # at 0 the noise would be an unused input
    # Of the first chunk that is denoised, if it has steps of its own: Causal Forcing++ gives the sink more of them.
    first_steps: tuple[int, ...] | None = None
    sampler: Sampler = "renoise"

    def __post_init__(self) -> None:
        """Raises ValueError for numbers of which no schedule is made: a wrong step would not fail as an index into the table
        of sigmas, but wrap around."""
        for name, steps in (("steps", self.steps), ("first_steps", self.first_steps)):
            if steps is not None and not falling(steps):
                raise ValueError(f"{name} {','.join(map(str, steps))}: expected {FALLING}")
        if not 0 < self.shift < math.inf:
            raise ValueError(f"shift {self.shift}: expected a number above 0")
        if not 0 <= self.context_noise < TRAIN_STEPS:
            raise ValueError(f"context_noise {self.context_noise}: expected 0 to {TRAIN_STEPS - 1}")

    def timesteps(self) -> NDArray[np.float64]:
        """What the model is told in the denoising passes [n]. renoise: the shifted table, indexed at 1000 − step; unipc:
        1000·σ cut to whole numbers, as its authors' code does."""
        return np.floor(1000.0 * self.sigmas()) if self.sampler == "unipc" else self._warped(self.steps)

    def first_timesteps(self) -> NDArray[np.float64]:
        """The same of a first chunk with steps of its own; without, none. [m] or [0]"""
        return self._warped(self.first_steps or ())

    def _warped(self, steps: tuple[int, ...]) -> NDArray[np.float64]:
        table = np.append(1000.0 * shifted_sigmas(self.shift), 0.0)
        return table[TRAIN_STEPS - np.asarray(steps, np.int64)]

    def sigmas(self) -> NDArray[np.float64]:
        """σ of every denoising pass, [n]."""
        if self.sampler == "unipc":
            return shifted(LARGEST * np.asarray(self.steps, np.float64) / TRAIN_STEPS, self.shift)
        return self.timesteps() / 1000.0

    def increments(self) -> NDArray[np.float64]:
        """unipc: what every pass adds of the chunk's flow predictions so far, see `unipc.increments`. [n, n]"""
        return increments(self.sigmas())


def shifted(s: NDArray[np.float64], shift: float) -> NDArray[np.float64]:
    """s′ = shift·s / (1 + (shift − 1)·s)"""
    return shift * s / (1 + (shift - 1) * s)


def shifted_sigmas(shift: float) -> NDArray[np.float64]:
    """s from 1 towards 0 in 1000 steps, shifted. [1000]"""
    return shifted(np.linspace(1.0, 0.0, TRAIN_STEPS + 1)[:-1], shift)


FAMILY_SHIFTS = (5.0, 8.0, 3.0)  # of the models that are published


def warped_from(steps: tuple[int, ...], shift: float) -> tuple[tuple[int, ...], float] | None:
    """The evenly spaced steps and the shift of which these are the warped values, rounded or cut; None if they are none.

    Steps that are all multiples of 50 were written by hand and are never taken for warped ones.
    """
    if all(s % 50 == 0 for s in steps):
        return None
    plain = tuple(round(TRAIN_STEPS * (len(steps) - i) / len(steps)) for i in range(len(steps)))
    for candidate in (shift, *FAMILY_SHIFTS):
        for sampler in ("renoise", "unipc"):
            warped = 1000.0 * Schedule(plain, candidate, sampler=sampler).sigmas()
            if candidate != 1 and all(abs(w - s) < 1 for w, s in zip(warped, steps, strict=True)):
                return plain, candidate
    return None
