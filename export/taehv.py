"""The tiny video autoencoder (TAEHV): a flat list of blocks, causal in time, with its whole memory as explicit state.

One latent frame stands for four pixel frames and 8×8 pixels, or 16×16 where pixels are folded into channels (`patch`).
`DEMO` and the public `taew2_1` and `taew2_2` differ only in numbers, `taew2_2_super` in its decoder (`deep`); parameter
names are the public checkpoint's (`decoder.7.conv.0.weight`, …).

Frames are [B, T, C, H, W] outside. Running T frames at once with zero states and running them chunk by chunk
with the states handed on are the same computation: a MemBlock sees its own input one step earlier and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sizes import check_sizes

TIME = 4  # pixel frames per latent frame
SPACE = 8  # pixels per latent pixel, along each side, times `patch`


@dataclass(frozen=True)
class TaehvConfig:
    """Widths of the autoencoder. Defaults: the public TAEHV for Wan 2.1."""

    latent_channels: int = 16
    encoder_widths: tuple[int, int, int] = (64, 64, 64)
    decoder_widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    depth: int = 3  # MemBlocks per stage
    lead: int = 3  # pixel frames of a stream's very first latent frame that are not shown
    patch: int = 1  # pixels, along each side, that are channels of the first and last convolution
    deep: bool = False  # the decoder of the variant that is published as "super"

    def __post_init__(self) -> None:
        """Raises ValueError for numbers of which no autoencoder is made, whichever file said them."""
        named = [(name, getattr(self, name)) for name in ("latent_channels", "depth", "patch")]
        for name in ("encoder_widths", "decoder_widths"):
            named += [(name, width) for width in getattr(self, name)]
        check_sizes(named)
        if self.lead not in range(TIME):
            raise ValueError(f"lead {self.lead!r}: expected 0 to {TIME - 1} pixel frames")


DEMO = TaehvConfig(latent_channels=16, encoder_widths=(32, 48, 48), decoder_widths=(96, 64, 32, 32), lead=0)


def conv(n_in: int, n_out: int, **kw) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, padding=1, **kw)


class MemBlock(nn.Module):
    """relu(conv·relu·conv·relu·conv of concat(x, past) + x), where past is this block's input one frame earlier."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.conv = nn.Sequential(conv(2 * width, width), nn.ReLU(), conv(width, width), nn.ReLU(), conv(width, width))

    def merged(self, x: Tensor, past: Tensor) -> Tensor:
        """[N, C, H, W], of frames and the ones before them -> the same shape."""
        return F.relu(self.conv(torch.cat([x, past], 1)) + x)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """x [T·B, C, H, W], state [B, C, H, W] (the frame before x) -> y like x, and the next state."""
        batch = len(state)
        return self.merged(x, torch.cat([state, x[:-batch]], 0)), x[-batch:]


class DeepMemBlock(MemBlock):
    """The same with a 7×7 depthwise convolution and an inverted bottleneck, and no ReLU after the sum."""

    def __init__(self, width: int):
        nn.Module.__init__(self)
        self.width = width
        self.conv = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 7, padding=3, groups=2 * width, bias=False),
            nn.Conv2d(2 * width, 4 * width, 1),
            nn.ReLU(),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def merged(self, x: Tensor, past: Tensor) -> Tensor:
        return self.conv(torch.cat([x, past], 1)) + x


class TPool(nn.Module):
    """Merge `stride` neighbouring frames into one by a 1×1 convolution over their channels."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width * stride, width, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        frames = x.unflatten(0, (-1, self.stride, batch))  # (T/s, s, B, C, H, W)
        return self.conv(torch.cat([frames[:, j].flatten(0, 1) for j in range(self.stride)], 1))


class TGrow(nn.Module):
    """Split one frame into `stride` frames by a 1×1 convolution."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        frames = self.conv(x).chunk(self.stride, 1)  # s × (T·B, C, H, W)
        return torch.stack([f.unflatten(0, (-1, batch)) for f in frames], 1).flatten(0, 2)


