"""Measures of how much there is to see in a clip: energy by octave, fine structure, motion, its spectrum and judder, colour.

All take uint8 RGB frames [T, H, W, 3]. A ratio compares a clip with renders of the same prompt: 1 is as much, 0 nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # BT.709
OCTAVES = 4

Frames = NDArray[np.uint8]


def total(measure: Callable[[Frames], Sequence[float]], clips: list[Frames]) -> NDArray[np.float64]:
    """A measure's sum over clips. What is compared is sums, not the clips one by one: one in which there is little must not
    weigh as much as one in which there is a lot."""
    return np.array([measure(clip) for clip in clips], np.float64).sum(0)


def luma(frames: Frames) -> NDArray[np.float32]:
    return frames.astype(np.float32) @ LUMA


def octaves(frames: Frames, count: int = OCTAVES) -> NDArray[np.float64]:
    """Spectral energy of luma per pixel, in grey levels squared, by octave of spatial frequency, finest first.

    Octave k holds radial frequencies from 2^-(k+2) to 2^-(k+1) cycles per pixel; the corners beyond half a cycle belong
    to none. A Hann window keeps the picture's border, which is no structure, out of it.
    """
    y = luma(frames).astype(np.float64)
    _, h, w = y.shape
    window = np.hanning(h + 2)[1:-1, None] * np.hanning(w + 2)[None, 1:-1]
    mean = (y * window).sum((1, 2), keepdims=True) / window.sum()
    spectrum = np.abs(np.fft.rfft2((y - mean) * window)) ** 2
    spectrum[..., 1 : (w + 1) // 2] *= 2  # the half of the plane that rfft2 leaves out
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.rfftfreq(w)[None])
    total = spectrum.mean(0) / (h * w * (window**2).sum())
    return np.array([total[(radius > 2.0 ** -(k + 2)) & (radius <= 2.0 ** -(k + 1))].sum() for k in range(count)])


def motion(frames: Frames) -> float:
    """Mean absolute difference of successive frames' luma, in grey levels."""
    return float(np.abs(np.diff(luma(frames), axis=0)).mean())


def judder(clips: list[Frames]) -> float:
    """How much more luma changes where a latent frame's frames begin than between its own; 1: as much. A clip's first frame
    is a latent frame's first."""

    def changes(frames: Frames) -> tuple[float, float]:
        change = np.abs(np.diff(luma(frames), axis=0)).mean((1, 2))
        begins = np.arange(1, len(frames)) % 4 == 0
        return change[begins].mean(), change[~begins].mean()

    between, within = total(changes, clips) / len(clips) + 0.01  # a still: 1
    return float(between / within)


def laplacian(frames: Frames) -> float:
    """Variance of the 4-neighbour Laplacian of luma, mean over frames: what is sharp."""
    y = luma(frames)
    edges = 4 * y[:, 1:-1, 1:-1] - y[:, :-2, 1:-1] - y[:, 2:, 1:-1] - y[:, 1:-1, :-2] - y[:, 1:-1, 2:]
    return float(edges.var((1, 2)).mean())


def geometric(shares: NDArray[np.float64] | list[float]) -> float:
    """Geometric mean: one scene without any detail is not made good by the others."""
    return float(np.exp(np.mean(np.log(np.maximum(shares, 1e-6)))))


def tempo(frames: Frames, count: int = 3) -> NDArray[np.float64]:
    """Energy of luma's change over time per pixel, in grey levels squared, by octave of temporal frequency, fastest
    first: at 16 fps 4…8, 2…4, 1…2 Hz. A Hann window over the clip, and every pixel's mean taken off."""
    y = luma(frames).astype(np.float64)
    t = len(y)
    window = np.hanning(t + 2)[1:-1, None, None]
    mean = (y * window).sum(0) / window.sum()
    spectrum = np.abs(np.fft.rfft((y - mean) * window, axis=0)) ** 2
    spectrum[1 : (t + 1) // 2] *= 2
    frequency = np.fft.rfftfreq(t)
    total = spectrum.mean((1, 2)) / (t * (window**2).sum())
    return np.array([total[(frequency > 2.0 ** -(k + 2)) & (frequency <= 2.0 ** -(k + 1))].sum() for k in range(count)])


def quantiles(frames: Frames, count: int = 64) -> NDArray[np.float64]:
    """The distribution of every colour channel: [3, count] grey levels, rising."""
    at = (np.arange(count) + 0.5) / count
    return np.stack([np.quantile(frames[..., c], at) for c in range(3)])


def colour_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Mean distance of two clips' quantiles, in grey levels: how far colour has to be moved (Wasserstein-1)."""
    return float(np.abs(a - b).mean())


def picture(frames: Frames, rows: int = 9, columns: int = 16) -> NDArray[np.float64]:
    """The clip's mean picture in cells [rows, columns, 3]: its layout without its details."""
    mean = frames.mean(0)
    h, w = (n // k * k for n, k in zip(mean.shape[:2], (rows, columns), strict=True))
    return mean[:h, :w].reshape(rows, h // rows, columns, w // columns, 3).mean((1, 3))


def diversity(pictures: list[NDArray[np.float64]]) -> float:
    """Root mean square difference between clips of the same prompt, mean over all pairs, in grey levels."""
    pairs = [(a, b) for i, a in enumerate(pictures) for b in pictures[:i]]
    return float(np.mean([np.sqrt(((a - b) ** 2).mean()) for a, b in pairs])) if pairs else 0.0
