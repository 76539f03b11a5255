"""The Wan 2.1 VAE, causal in time: a streaming decoder and a streaming encoder, their feature caches as explicit state.

Parameter names are the public checkpoint's (`Wan2.1_VAE.pth`). Tensors are [B, C, T, H, W] inside.

Every 3×3×3 convolution sees its own input one and two frames earlier: that is its state, zeros before the stream begins.
The two temporal up-samplers double every frame but the stream's very first, which passes around them and which their own
state never sees; so the first chunk of F latent frames gives 4F − 3 pixel frames, every later one 4F, and the first has a
graph of its own. The encoder goes the other way: a first piece of 1 + 4n frames, then pieces of 4n; its temporal
down-samplings see the last frame before a piece.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .families import MEAN, STD


@dataclass(frozen=True)
class WanVaeConfig:
    """Widths of the VAE. Defaults: the public one of Wan 2.1."""

    dim: int = 96
    decoder_dim: int | None = None  # None: as dim
    latent_channels: int = 16
    multipliers: tuple[int, int, int, int] = (1, 2, 4, 4)
    blocks: int = 2  # residual blocks per stage of the encoder; the decoder has one more
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    patch: int = 1  # pixels, along each side, that the last convolution makes at once


class States:
    """The feature cache during one pass: every convolution takes its state and leaves the next one, in order."""

    def __init__(self, before: list[Tensor] | None):
        self._before = iter(before) if before is not None else None
        self.after: list[Tensor] = []

    def extend(self, x: Tensor, length: int) -> Tensor:
        """x [B, C, T, H, W] with its `length` frames of past in front; keeps the last ones for the next pass."""
        b, c, _, h, w = x.shape
        past = x.new_zeros(b, c, length, h, w) if self._before is None else next(self._before)
        x = torch.cat([past, x], 2)
        self.after.append(x[:, :, x.shape[2] - length :])
        return x

    def pass_by(self, like: Tensor, length: int) -> None:
        """A convolution that this pass has no input for: its state stays."""
        b, c, _, h, w = like.shape
        past = like.new_zeros(b, c, length, h, w) if self._before is None else next(self._before)
        self.after.append(past + 0)  # a tensor of its own: no graph output may be a graph input


class CausalConv3d(nn.Conv3d):
    """Padded in space by half its kernel, in time by the frames before."""

    def __init__(self, n_in: int, n_out: int, kernel: tuple[int, int, int] = (3, 3, 3), stride: int = 1):
        super().__init__(n_in, n_out, kernel, stride=(stride, 1, 1), padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(self, x: Tensor, states: States) -> Tensor:  # type: ignore[override]
        if self.kernel_size[0] > 1:
            x = states.extend(x, self.kernel_size[0] - 1)
        return super().forward(x)


class RmsNorm(nn.Module):
    """Over channels: x/‖x‖·√C·γ. γ is stored with the axes that follow the channels."""

    def __init__(self, channels: int, axes: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        y = F.normalize(x.float(), dim=1) * len(self.gamma) ** 0.5
        return (y * self.gamma.float()).to(x.dtype)


class ResidualBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.residual = nn.ModuleList(
            [
                RmsNorm(n_in, 3),
                nn.SiLU(),
                CausalConv3d(n_in, n_out),
                RmsNorm(n_out, 3),
                nn.SiLU(),
                nn.Identity(),  # the checkpoint counts a dropout here
                CausalConv3d(n_out, n_out),
            ]
        )
        self.shortcut = nn.Conv3d(n_in, n_out, 1) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor, states: States) -> Tensor:
        y = x
        for layer in self.residual:
            y = layer(y, states) if isinstance(layer, CausalConv3d) else layer(y)
        return y + self.shortcut(x)


class AttentionBlock(nn.Module):
    """Self-attention of one head over the places of each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = RmsNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, states: States) -> Tensor:
        b, c, _, h, w = x.shape
        y = x.transpose(1, 2).flatten(0, 1)  # (B·T, C, H, W)
        q, k, v = self.to_qkv(self.norm(y)).flatten(2).transpose(1, 2).chunk(3, -1)  # (B·T, H·W, C)
        weights = ((q * c**-0.5) @ k.transpose(1, 2)).float().softmax(-1).to(x.dtype)
        y = self.proj((weights @ v).transpose(1, 2).unflatten(2, (h, w)))
        return y.unflatten(0, (b, -1)).transpose(1, 2) + x


