"""Temporal RoPE tables, computed on the host in float64 for any latent frame index, with multi-head jitter.

Rotary embedding turns pair j of a head's temporal channels by the angle p·ω_j at latent frame p, ω_j = θ^(−2j/d)
(RoFormer, arXiv 2104.09864, eq. 15). Where the phases realign, a query sees the sink frames again as if they were near,
and the video snaps back to them. *Multi-head RoPE jitter* (LoL, arXiv 2601.16914, §3) gives each head its own base,
θ_h = θ·(1 + σ·ε_h) with ε_h ~ U[−1, 1], so that the heads no longer realign at the same frame. σ = 0 is plain RoPE.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..engines.bundle import RopeSpec
from ..engines.errors import UserError

FARTHEST = (
    10**13
)  # latent frame that a stream may begin at: an angle of its tables is off by 1e-4 there, by 0.04 at 10^15


def split_head_dim(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that carry time, height and width: Wan's split, (44, 42, 42) for 128."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def axis_frequencies(theta: ArrayLike, channels: int) -> NDArray[np.float64]:
    """ω_j = θ^(−2j/channels), j < channels/2. theta [...] -> [..., channels/2], radians per position."""
    exponent = -2.0 * np.arange(channels // 2) / channels
    return np.asarray(theta, np.float64)[..., None] ** exponent


def draw_jitter(heads: int, seed: int) -> NDArray[np.float64]:
    """ε_h ~ U[−1, 1] for every head, [heads]; the exporter stores it in the manifest, so that a stream never redraws."""
    return np.random.Generator(np.random.Philox(seed)).uniform(-1.0, 1.0, heads)


def head_thetas(theta: float, sigma: float, epsilon: ArrayLike) -> NDArray[np.float64]:
    """θ_h = θ·(1 + σ·ε_h), in the shape of epsilon (LoL §3)."""
    return theta * (1.0 + sigma * np.asarray(epsilon, np.float64))


def head_frequencies(rope: RopeSpec, sigma: float) -> NDArray[np.float64]:
    """ω of every head of a bundle under a jitter of strength sigma, [heads, channels/2]; where every layer has bases of its
    own, [layers, heads, channels/2]."""
    return axis_frequencies(head_thetas(rope.theta, sigma, rope.epsilon), rope.channels)


def frequencies_of(rope: RopeSpec, sigma: float, frequencies: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """A study's own spectrum, or else the one that theta and jitter make. Raises UserError for one that is not of this
    network's heads."""
    if frequencies is None:
        return head_frequencies(rope, sigma)
    shape = np.shape(rope.epsilon)
    wanted = [(shape[-1], rope.channels // 2), *([(*shape, rope.channels // 2)] if len(shape) == 2 else [])]
    if np.shape(frequencies) not in wanted:
        raise UserError(f"frequencies {np.shape(frequencies)}: expected {' or '.join(map(str, wanted))}")
    return np.asarray(frequencies, np.float64)


def stretched_frequencies(method: str, theta: float, channels: int, trained: int, reach: int) -> NDArray[np.float64]:
    """The usual ways to make a rotary embedding reach further than it was trained, ω [channels/2].

    They serve as comparisons for the jitter (LoL, table 1); trained and reach are latent frames, s = reach/trained.

    * ``pi``: position interpolation, ω/s (arXiv 2306.15595).
    * ``ntk``: NTK-aware base, θ·s^(d/(d−2)) (given in arXiv 2309.00071).
    * ``yarn``: ω/s for pairs that turn less than once in the trained span, ω for those that turn more than 32 times, a
      ramp in between (arXiv 2309.00071; its attention temperature is left out, as only one axis is stretched).
    * ``riflex``: only the intrinsic component, the one whose period is nearest to the trained span, is slowed so that
      0.9 of its period spans the reach (arXiv 2502.15894).

    Raises ValueError for another method.
    """
    omega, s = axis_frequencies(theta, channels), max(1.0, reach / trained)
    if method == "pi":
        return omega / s
    if method == "ntk":
        return axis_frequencies(theta * s ** (channels / (channels - 2)), channels)
    if method == "yarn":
        turns = trained * omega / (2 * np.pi)
        keep = np.clip((turns - 1) / (32 - 1), 0, 1)
        return omega * keep + omega / s * (1 - keep)
    if method == "riflex":
        out = omega.copy()
        intrinsic = int(np.abs(2 * np.pi / omega - trained).argmin())
        out[intrinsic] = min(omega[intrinsic], 0.9 * 2 * np.pi / reach)
        return out
    raise ValueError(f"{method!r}: expected pi, ntk, yarn or riflex")


def phase_concentration(frequencies: NDArray[np.float64], distances: ArrayLike) -> NDArray[np.float64]:
    """C(Δ) = |1/K · Σ_i exp(j·ω_i·Δ)| (LoL §3): how far the phases of a spectrum have come together again at distance Δ.

    frequencies [..., K], distances [n] -> [..., n] in [0, 1].
    """
    angle = frequencies[..., None, :] * np.asarray(distances, np.float64)[:, None]
    return np.hypot(np.cos(angle).mean(-1), np.sin(angle).mean(-1))


def mean_cosine(frequencies: NDArray[np.float64], distances: ArrayLike) -> NDArray[np.float64]:
    """R(Δ) = 1/K · Σ_i cos(ω_i·Δ): what a query·key product at distance Δ sees of it. Shapes as phase_concentration."""
    return np.cos(frequencies[..., None, :] * np.asarray(distances, np.float64)[:, None]).mean(-1)


def temporal_tables(
    positions: ArrayLike, frequencies: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of the temporal angles.

    positions [..., F] latent frame indices (any size; float64 is exact to 2^53), frequencies [H, K] ->
    (cos, sin), float32 [..., H, F, K]; or positions [F], frequencies [L, H, K] -> [L, H, F, K]. Angles are reduced
    modulo 2π in float64, so that the cast to float32 loses nothing more: at latent frame 10^11, after 800 years, an angle is
    off by less than 1e-4.
    """
    angle = np.asarray(positions, np.float64)[..., None, :, None] * frequencies[..., None, :]
    angle = np.remainder(angle, 2 * np.pi)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
