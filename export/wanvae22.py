"""The Wan 2.2 VAE of the 5B: Wan 2.1's building blocks in stages, each with a way around it that has no parameters.

48 latent channels, 16×16 pixels and four frames to a latent pixel: eight by the stages, two by pixels that are folded into
channels. Parameter names are the public checkpoint's (`Wan2.2_VAE.pth`: `decoder.upsamples.0.upsamples.0.residual.0.gamma`).
Streaming and its states are as in `wanvae`.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from .families import MEAN_22, STD_22
from .wanvae import CausalConv3d, Downsample, Head, Middle, ResidualBlock, States, Upsample, WanVae, WanVaeConfig

WAN_22_VAE = WanVaeConfig(dim=160, decoder_dim=256, latent_channels=48, mean=MEAN_22, std=STD_22, patch=2)


def duplicated(x: Tensor, channels: int, time: int, first: bool) -> Tensor:
    """The way around an up-sampling stage: x [B, C, T, H, W] -> [B, channels, time·T, 2H, 2W].

    Output channel o at sub-frame a, sub-row b and sub-column d of an input pixel is input channel
    ⌊(o·4·time + 4a + 2b + d) / r⌋, r = channels·4·time / C. Of a stream's first frame only the last sub-frame is there.
    """
    b, c = x.shape[:2]
    y = x.transpose(1, 2).flatten(0, 1).repeat_interleave(4 * time * channels // c, 1)
    y = F.pixel_shuffle(y, 2).unflatten(1, (channels, time)).unflatten(0, (b, -1))  # (B, T, channels, time, 2H, 2W)
    y = y.permute(0, 2, 1, 3, 4, 5).flatten(2, 3)
    return y[:, :, time - 1 :] if first else y


def averaged(x: Tensor, channels: int, time: int, space: int) -> Tensor:
    """The way around a down-sampling stage: x [B, C, T, H, W] -> [B, channels, ⌈T/time⌉, H/space, W/space], means over
    groups of the C·time·space² values of a block, in the order channel, frame, row, column. A frame that lacks its partner
    is the first, and its partner is zero."""
    b = len(x)
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    y = F.pixel_unshuffle(x.transpose(1, 2).flatten(0, 1), space)  # (B·T, C·space², h, w)
    y = y.unflatten(1, (-1, space * space)).unflatten(0, (b, -1, time))  # (B, T/time, time, C, space², h, w)
    y = y.permute(0, 3, 2, 4, 1, 5, 6).flatten(1, 3)
    return y.unflatten(1, (channels, -1)).mean(2)


class UpStage(nn.Module):
    def __init__(self, n_in: int, n_out: int, blocks: int, up: bool, time: bool):
        super().__init__()
        self.channels, self.up, self.time = n_out, up, 2 if time else 1
        layers: list[nn.Module] = [ResidualBlock(n_in if j == 0 else n_out, n_out) for j in range(blocks)]
        self.upsamples = nn.ModuleList([*layers, Upsample(n_out, n_out, time)] if up else layers)

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        y = x
        for block in self.upsamples:
            y = block(y, states, first) if isinstance(block, Upsample) else block(y, states)
        return y + duplicated(x, self.channels, self.time, first) if self.up else y


class DownStage(nn.Module):
    def __init__(self, n_in: int, n_out: int, blocks: int, down: bool, time: bool):
        super().__init__()
        self.channels, self.space, self.time = n_out, 2 if down else 1, 2 if time else 1
        layers: list[nn.Module] = [ResidualBlock(n_in if j == 0 else n_out, n_out) for j in range(blocks)]
        self.downsamples = nn.ModuleList([*layers, Downsample(n_out, time)] if down else layers)

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        y = x
        for block in self.downsamples:
            y = block(y, states, first) if isinstance(block, Downsample) else block(y, states)
        return y + averaged(x, self.channels, self.time, self.space)


class Decoder(nn.Module):
    def __init__(self, c: WanVaeConfig):
        super().__init__()
        dim, last = c.decoder_dim or c.dim, len(c.multipliers) - 1
        widths = [dim * m for m in (c.multipliers[-1], *c.multipliers[::-1])]
        self.conv1 = CausalConv3d(c.latent_channels, widths[0])
        self.middle = Middle(widths[0])
        self.upsamples = nn.ModuleList(
            UpStage(n_in, n_out, c.blocks + 1, up=i < last, time=i < 2)
            for i, (n_in, n_out) in enumerate(itertools.pairwise(widths))
        )
        self.head = Head(widths[-1], 3 * c.patch**2)

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        x = self.middle(self.conv1(x, states), states)
        for stage in self.upsamples:
            x = stage(x, states, first)
        return self.head(x, states)


class Encoder(nn.Module):
    def __init__(self, c: WanVaeConfig):
        super().__init__()
        widths, last = [c.dim * m for m in (1, *c.multipliers)], len(c.multipliers) - 1
        self.conv1 = CausalConv3d(3 * c.patch**2, widths[0])
        self.downsamples = nn.ModuleList(
            DownStage(n_in, n_out, c.blocks, down=i < last, time=0 < i < last)
            for i, (n_in, n_out) in enumerate(itertools.pairwise(widths))
        )
        self.middle = Middle(widths[-1])
        self.head = Head(widths[-1], 2 * c.latent_channels)

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        x = self.conv1(x, states)
        for stage in self.downsamples:
            x = stage(x, states, first)
        return self.head(self.middle(x, states), states)


class Wan22Vae(WanVae):
    halves = (Encoder, Decoder)
