"""Losses of a reconstruction that see texture, not only the mean error. Frames are [B, T, 3, H, W] in [0, 1]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LEVEL = 1 / 255
BANDS, WINDOW = 3, 8  # octaves that are compared, and the side of the window whose energy is one number
STEADY = 5  # octaves of frame differences that are compared as they are


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def pixel_loss(out: Tensor, true: Tensor) -> Tensor:
    """L1 with a weight on small details, which a plain mean hardly sees; of gradients; of frame differences. [B, T]"""
    flat = true.flatten(0, 1)
    detail = (flat - F.avg_pool2d(F.pad(flat, (4, 4, 4, 4), mode="replicate"), 9, 1)).abs().mean(1, keepdim=True)
    weight = (1 + 20 * detail).unflatten(0, true.shape[:2])
    error = out - true
    dy, dx = gradients(error)
    dt = F.pad(error[:, 1:] - error[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    where = (2, 3, 4)
    return (
        (error.abs() * weight).mean(where)
        + 0.7 * (dy.abs().mean(where) + dx.abs().mean(where))
        + 0.3 * dt.abs().mean(where)
    )


def blur(x: Tensor) -> Tensor:
    """Binomial low-pass of [N, C, H, W], five taps along each side."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=x.device) / 16
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    c = x.shape[1]
    x = F.conv2d(x, taps.view(1, 1, 5, 1).expand(c, 1, 5, 1), groups=c)
    return F.conv2d(x, taps.view(1, 1, 1, 5).expand(c, 1, 1, 5), groups=c)


def opponent(x: Tensor) -> Tensor:
    """RGB [N, 3, H, W] -> brightness, red against green, blue against both. Energies of RGB alone let flakes turn gaudy."""
    red, green, blue = x.unbind(1)
    return torch.stack([(red + green + blue) / 3, (red - green) / 2, blue / 2 - (red + green) / 4], 1)


def band_amplitudes(x: Tensor, bands: int = BANDS) -> list[Tensor]:
    """Root mean square of each octave of each opponent channel, finest first, in windows half overlapping:
    [N, 3, H, W] -> [N, 3, h, w] each."""
    out, x = [], opponent(x)
    for _ in range(bands):
        low = blur(x)
        energy = F.avg_pool2d((x - low).square(), WINDOW, WINDOW // 2)
        out.append((energy + (LEVEL / 2) ** 2).sqrt())
        x = low[..., ::2, ::2]
    return out


def relative(out: list[Tensor], true: list[Tensor], clips: int) -> Tensor:
    """Mean difference of amplitudes over the mean amplitude, each clip for itself, so that faint textures count too."""
    total = out[0].new_zeros(())
    for a, b in zip(out, true, strict=True):
        gap, size = ((v.unflatten(0, (clips, -1)).flatten(1).mean(1)) for v in ((a - b).abs(), b))
        total = total + (gap / (size + LEVEL)).mean()
    return total


def texture_loss(out: Tensor, true: Tensor) -> Tensor:
    """How far the energy of every octave is off, window by window, wherever the details stand in the window."""
    a, b = (band_amplitudes(v.flatten(0, 1)) for v in (out, true))
    return relative(a, b, len(out))


def motion_loss(out: Tensor, true: Tensor) -> Tensor:
    """The same of the differences between neighbouring frames: what moves has to move as much."""
    a, b = (band_amplitudes((v[:, 1:] - v[:, :-1]).flatten(0, 1), 2) for v in (out, true))
    return relative(a, b, len(out))


def steadiness_loss(out: Tensor, true: Tensor) -> Tensor:
    """How far frame differences are off, in five octaves, over how much changes there: what stands still must not tremble,
    what drifts must not halt and jump. `motion_loss` compares amounts in fine octaves, and let a decoder change too little
    within a latent's four frames and catch up where the next latent begins."""
    error, step = (v[:, 1:] - v[:, :-1] for v in (out - true, true))
    error, step = error.flatten(0, 1), step.flatten(0, 1)
    total = out.new_zeros(())
    for octave in range(STEADY):
        if octave:
            error, step = (F.avg_pool2d(v, 2, ceil_mode=True) for v in (error, step))
        there = F.avg_pool2d(step.abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
        total = total + (error.abs() / (there + LEVEL)).mean()
    return total
