"""The Wan 2.1 VAE, causal in time: a streaming decoder with its feature cache as explicit state, and the encoder.

Parameter names are the public checkpoint's (`Wan2.1_VAE.pth`). Inside, frames are the batch, [T, C, H, W], and a convolution
over time is one over space of a frame and those before it, side by side as channels: the same sums, by kernels that every
engine has, without the large scratch memory of theirs in three dimensions.

Every 3×3×3 convolution sees its own input one and two frames earlier: that is its state, zeros before the stream begins.
The two temporal up-samplers double every frame but the stream's very first, which passes around them and which their own
state never sees; so the first chunk of F latent frames gives 4F − 3 pixel frames, every later one 4F, and the first has a
graph of its own.
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
        """x [T, C, H, W] with its `length` frames of past in front; keeps the last ones for the next pass."""
        past = x.new_zeros(length, *x.shape[1:]) if self._before is None else next(self._before)
        x = torch.cat([past, x])
        self.after.append(x[len(x) - length :])
        return x

    def pass_by(self, like: Tensor, length: int) -> None:
        """A convolution that this pass has no input for: its state stays."""
        past = like.new_zeros(length, *like.shape[1:]) if self._before is None else next(self._before)
        self.after.append(past + 0)  # a tensor of its own: no graph output may be a graph input


def beside(x: Tensor, frames: int, stride: int = 1) -> Tensor:
    """x [T, C, H, W] -> [⌊(T − frames)/stride⌋ + 1, frames·C, H, W]: each frame and those after it, side by side."""
    if frames == 1:
        return x
    count = (len(x) - frames) // stride + 1
    if count > 1:
        order = stride * torch.arange(count, device=x.device)[:, None] + torch.arange(frames, device=x.device)
        x = x.index_select(0, order.flatten())
    return x.reshape(count, -1, *x.shape[2:])


class TimeConv(nn.Conv3d):
    """A convolution over frames [T, C, H, W], padded in space by half its kernel and in time not at all."""

    def __init__(self, n_in: int, n_out: int, kernel: tuple[int, int, int], stride: int = 1):
        super().__init__(n_in, n_out, kernel, stride=(stride, 1, 1))

    def flat(self) -> Tensor:
        """Its weight [O, frames·C, kh, kw], as frames side by side want it."""
        return self.weight.transpose(1, 2).flatten(1, 2) if self.weight.dim() == 5 else self.weight

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        frames, height, width = self.kernel_size
        return F.conv2d(beside(x, frames, self.stride[0]), self.flat(), self.bias, padding=(height // 2, width // 2))


class CausalConv3d(TimeConv):
    """The same with the frames before in front, its state."""

    def __init__(self, n_in: int, n_out: int, kernel: tuple[int, int, int] = (3, 3, 3)):
        super().__init__(n_in, n_out, kernel)

    def forward(self, x: Tensor, states: States) -> Tensor:  # type: ignore[override]
        return super().forward(states.extend(x, self.kernel_size[0] - 1) if self.kernel_size[0] > 1 else x)


class RmsNorm(nn.Module):
    """Over channels: x/‖x‖·√C·γ. γ is stored with axes behind the channels, of which there are two here."""

    def __init__(self, channels: int, axes: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        y = F.normalize(x.float(), dim=1) * len(self.gamma) ** 0.5
        return (y * self.gamma.float().view(-1, 1, 1)).to(x.dtype)


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
        self.shortcut = TimeConv(n_in, n_out, (1, 1, 1)) if n_in != n_out else nn.Identity()

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
        c, h, w = x.shape[1:]
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, -1)  # (T, H·W, C)
        weights = ((q * c**-0.5) @ k.transpose(1, 2)).float().softmax(-1).to(x.dtype)
        return self.proj((weights @ v).transpose(1, 2).unflatten(2, (h, w))) + x


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
            lead, rest = (x[:1], x[1:]) if first else (x[:0], x)
            if len(rest):
                # Of 2C channels the first C are the earlier of the two frames.
                rest = self.time_conv(rest, states).unflatten(1, (2, -1)).flatten(0, 1)
            else:
                states.pass_by(x, 2)
            x = torch.cat([lead, rest]) if first else rest
        return self.resample(x)


class Downsample(nn.Module):
    """Half the height and width; with `time`, of 1 + 2n frames the first and then n."""

    def __init__(self, channels: int, time: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        self.time_conv = TimeConv(channels, channels, (3, 1, 1), stride=2) if time else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.resample(x)
        if self.time_conv is not None and len(x) > 1:
            x = torch.cat([x[:1], self.time_conv(x)])
        return x


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

    def forward(self, x: Tensor) -> Tensor:
        states = States(None)
        x = self.conv1(x, states)
        for block in self.downsamples:
            x = block(x) if isinstance(block, Downsample) else block(x, states)
        return self.head(self.middle(x, states), states)


def folded(x: Tensor, patch: int) -> Tensor:
    """[T, C, p·H, p·W] -> [T, C·p², H, W]. Of the p² channels of a colour, the column is the slower index."""
    return F.pixel_unshuffle(x.transpose(2, 3), patch).transpose(2, 3) if patch > 1 else x


def unfolded(x: Tensor, patch: int) -> Tensor:
    """The inverse of `folded`."""
    return F.pixel_shuffle(x.transpose(2, 3), patch).transpose(2, 3) if patch > 1 else x


class WanVae(nn.Module):
    """Encoder, decoder, and the 1×1×1 convolutions between them and the latents (conv1, conv2)."""

    mean: Tensor
    std: Tensor
    halves: tuple[type[nn.Module], type[nn.Module]] = (Encoder, Decoder)

    def __init__(self, config: WanVaeConfig):
        super().__init__()
        self.config = c = config
        self.encoder, self.decoder = (half(c) for half in self.halves)
        self.conv1 = TimeConv(2 * c.latent_channels, 2 * c.latent_channels, (1, 1, 1))
        self.conv2 = TimeConv(c.latent_channels, c.latent_channels, (1, 1, 1))
        for name, values in (("mean", c.mean), ("std", c.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def flatten(self) -> None:
        """Weights as they are used, in place: no graph need turn them."""
        for module in self.modules():
            if isinstance(module, TimeConv):
                module.weight = nn.Parameter(module.flat().contiguous(), requires_grad=False)

    def decode(
        self, latents: Tensor, states: list[Tensor] | None = None, first: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """latents [1, C, T, h, w], normalised -> frames [1, 3, 4T (−3 if first), s·h, s·w] nominally in [−1, 1], states.
        s: 8, times the config's patch."""
        running = States(states)
        x = (latents[0].transpose(0, 1) * self.std + self.mean).to(self.conv2.weight.dtype)
        frames = unfolded(self.decoder(self.conv2(x), running, first), self.config.patch)
        return frames.transpose(0, 1).unsqueeze(0), running.after

    def encode(self, frames: Tensor) -> Tensor:
        """frames [1, 3, 1 + 4n, H, W] in [−1, 1] -> normalised latents [1, C, 1 + n, H/s, W/s]: the posterior's mean."""
        x = folded(frames[0].transpose(0, 1).to(self.conv1.weight.dtype), self.config.patch)
        moments = self.conv1(self.encoder(x)).float()
        latents = (moments[:, : self.config.latent_channels] - self.mean) / self.std
        return latents.transpose(0, 1).unsqueeze(0)

    def zero_states(self, latent: Tensor) -> list[Tensor]:
        """The decoder's states [2, C, H, W] before a stream of latents [1, C, T, h, w] begins."""
        h, w = latent.shape[3:]
        dtype = self.conv2.weight.dtype
        return [torch.zeros(2, c, h * s, w * s, dtype=dtype) for c, s in self._state_sizes()]

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
            parts.append(frames[0])  # (3, T, H, W)
        pixels = ((torch.cat(parts, 1).float().clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 3, 0)
        return pixels.to(torch.uint8), *after  # the cast comes last: TensorRT knows uint8 only at a graph's ends


class WanEncodeGraph(nn.Module):
    """What encode.onnx holds: a clip in, the latents that anchor a stream out."""

    def __init__(self, model: WanVae):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """frames [1 + 4n, H, W, 3] uint8 RGB -> latent [1, C, 1 + n, h, w] float32."""
        return self.model.encode((frames.float() / 127.5 - 1).permute(3, 0, 1, 2).unsqueeze(0))
