"""The demo's two small networks behind its decoder: twice the size, and a frame between two.

Both are made of what every engine knows. Their convolutions are 16 or 32 channels wide, a block of AVX-512's.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Upscale(nn.Module):
    """[B, 3, H, W] in [0, 1] -> [B, 3, 2H, 2W]: convolutions at the small size, which say how the four pixels that come from
    one differ from what is interpolated between its neighbours. (Were it the pixel repeated, what is not learned would show
    as squares.)"""

    def __init__(self, channels: int = 16, depth: int = 4):
        super().__init__()
        widths = [3, *[channels] * (depth + 1)]
        self.body = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.last = nn.Conv2d(channels, 12, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, frame: Tensor) -> Tensor:
        x = frame
        for conv in self.body:
            x = F.leaky_relu(conv(x), 0.1)
        return F.pixel_shuffle(self.last(x), 2) + resize(frame, 2)


class Between(nn.Module):
    """Two frames [B, 3, H, W] in [0, 1], H and W multiples of 4 -> the one half-way between them.

    Where each comes from (two flows) and which of them to believe (a mask), estimated at a quarter of the size, then
    refined at half of it from the two frames as they lie when moved there.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        self.coarse = convolutions([96, channels, channels, channels, channels], 5)
        self.fine = convolutions([29, channels, channels, channels], 20)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        found = self.coarse(F.pixel_unshuffle(torch.cat([before, after], 1), 4))  # in quarters of a pixel's size
        guess = resize(found, 4) * found.new_tensor([4, 4, 4, 4, 1]).view(1, 5, 1, 1)
        moved = torch.cat([warp(before, guess[:, 0:2]), warp(after, guess[:, 2:4])], 1)
        more = self.fine(torch.cat([F.pixel_unshuffle(moved, 2), resize(found, 2)], 1))
        found = guess + F.pixel_shuffle(more, 2)
        share = torch.sigmoid(found[:, 4:])
        return warp(before, found[:, 0:2]) * share + warp(after, found[:, 2:4]) * (1 - share)


def convolutions(widths: list[int], last: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.1)]
    end = nn.Conv2d(widths[-1], last, 3, padding=1)
    nn.init.zeros_(end.weight)
    nn.init.zeros_(end.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers, end)


def resize(x: Tensor, times: int) -> Tensor:
    return F.interpolate(x, scale_factor=times, mode="bilinear", align_corners=False)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """What each pixel finds at its place plus flow [B, 2, H, W] (right, down, in pixels); beyond the edge, the edge."""
    _, _, h, w = image.shape
    across = (torch.arange(w, dtype=image.dtype) + 0.5) * (2 / w) - 1
    down = (torch.arange(h, dtype=image.dtype) + 0.5) * (2 / h) - 1
    x, y = across.view(1, 1, w) + flow[:, 0] * (2 / w), down.view(1, h, 1) + flow[:, 1] * (2 / h)
    return F.grid_sample(image, torch.stack([x, y], -1), mode="bilinear", padding_mode="border", align_corners=False)