def per_frame(layers: nn.Module, x: Tensor) -> Tensor:
    y = layers(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (len(x), -1)).transpose(1, 2)


class Upsample(nn.Module):
    """Twice the height and width; with `time`, twice the frames too."""

    def __init__(self, channels: int, n_out: int, time: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(channels, n_out, 3, padding=1)
        )
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        if self.time_conv is not None:
            lead, rest = (x[:, :, :1], x[:, :, 1:]) if first else (x[:, :, :0], x)
            if rest.shape[2]:
                pairs = self.time_conv(rest, states).unflatten(1, (2, -1))  # (B, 2, C, T, H, W)
                rest = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)
            else:
                states.pass_by(x, 2)
            x = torch.cat([lead, rest], 2) if first else rest
        return per_frame(self.resample, x)


class Downsample(nn.Module):
    """Half the height and width; with `time`, of a stream's first 1 + 2n frames the first and then n, of 2n later ones n."""

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if time else None

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        x = per_frame(self.resample, x)
        if self.time_conv is None:
            return x
        run = states.extend(x, 1)
        if not first:
            return self.time_conv(run)
        return x if x.shape[2] == 1 else torch.cat([x[:, :, :1], self.time_conv(x)], 2)


class Middle(nn.ModuleList):
    def __init__(self, channels: int):
        super().__init__(
            [ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)]
        )

    def forward(self, x: Tensor, states: States) -> Tensor:
        for block in self:
            x = block(x, states)
        return x


class Head(nn.ModuleList):
    def __init__(self, channels: int, n_out: int):
        super().__init__([RmsNorm(channels, 3), nn.SiLU(), CausalConv3d(channels, n_out)])

    def forward(self, x: Tensor, states: States) -> Tensor:
        norm, activation, conv = self
        return conv(activation(norm(x)), states)


