"""What the scenes are painted with: the canvas, fractal noise, colours, lights, skylines."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BASE = 144  # pixels high: the picture whose pixels some sizes are in


@dataclass(frozen=True)
class Canvas:
    """The pixel grid and the random source that one scene instance is drawn with."""

    height: int
    width: int
    rng: np.random.Generator

    @property
    def x(self) -> Tensor:  # [1, 1, W]
        return ((torch.arange(self.width) + 0.5) / self.height).view(1, 1, -1)

    @property
    def y(self) -> Tensor:  # [1, H, 1]
        return ((torch.arange(self.height) + 0.5) / self.height).view(1, -1, 1)

    @property
    def aspect(self) -> float:
        return self.width / self.height

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def across(self, margin: float) -> float:
        """Somewhere between the sides, so far from both, or as far as a narrow picture allows."""
        margin = min(margin, 0.4 * self.aspect)
        return self.uniform(margin, self.aspect - margin)

    def draw(self, low: float, high: float, n: int) -> Tensor:
        return torch.from_numpy(self.rng.uniform(low, high, n))


class Texture:
    """Tileable fractal noise, zero mean and unit deviation, with a power spectrum that falls as 1/f^beta."""

    def __init__(self, rng: np.random.Generator, beta: float = 3.0, cut: float = 0.12):
        noise = self.drawn(rng)
        size = len(noise)
        f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
        f[0, 0] = 1.0
        gain = f ** (-beta / 2) * np.exp(-((f / cut) ** 2))
        gain[0, 0] = 0.0
        noise = np.fft.irfft2(gain * np.fft.rfft2(noise), s=(size, size))
        noise = (noise - noise.mean()) / noise.std()
        self.map = F.pad(torch.from_numpy(noise).float()[None, None], (0, 1, 0, 1), mode="circular")

    @staticmethod
    def drawn(rng: np.random.Generator, size: int = 256) -> np.ndarray:
        """All that a texture takes from the random source."""
        return rng.standard_normal((size, size))

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """Sample at u, v (broadcast to [T, H, W]; 1 = one tile, any size: the tile wraps)."""
        u, v = torch.broadcast_tensors(u, v)
        grid = torch.stack([u - u.floor(), v - v.floor()], -1).float() * 2 - 1  # [T, H, W, 2]
        t, h, w = u.shape
        out = F.grid_sample(self.map, grid.reshape(1, t * h, w, 2), align_corners=True)
        return out.reshape(t, h, w)


def rgb(code: str) -> Tensor:
    """'#rrggbb' -> [3] in [0, 1]."""
    return torch.tensor([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def shaded(code: str, light: float) -> str:
    """'#rrggbb' darkened (0: black) or lightened (2: white)."""
    parts = rgb(code)
    parts = parts * light if light <= 1 else parts + (1 - parts) * (light - 1)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts.tolist())


def mix(a: Tensor, b: Tensor, k: Tensor) -> Tensor:
    """Blend colours a and b ([3] or [T, H, W, 3]) by k [T, H, W] in [0, 1]."""
    return a + (b - a) * k.unsqueeze(-1)


def ramp(low: float, high: float, v: Tensor) -> Tensor:
    """Smoothstep from low to high."""
    k = ((v - low) / (high - low)).clamp(0, 1)
    return k * k * (3 - 2 * k)


def palette(colours: list[str], k: Tensor) -> Tensor:
    """Piecewise linear palette over k in [0, 1]: [...] -> [..., 3]."""
    table = torch.stack([rgb(c) for c in colours])
    pos = k.clamp(0, 1) * (len(colours) - 1)
    i = pos.floor().long().clamp(max=len(colours) - 2)
    return table[i] + (table[i + 1] - table[i]) * (pos - i).unsqueeze(-1)


def splat(image: Tensor, x: Tensor, y: Tensor, radius: Tensor, colour: Tensor, stretch: float = 1.0) -> None:
    """Add soft round lights to image [T, H, W, 3] in place; x, y [T, N] (height units), radius [N] in pixels of a picture
    144 pixels high, colour [N, 3]."""
    t, h, w, _ = image.shape
    radius = radius * (h / BASE)
    reach = math.ceil(float(radius.max()) * 2.2 * max(stretch, 1.0))
    oy, ox = torch.meshgrid(torch.arange(-reach, reach + 1), torch.arange(-reach, reach + 1), indexing="ij")
    px, py = x * h - 0.5, y * h - 0.5  # [T, N]
    ix = px.round().long()[..., None] + ox.reshape(-1)
    iy = py.round().long()[..., None] + oy.reshape(-1)  # [T, N, K]
    d2 = ((ix - px[..., None]) / stretch) ** 2 + (iy - py[..., None]) ** 2
    weight = torch.exp(-d2 / (radius[None, :, None] ** 2)).float()
    weight = weight * ((ix >= 0) & (ix < w) & (iy >= 0) & (iy < h))
    flat = iy.clamp(0, h - 1) * w + ix.clamp(0, w - 1) + (torch.arange(t) * h * w).view(-1, 1, 1)
    for c in range(3):
        plane = torch.zeros(t * h * w)
        plane.scatter_add_(0, flat.reshape(-1), (weight * colour[None, :, None, c].float()).reshape(-1))
        image[..., c] += plane.view(t, h, w)


def ridge(c: Canvas, base: float, height: float, beta: float = 2.2) -> Tensor:
    """A fixed skyline: y of the ridge for every column, [1, 1, W]."""
    line = Texture(c.rng, beta=beta, cut=0.2)(c.x * 0.3 + c.uniform(0, 1), torch.full((1, 1, 1), c.uniform(0, 1)))
    return base - height * line


def sky(c: Canvas, top: str, bottom: str, horizon: float) -> Tensor:
    return mix(rgb(top), rgb(bottom), (c.y / horizon).clamp(0, 1) ** 1.2 * torch.ones_like(c.x))  # [1, H, W, 3]


def seconds(t: Tensor) -> Tensor:
    return t.double().view(-1, 1, 1)