class Upsample(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Clamp(nn.Module):
    """Soft clamp of the latents to ±3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class RawClamp(nn.Module):
    """The same of normalised latents made raw: x·std + mean, in float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        raw = x.float() * self.std + self.mean
        return (torch.tanh(raw / 3) * 3).to(x.dtype)


def build_encoder(c: TaehvConfig) -> nn.ModuleList:
    blocks: list[nn.Module] = [conv(3 * c.patch**2, c.encoder_widths[0]), nn.ReLU()]
    width = c.encoder_widths[0]
    for n, stride in zip(c.encoder_widths, (2, 2, 1), strict=True):
        blocks += [TPool(width, stride), conv(width, n, stride=2, bias=False), *(MemBlock(n) for _ in range(c.depth))]
        width = n
    return nn.ModuleList([*blocks, conv(width, c.latent_channels)])


def build_decoder(c: TaehvConfig) -> nn.ModuleList:
    if c.deep:
        return build_deep_decoder(c)
    blocks: list[nn.Module] = [Clamp(), conv(c.latent_channels, c.decoder_widths[0]), nn.ReLU()]
    for n, m, stride in zip(c.decoder_widths[:-1], c.decoder_widths[1:], (1, 2, 2), strict=True):
        blocks += [*(MemBlock(n) for _ in range(c.depth)), Upsample(), TGrow(n, stride), conv(n, m, bias=False)]
    return nn.ModuleList([*blocks, nn.ReLU(), conv(c.decoder_widths[-1], 3 * c.patch**2)])


def build_deep_decoder(c: TaehvConfig) -> nn.ModuleList:
    blocks: list[nn.Module] = [nn.Conv2d(c.latent_channels, c.decoder_widths[0], 1, bias=False)]
    for n, m, stride in zip(c.decoder_widths[:-1], c.decoder_widths[1:], (1, 2, 2), strict=True):
        blocks += [*(DeepMemBlock(n) for _ in range(c.depth)), conv(n, 4 * m), nn.ReLU(), nn.PixelShuffle(2)]
        blocks.append(TGrow(m, stride))
    return nn.ModuleList([*blocks, conv(c.decoder_widths[-1], 3 * c.patch**2)])


def run(blocks: nn.ModuleList, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Run a block list over x [B, T, C, H, W]; states: one [B, C, H, W] per MemBlock. Returns (y, next states).

    Inside, frames stand time-major in one axis [T·B, …], so that "one frame earlier" is a slice.
    """
    states, after, batch = list(states), [], len(x)
    x = x.transpose(0, 1).flatten(0, 1)
    for block in cheapest_order(blocks):
        if isinstance(block, MemBlock):
            x, state = block(x, states.pop(0))
            after.append(state)
        elif isinstance(block, TPool | TGrow):
            x = block(x, batch)
        else:
            x = block(x)
    return x.unflatten(0, (-1, batch)).transpose(0, 1), after


def cheapest_order(blocks: nn.ModuleList) -> list[nn.Module]:
    """The blocks with every TGrow before its Upsample: a 1×1 convolution commutes with nearest upsampling, and costs a
    quarter before it."""
    order = list(blocks)
    for i, (first, second) in enumerate(pairwise(blocks)):
        if isinstance(first, Upsample) and isinstance(second, TGrow):
            order[i], order[i + 1] = second, first
    return order


def zero_states(blocks: nn.ModuleList, batch: int, height: int, width: int, like: Tensor) -> list[Tensor]:
    """The memory at the start of a stream, for an input of height × width."""
    states = []
    for block in blocks:
        if isinstance(block, MemBlock):
            states.append(like.new_zeros(batch, block.width, height, width))
        elif isinstance(block, Upsample | nn.PixelShuffle):
            height, width = height * 2, width * 2
        elif isinstance(block, nn.Conv2d) and block.stride == (2, 2):
            height, width = height // 2, width // 2
    return states


class Taehv(nn.Module):
    """Encoder and decoder. Latents are the transformer's: about zero mean and unit deviation in every channel."""

    def __init__(self, config: TaehvConfig):
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.decoder = build_decoder(config)

    def encode(self, frames: Tensor, states: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """frames [B, 4T, 3, H, W] in [0, 1] -> latents [B, T, C, h, w], of 8 times `patch` pixels along each side."""
        if self.config.patch > 1:
            frames = F.pixel_unshuffle(frames, self.config.patch)
        b, _, _, h, w = frames.shape
        return run(self.encoder, frames, zero_states(self.encoder, b, h, w, frames) if states is None else states)

    def decode(self, latents: Tensor, states: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """latents [B, T, C, h, w] -> frames [B, 4T, 3, H, W], nominally in [0, 1] and not clamped."""
        b, _, _, h, w = latents.shape
        y, after = run(self.decoder, latents, zero_states(self.decoder, b, h, w, latents) if states is None else states)
        return F.pixel_shuffle(y, self.config.patch) if self.config.patch > 1 else y, after


def public_weights(state: Mapping[str, Tensor], config: TaehvConfig) -> dict[str, Tensor]:
    """A public TAEHV checkpoint as `Taehv` wants it: it holds every TGrow for two frames, and one that makes a single
    frame uses the last half of its channels."""
    wanted = {name: len(value) for name, value in Taehv(config).state_dict().items()}
    grown = {name for name in state if name in wanted and len(state[name]) == 2 * wanted[name]}
    return {name: value[wanted[name] :] if name in grown else value for name, value in state.items()}


def take_raw(model: Taehv, mean: Sequence[float], std: Sequence[float]) -> None:
    """Turn an autoencoder of raw latents into one of normalised latents, in place: its decoder begins with x·std + mean,
    and its encoder's last convolution ends with (x − mean)/std."""
    model.decoder[0] = RawClamp(mean, std)
    last = model.encoder[-1]
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    last.weight.data = (last.weight.double() / s.view(-1, 1, 1, 1)).to(last.weight.dtype)
    last.bias.data = ((last.bias.double() - m) / s).to(last.bias.dtype)