class Decoder(nn.Module):
    def __init__(self, c: WanVaeConfig):
        super().__init__()
        widths = [c.dim * m for m in (c.multipliers[-1], *c.multipliers[::-1])]
        self.conv1 = CausalConv3d(c.latent_channels, widths[0])
        self.middle = Middle(widths[0])
        blocks: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            n = n_in // 2 if i else n_in  # the up-sampler before has halved it
            blocks += [ResidualBlock(n if j == 0 else n_out, n_out) for j in range(c.blocks + 1)]
            if i < len(c.multipliers) - 1:
                blocks.append(Upsample(n_out, n_out // 2, time=i < 2))
        self.upsamples = nn.ModuleList(blocks)
        self.head = Head(widths[-1], 3)

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        x = self.middle(self.conv1(x, states), states)
        for block in self.upsamples:
            x = block(x, states, first) if isinstance(block, Upsample) else block(x, states)
        return self.head(x, states)


class Encoder(nn.Module):
    def __init__(self, c: WanVaeConfig):
        super().__init__()
        widths = [c.dim * m for m in (1, *c.multipliers)]
        self.conv1 = CausalConv3d(3, widths[0])
        blocks: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            blocks += [ResidualBlock(n_in if j == 0 else n_out, n_out) for j in range(c.blocks)]
            if i < len(c.multipliers) - 1:
                blocks.append(Downsample(n_out, time=i > 0))
        self.downsamples = nn.ModuleList(blocks)
        self.middle = Middle(widths[-1])
        self.head = Head(widths[-1], 2 * c.latent_channels)

    def forward(self, x: Tensor, states: States, first: bool) -> Tensor:
        x = self.conv1(x, states)
        for block in self.downsamples:
            x = block(x, states, first) if isinstance(block, Downsample) else block(x, states)
        return self.head(self.middle(x, states), states)


def folded(x: Tensor, patch: int) -> Tensor:
    """[B, C, T, p·H, p·W] -> [B, p²·C, T, H, W]. Of the p² channels of a colour, the column is the slower index."""
    if patch == 1:
        return x
    x = x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # (B, C, T, H, p, W, p)
    return x.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def unfolded(x: Tensor, patch: int) -> Tensor:
    """The inverse of `folded`."""
    if patch == 1:
        return x
    x = x.unflatten(1, (-1, patch, patch))  # (B, C, column, row, T, H, W)
    return x.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


class WanVae(nn.Module):
    """Encoder, decoder, and the 1×1×1 convolutions between them and the latents (conv1, conv2)."""

    mean: Tensor
    std: Tensor
    halves: tuple[type[nn.Module], type[nn.Module]] = (Encoder, Decoder)

    def __init__(self, config: WanVaeConfig):
        super().__init__()
        self.config = c = config
        self.encoder, self.decoder = (half(c) for half in self.halves)
        self.conv1 = nn.Conv3d(2 * c.latent_channels, 2 * c.latent_channels, 1)
        self.conv2 = nn.Conv3d(c.latent_channels, c.latent_channels, 1)
        for name, values in (("mean", c.mean), ("std", c.std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1, 1), persistent=False)

    def decode(
        self, latents: Tensor, states: list[Tensor] | None = None, first: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """latents [B, C, T, h, w], normalised -> frames [B, 3, 4T (−3 if first), s·h, s·w] nominally in [−1, 1], states.
        s: 8, times the config's patch."""
        running = States(states)
        x = self.conv2((latents * self.std + self.mean).to(self.conv2.weight.dtype))
        return unfolded(self.decoder(x, running, first), self.config.patch), running.after

    def encode(
        self, frames: Tensor, states: list[Tensor] | None = None, first: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """frames [B, 3, 4n (+ 1 if first), H, W] in [−1, 1] -> normalised latents [B, C, n (+ 1), H/s, W/s], the posterior's
        mean, and states. A later piece takes the states that the one before it left."""
        running = States(states)
        x = folded(frames.to(self.conv1.weight.dtype), self.config.patch)
        moments = self.conv1(self.encoder(x, running, first)).float()
        return (moments[:, : self.config.latent_channels] - self.mean) / self.std, running.after

    def zero_states(self, latent: Tensor) -> list[Tensor]:
        """The decoder's states before a stream of latents [1, C, T, h, w] begins."""
        h, w = latent.shape[3:]
        dtype = self.conv2.weight.dtype
        return [torch.zeros(1, c, 2, h * s, w * s, dtype=dtype) for c, s in self._state_sizes()]

    def _state_sizes(self) -> Iterator[tuple[int, int]]:
        """Channels and scale of every state, in the order in which a pass meets them."""
        scale = 1
        for module in self.decoder.modules():
            if isinstance(module, CausalConv3d) and module.kernel_size[1] == 3:
                yield module.in_channels, scale
            elif isinstance(module, Upsample):
                if module.time_conv is not None:
                    yield module.time_conv.in_channels, scale
                scale *= 2


class WanDecodeGraph(nn.Module):
    """What decode.onnx and decode_first.onnx hold: latent chunk and states in, uint8 RGB frames and next states out."""

    def __init__(self, model: WanVae, first: bool):
        super().__init__()
        self.model, self.first = model, first

    def zero_states(self, latent: Tensor) -> list[Tensor]:
        return self.model.zero_states(latent)

    def forward(self, latent: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """latent [1, C, F, h, w] float32 -> frames [4F or 4F − 3, H, W, 3] uint8, states."""
        after, parts = list(states), []
        for i, one in enumerate(latent.split(1, 2)):  # one latent frame after the other: a third of the activations
            frames, after = self.model.decode(one, after, self.first and i == 0)
            parts.append(frames[0])
        pixels = ((torch.cat(parts, 1).float().clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 3, 0)
        return pixels.to(torch.uint8), *after  # the cast comes last: TensorRT knows uint8 only at a graph's ends


class WanEncodeGraph(nn.Module):
    """What encode.onnx holds: a clip in, the latents that anchor a stream out."""

    def __init__(self, model: WanVae):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """frames [1 + 4n, H, W, 3] uint8 RGB -> latent [1, C, 1 + n, h, w] float32."""
        clip = (frames.float() / 127.5 - 1).permute(3, 0, 1, 2).unsqueeze(0)
        latent, after = self.model.encode(clip[:, :, :1])  # one latent frame after the other, as when decoding
        parts = [latent]
        for four in clip[:, :, 1:].split(4, 2) if clip.shape[2] > 1 else ():
            latent, after = self.model.encode(four, after, first=False)
            parts.append(latent)
        return torch.cat(parts, 2)
