"""UniPC (arXiv 2302.04867), as few-step flow models are sampled with it, taken apart: a fixed linear map.

Second order, B₂(h) = e^h − 1, prediction of x0, corrector in every step but the first, lower order in the last. Every chunk
runs the same steps, so what pass i reads is x_i = x_0 + Σ_j<i c_ij·v_j, with x_0 the chunk's noise and v_j the flow that
pass j predicted; the coefficients depend on the sigmas alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ORDER = 2
NOTHING = 1e-9  # a coefficient of rounding alone


def increments(sigmas: NDArray[np.float64]) -> NDArray[np.float64]:
    """d [n, n], lower triangular: x_{i+1} = x_i + Σ_j≤i d_ij·v_j. sigmas [n]: falling, below 1; behind the last is 0."""
    n = len(sigmas)
    sigma = np.append(sigmas, 0.0)
    with np.errstate(divide="ignore"):
        half_snr = np.log1p(-sigma) - np.log(sigma)  # λ, infinite at the end
    # Everything below is a row of coefficients of x_0 and v_0 … v_{n−1}.
    x = np.eye(n + 1)[0]
    rows, predicted = [x], []
    corrected, order = x, 0
    for i in range(n):
        clean = x - sigma[i] * np.eye(n + 1)[i + 1]
        if i:
            corrected = _moved(corrected, [*predicted, clean], half_snr[: i + 1], sigma[i - 1 : i + 1], order, True)
        predicted.append(clean)
        order = min(ORDER, n - i, i + 1)
        x = _moved(corrected, predicted, half_snr[: i + 2], sigma[i : i + 2], order, False)
        rows.append(x)
    steps = np.diff(np.array(rows), axis=0)[:, 1:]
    return np.where(np.abs(steps) < NOTHING, 0.0, steps)


def _moved(
    x: NDArray[np.float64],
    clean: list[NDArray[np.float64]],
    half_snr: NDArray[np.float64],
    sigma: NDArray[np.float64],
    order: int,
    correct: bool,
) -> NDArray[np.float64]:
    """x moved from sigma[0] to sigma[1]. clean: the predictions of x0 so far, with `correct` that of sigma[1] too;
    half_snr: λ of all sigmas up to sigma[1]."""
    known = len(half_snr) - 1  # predictions up to sigma[0]
    start, h = clean[known - 1], half_snr[-1] - half_snr[-2]
    grow = math.expm1(-h)
    ratios = [(half_snr[known - 1 - k] - half_snr[known - 1]) / h for k in range(1, order)]
    slopes = [(clean[known - 1 - k] - start) / r for k, r in zip(range(1, order), ratios, strict=True)]
    out = sigma[1] / sigma[0] * x - (1 - sigma[1]) * grow * start
    if correct:
        slopes, weights = [*slopes, clean[known] - start], _weights(np.array([*ratios, 1.0]), h)
    else:
        weights = [0.5] * (order - 1)
    for weight, slope in zip(weights, slopes, strict=True):
        out = out - (1 - sigma[1]) * grow * weight * slope
    return out


def _weights(ratios: NDArray[np.float64], h: float) -> NDArray[np.float64]:
    """The corrector's ρ: of first order ½, else the solution of R·ρ = b."""
    if len(ratios) == 1:
        return np.array([0.5])
    grow = math.expm1(-h)
    phi, factorial, b = grow / -h - 1, 1, []
    for i in range(1, len(ratios) + 1):
        b.append(phi * factorial / grow)
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(b)).astype(np.float64)
