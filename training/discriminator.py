"""A patch discriminator on pairs of neighbouring frames, and the losses it gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from losses import blur


class Discriminator(nn.Module):
    """Says, patch by patch (34 pixels wide), whether two successive frames are rendered; small enough for a CPU.

    It sees the later frame and the difference to it, so that texture that stands still or boils is as wrong as blur; and the
    later frame's finest octave and the next once more, each by itself: beside whole pictures they are so faint that nothing
    was seen of them in 200 steps, and with the finest alone the next was lost.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.ModuleList(
            [
                spectral_norm(nn.Conv2d(12, width, 4, 2, 1)),
                spectral_norm(nn.Conv2d(width, 2 * width, 4, 2, 1)),
                spectral_norm(nn.Conv2d(2 * width, 3 * width, 3, 1, 1)),
                spectral_norm(nn.Conv2d(3 * width, 1, 3, 1, 1)),
            ]
        )

    def forward(self, frames: Tensor) -> list[Tensor]:
        """frames [B, T, 3, H, W] -> features of every layer, the verdicts [N, 1, h, w] last."""
        later, step = frames[:, 1:], frames[:, 1:] - frames[:, :-1]
        flat = later.flatten(0, 1)
        low = blur(flat)
        x = torch.cat([2 * flat - 1, 16 * (flat - low), 8 * (low - blur(low)), 4 * step.flatten(0, 1)], 1)
        out = []
        for layer in self.layers:
            x = layer(x)
            out.append(x)
            x = F.leaky_relu(x, 0.2)
        return out


def discriminator_loss(true: list[Tensor], made: list[Tensor]) -> Tensor:
    """Hinge."""
    return F.relu(1 - true[-1]).mean() + F.relu(1 + made[-1]).mean()


def adversarial_loss(made: list[Tensor]) -> Tensor:
    return -made[-1].mean()


def matching_loss(made: list[Tensor], true: list[Tensor]) -> Tensor:
    """Distance of the features, each layer over the size of the true ones."""
    total = made[0].new_zeros(())
    for a, b in zip(made[:-1], true[:-1], strict=True):
        total = total + (a - b.detach()).abs().mean() / (b.detach().abs().mean() + 1e-3)
    return total
