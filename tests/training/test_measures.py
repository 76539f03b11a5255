"""Measures against pictures whose energy, motion and colours are known by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from measures import (
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

H, W, T = 96, 128, 32


def grey(planes: np.ndarray) -> np.ndarray:
    """[T, H, W] grey levels -> uint8 [T, H, W, 3]"""
    return np.repeat(planes.round().clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def wave(frequency: float, amplitude: float, angle: float = 0.0) -> np.ndarray:
    y, x = np.mgrid[:H, :W]
    along = math.cos(angle) * x + math.sin(angle) * y
    return grey((128 + amplitude * np.sin(2 * np.pi * frequency * along))[None])


@pytest.mark.parametrize(("frequency", "octave"), [(0.375, 0), (0.1875, 1), (0.09375, 2), (0.046875, 3)])
@pytest.mark.parametrize("angle", [0.0, 0.6, math.pi / 2])
def test_a_wave_has_half_its_squared_amplitude_in_its_octave(frequency: float, octave: int, angle: float) -> None:
    found = octaves(wave(frequency, 60, angle))
    assert found[octave] == pytest.approx(60**2 / 2, rel=0.03)
    assert np.delete(found, octave).sum() < 0.01 * found[octave]


def test_white_noise_fills_octaves_by_their_area() -> None:
    noise = np.random.default_rng(0).normal(128, 20, (T, H, W))
    rings = [math.pi * (4.0 ** -(k + 1) - 4.0 ** -(k + 2)) for k in range(4)]  # of the unit square of frequencies
    assert octaves(grey(noise)) == pytest.approx([400 * ring for ring in rings], rel=0.05)


def test_octaves_of_a_flat_picture() -> None:
    assert octaves(grey(np.full((1, H, W), 77.0))) == pytest.approx(np.zeros(4))


def test_laplacian_of_a_checkerboard() -> None:
    board = 100 + 10 * (-1.0) ** np.add.outer(np.arange(H), np.arange(W))
    assert laplacian(grey(board[None])) == pytest.approx((8 * 10) ** 2, rel=1e-3)


def test_motion_of_a_picture_that_brightens() -> None:
    assert motion(grey(np.arange(5.0)[:, None, None] * 3 + np.zeros((1, H, W)))) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize(("within", "between"), [(2, 2), (2, 5), (5, 2), (0, 0)])
def test_judder_of_a_picture_that_halts_and_jumps(within: int, between: int) -> None:
    steps = np.where(np.arange(24) % 4 == 0, between, within)
    steps[0] = 0
    moving = grey(np.cumsum(steps)[:, None, None] + np.zeros((1, H, W)))
    still = np.zeros_like(moving)  # of a clip in which nothing moves, nothing can be told
    for clips in ([moving], [moving, still]):
        assert judder(clips) == pytest.approx(between / within if within else 1.0, rel=0.02)


@pytest.mark.parametrize(("frequency", "octave"), [(0.375, 0), (0.1875, 1), (0.09375, 2)])
def test_tempo_of_a_pulse(frequency: float, octave: int) -> None:
    pulse = 128 + 50 * np.sin(2 * np.pi * frequency * np.arange(2 * T))
    found = tempo(grey(pulse[:, None, None] + np.zeros((1, H, W))))
    assert found[octave] == pytest.approx(50**2 / 2, rel=0.05)
    assert np.delete(found, octave).sum() < 0.1 * found[octave]


def test_colours_that_are_shifted() -> None:
    a = np.random.default_rng(0).integers(0, 200, (2, H, W, 3)).astype(np.uint8)
    b = a.copy()
    b[..., 0] += 30  # one channel of three
    assert colour_distance(quantiles(a), quantiles(b)) == pytest.approx(10, rel=0.01)
    assert colour_distance(quantiles(a), quantiles(a[:, ::-1, ::-1])) == 0  # where things stand does not matter


def test_diversity_of_flat_pictures() -> None:
    flat = [picture(grey(np.full((2, H, W), level))) for level in (50.0, 70.0, 70.0)]
    assert diversity(flat) == pytest.approx((20 + 20 + 0) / 3)
    assert diversity(flat[:1]) == 0


def test_geometric_mean() -> None:
    assert geometric([0.25, 1.0]) == pytest.approx(0.5)
