from __future__ import annotations

import cmath
import math
from fractions import Fraction

import numpy as np
import pytest

from everframe.runtime.rope import (
    axis_frequencies,
    draw_jitter,
    head_thetas,
    mean_cosine,
    phase_concentration,
    split_head_dim,
    stretched_frequencies,
    temporal_tables,
)


def test_wan_split() -> None:
    assert split_head_dim(128) == (44, 42, 42)


@pytest.mark.parametrize("sigma", [0.0, 0.8])
@pytest.mark.parametrize("position", [0, 7, 132, 10**6, 10**8 + 1])
def test_tables_follow_the_formula(sigma: float, position: int) -> None:
    heads, channels, theta = 3, 44, 10000.0
    epsilon = draw_jitter(heads, seed=5)
    cos, sin = temporal_tables(position + np.arange(2), axis_frequencies(head_thetas(theta, sigma, epsilon), channels))
    assert cos.shape == sin.shape == (heads, 2, channels // 2)
    for h in range(heads):
        for f in range(2):
            for j in range(channels // 2):
                base = theta * (1 + sigma * float(epsilon[h]))
                omega = base ** (-2 * j / channels)
                # the angle modulo 2π in exact rational arithmetic on the float64 ω
                turn = Fraction(omega) * (position + f) % (2 * Fraction(math.pi))
                # float64 keeps the product to 1 part in 2^53: at 10^8 frames that is 1e-8 of a radian
                tolerance = 1e-7 + abs(omega * position) * 2**-52
                assert abs(cos[h, f, j] - math.cos(turn)) < tolerance + 1e-7
                assert abs(sin[h, f, j] - math.sin(turn)) < tolerance + 1e-7


def test_jitter_is_uniform_fixed_by_its_seed_and_plain_without_sigma() -> None:
    epsilon = draw_jitter(20000, seed=1)
    assert (epsilon == draw_jitter(20000, seed=1)).all()
    assert (epsilon != draw_jitter(20000, seed=2)).any()
    assert abs(epsilon.min() + 1) < 1e-3
    assert abs(epsilon.max() - 1) < 1e-3
    assert abs(epsilon.var() - 1 / 3) < 0.01
    assert (head_thetas(10000.0, 0.0, epsilon) == 10000.0).all()


def test_published_collapse_frames_are_phase_peaks() -> None:
    """LoL names latent frames 132 and 201; there the mean cosine of the Wan spectrum is largest within ±30 frames."""
    omega = axis_frequencies(10000.0, 44)
    mean_cosine = np.cos(np.arange(300)[:, None] * omega).mean(1)
    for frame, value in ((132, 0.541), (201, 0.544)):
        assert mean_cosine[frame] == pytest.approx(value, abs=5e-4)
        assert mean_cosine[frame - 30 : frame + 31].argmax() == 30


def test_phase_concentration_by_complex_sums() -> None:
    """Against the sum of unit phasors; and the Wan spectrum's published peaks."""
    omega = axis_frequencies(10000.0, 44)
    distances = np.arange(1, 300)
    direct = [abs(sum(cmath.exp(1j * w * d) for w in omega)) / 22 for d in distances.tolist()]
    concentration = phase_concentration(omega, distances)
    assert concentration == pytest.approx(direct, abs=1e-12)
    for frame, value in ((107, 0.576), (133, 0.557), (163, 0.559), (201, 0.553)):
        assert concentration[frame - 1] == pytest.approx(value, abs=6e-4)
        assert concentration[frame - 6 : frame + 5].argmax() == 5
    assert mean_cosine(omega, distances) == pytest.approx([np.cos(d * omega).mean() for d in distances])


def test_jitter_lowers_the_mean_over_heads_at_the_collapse_frames() -> None:
    epsilon = np.linspace(-1, 1, 12)
    heads = mean_cosine(axis_frequencies(head_thetas(10000.0, 0.8, epsilon), 44), [132, 201])
    plain = mean_cosine(axis_frequencies(10000.0, 44), [132, 201])
    assert (heads.mean(0) < plain - 0.08).all()


@pytest.mark.parametrize("reach", [21, 84, 600])
def test_stretched_spectra(reach: int) -> None:
    trained, channels, theta = 21, 44, 10000.0
    s, omega = reach / trained, [theta ** (-2 * j / 44) for j in range(22)]
    spectra = {m: stretched_frequencies(m, theta, channels, trained, reach) for m in ("pi", "ntk", "yarn", "riflex")}
    assert spectra["pi"] == pytest.approx([w / s for w in omega])
    assert spectra["ntk"] == pytest.approx([(theta * s ** (44 / 42)) ** (-2 * j / 44) for j in range(22)])
    assert spectra["ntk"][-1] == pytest.approx(omega[-1] / s)  # NTK stretches the slowest pair exactly by s
    changed = np.flatnonzero(np.abs(spectra["riflex"] - omega) > 1e-12)
    assert len(changed) <= 1
    if reach > trained:
        period = 2 * math.pi / spectra["riflex"][changed[0]]
        assert period == pytest.approx(reach / 0.9)
    for w, yarn in zip(omega, spectra["yarn"], strict=True):
        turns = trained * w / (2 * math.pi)
        assert w / s - 1e-12 <= yarn <= w + 1e-12
        if turns < 1:
            assert yarn == pytest.approx(w / s)
    with pytest.raises(ValueError, match="warp"):
        stretched_frequencies("warp", theta, channels, trained, reach)
