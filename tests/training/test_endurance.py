"""Loops, standstill and change of pictures that were made to loop, stand still or change."""

from __future__ import annotations

import numpy as np
import pytest

from endurance import APART, endurance

SECONDS = 120


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(128, 20, (n, 9, 16, 3))


def test_pictures_without_memory() -> None:
    found = endurance(noise(SECONDS), np.full(SECONDS, 3.0), usual=3.0)
    assert found.change == pytest.approx(20 * 2**0.5, rel=0.02)
    assert found.still == 0
    assert found.repetition > 0.95


@pytest.mark.parametrize("period", [APART, 17, 40])
def test_a_loop(period: int) -> None:
    pictures = np.concatenate([noise(period)] * (SECONDS // period + 1))[:SECONDS]
    assert endurance(pictures, np.ones(SECONDS), 1.0).repetition == pytest.approx(0, abs=1e-9)


def test_a_loop_with_a_little_noise() -> None:
    pictures = np.concatenate([noise(20)] * 6) + 0.1 * (noise(SECONDS, 1) - 128)
    assert endurance(pictures, np.ones(SECONDS), 1.0).repetition < 0.2


def test_a_freeze() -> None:
    motions = np.where(np.arange(SECONDS) < 90, 2.0, 0.1)
    assert endurance(noise(SECONDS), motions, 2.0).still == pytest.approx(0.25)
    still = np.repeat(noise(1), SECONDS, 0)
    assert endurance(still, np.zeros(SECONDS), 2.0).change == 0
