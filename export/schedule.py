"""The few-step flow-matching schedule that is baked into the step graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Schedule:
    """Step list as the research code writes it, e.g. (1000, 750, 500, 250) with shift 5."""

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    context_noise: int = 0  # timestep of the commit pass

    def timesteps(self) -> NDArray[np.float64]:
        """The warped timesteps of the denoising passes: the shifted table, indexed at 1000 − step. [n]"""
        table = np.append(1000.0 * shifted_sigmas(self.shift), 0.0)
        return table[TRAIN_STEPS - np.asarray(self.steps)]

    def sigmas(self) -> NDArray[np.float64]:
        """σ of every denoising pass, [n]."""
        return self.timesteps() / 1000.0


def shifted_sigmas(shift: float) -> NDArray[np.float64]:
    """s from 1 towards 0 in 1000 steps, shifted: s′ = shift·s / (1 + (shift − 1)·s). [1000]"""
    s = np.linspace(1.0, 0.0, TRAIN_STEPS + 1)[:-1]
    return shift * s / (1 + (shift - 1) * s)
