"""Statistics of video that say whether a stream still looks as it did: colour, sharpness, motion, flicker.

All take uint8 RGB frames [T, H, W, 3] and answer in grey levels (0…255).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEIGHBOURHOOD = 10  # chunks on either side that a chunk's distance to the sinks is compared with
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709


@dataclass(frozen=True)
class ClipStats:
    """Means over one clip."""

    colour: tuple[float, float, float]  # mean R, G, B
    sharpness: float  # variance of the 4-neighbour Laplacian of luma, averaged over frames
    motion: float  # mean absolute difference of successive frames' luma
    flicker: float  # mean absolute second difference of the frames' mean luma: what pulses rather than moves


def clip_stats(frames: NDArray[np.uint8], before: NDArray[np.uint8] | None = None) -> ClipStats:
    """Statistics of a clip; `before` ([2, H, W, 3]: the two frames before it) lets motion and flicker cross the seam
    between clips. A clip of one frame has no motion, one of two no flicker."""
    y = frames.astype(np.float32) @ LUMA  # [T, H, W]
    run = y if before is None else np.concatenate([before.astype(np.float32) @ LUMA, y])
    laplacian = 4 * y[:, 1:-1, 1:-1] - y[:, :-2, 1:-1] - y[:, 2:, 1:-1] - y[:, 1:-1, :-2] - y[:, 1:-1, 2:]
    steps = np.abs(np.diff(run, axis=0)).mean((1, 2))[-len(frames) :]
    pulses = np.abs(np.diff(run.mean((1, 2)), n=2))
    red, green, blue = frames.mean((0, 1, 2)).tolist()
    return ClipStats(
        colour=(red, green, blue),
        sharpness=float(laplacian.var((1, 2)).mean()),
        motion=float(steps.mean()) if len(steps) else 0.0,
        flicker=float(pulses.mean()) if len(pulses) else 0.0,
    )


def latent_distance(latent: NDArray[np.float32], sink: NDArray[np.float32]) -> float:
    """Root mean square difference of two latent chunks [C, F, h, w], in units of the latents' own deviation (≈ 1)."""
    return float(np.sqrt(np.mean((latent.astype(np.float64) - sink) ** 2)))


def collapse_drop(distance: float, around: ArrayLike) -> float:
    """Sink-collapse of a chunk: how far its distance to the sinks is below the median of those around it (its own among
    them), max(0, 1 − d/m). The paper's SC-Max and SC-Avg are drops of a normalised distance too."""
    return max(0.0, 1.0 - distance / max(float(np.median(np.asarray(around, np.float64))), 1e-12))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of two clips in dB; infinite for equal ones."""
    error = float(np.mean((a.astype(np.float32) - b) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Mean structural similarity of two clips' luma: 11×11 Gaussian window, σ = 1.5 (Wang et al. 2004, equation 13)."""
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)

    def blur(image: NDArray) -> NDArray:  # [T, H, W] -> [T, H − 10, W − 10]
        high, wide = image.shape[1] - 10, image.shape[2] - 10
        rows = np.sum([t * image[:, i : i + high] for i, t in enumerate(taps)], 0)
        return np.sum([t * rows[:, :, i : i + wide] for i, t in enumerate(taps)], 0)

    x, y = (clip.astype(np.float32) @ LUMA for clip in (a, b))
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))))
