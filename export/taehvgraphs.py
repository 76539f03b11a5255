"""What TAEHV's ONNX graphs hold. The decoder computes what `Taehv.decode` does with less work: frame by frame, so that a
frame's past is a tensor that is there already, and without ever making the last upsampled image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .taehv import MemBlock, Taehv, TGrow, cheapest_order, zero_states

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))  # rows and columns of the 2×2 pixels that come from one


class Ending(nn.Module):
    """Nearest upsampling, 3×3 convolution, ReLU, 3×3 convolution, at the resolution before the upsampling.

    Of the three rows that a kernel reads of the upsampled image, two are one row of the small one: their weights add up, and
    each of the four pixels that come from one has a 2×2 kernel of its own, 4 products in place of 9. The second convolution
    takes the four one by one, as images of their own: a 2×2 kernel reads of each what the four pixels of every colour need.
    A pixel shuffle puts those in place.
    """

    bias: Tensor

    def __init__(self, first: nn.Conv2d, last: nn.Conv2d):
        super().__init__()
        kernel, weight = first.weight.detach().double(), last.weight.detach().double()
        for a, b in PHASES:
            for name, value in (("first", _made(kernel, a, b)), ("last", _read(weight, a, b))):
                self.register_buffer(f"{name}_{a}{b}", value.to(last.weight.dtype))
        self.register_buffer("bias", last.bias.detach().repeat_interleave(4))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """x [1, n, H, W] -> [1, o, 2H, 2W]"""
        taken, bias = [], self.bias
        for a, b in PHASES:
            part = F.relu(F.conv2d(F.pad(x, (1 - b, b, 1 - a, a)), self.get_buffer(f"first_{a}{b}")))
            taken.append(F.conv2d(F.pad(part, (b, 1 - b, a, 1 - a)), self.get_buffer(f"last_{a}{b}"), bias))
            bias = None  # once
        return F.pixel_shuffle(sum(taken[1:], taken[0]), 2)


class Grow(nn.Module):
    """A TGrow over single frames: one 1×1 convolution for each frame that comes out."""

    def __init__(self, grow: TGrow):
        super().__init__()
        self.stride = grow.stride
        for j, weight in enumerate(grow.conv.weight.detach().chunk(grow.stride)):
            self.register_buffer(f"weight_{j}", weight.clone())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.conv2d(x, self.get_buffer(f"weight_{j}")) for j in range(self.stride)]


def _made(kernel: Tensor, row: int, column: int) -> Tensor:
    """The 3×3 kernel as the pixel at (row, column) of its 2×2 block sees the image before upsampling: [m, n, 2, 2]."""
    for axis, place in ((2, row), (3, column)):
        one, two, three = kernel.unbind(axis)
        kernel = torch.stack([one, two + three] if place == 0 else [one + two, three], axis)
    return kernel


def _read(kernel: Tensor, row: int, column: int) -> Tensor:
    """What the 3×3 kernel takes of the pixels at (row, column) of all blocks, for each pixel of a block: [4·o, m, 2, 2].

    The rows of blocks that it reads are this one and, for row 0, the next, for row 1, the one before."""
    taken = kernel.new_zeros(len(kernel), 4, kernel.shape[1], 2, 2)
    for place, (a, b) in enumerate(PHASES):
        for i in range(2):
            for j in range(2):
                # the tap that reads, for pixel (a, b) of a block, pixel (row, column) of the block i − row further down
                down, right = 2 * (i - row) + row - a + 1, 2 * (j - column) + column - b + 1
                if 0 <= down < 3 and 0 <= right < 3:
                    taken[:, place, :, i, j] = kernel[:, :, down, right]
    return taken.flatten(0, 1)


class DecodeGraph(nn.Module):
    """What decode.onnx (and decode_first.onnx, where it differs) holds: latent chunk and states in, uint8 RGB frames and
    the next states out."""

    def __init__(self, model: Taehv, first: bool = False):
        super().__init__()
        self.model, self.skip = model, model.config.lead if first else 0
        if model.config.deep:
            *blocks, self.ending = model.decoder
        else:
            *blocks, _upsample, conv, _relu, last = cheapest_order(model.decoder)
            self.ending = Ending(conv, last)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(Grow(b) if isinstance(b, TGrow) else b for b in blocks)

    def zero_states(self, latent: Tensor) -> list[Tensor]:
        """The states before a stream of latents [1, C, T, h, w] begins."""
        like = self.model.decoder[-1].weight  # type: ignore[union-attr]
        return zero_states(self.model.decoder, 1, latent.shape[3], latent.shape[4], like)  # type: ignore[arg-type]

    def forward(self, latent: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """latent [1, C, F, h, w] float32 (the step graph's layout) -> frames [4F − skip, H, W, 3] uint8, states."""
        dtype: torch.dtype = self.model.decoder[-1].weight.dtype  # type: ignore[union-attr, assignment]
        after, frames = list(states), []
        for one in latent.to(dtype).unbind(2):
            made, after = self._advance(one, after)
            frames += made
        pixels = (torch.cat(frames[self.skip :]).float().clamp(0, 1) * 255).round().permute(0, 2, 3, 1)
        return pixels.to(torch.uint8), *after  # the cast comes last: TensorRT knows uint8 only at a graph's ends

    def _advance(self, latent: Tensor, states: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """latent [1, C, h, w] -> its frames [1, 3, H, W] and the next states."""
        frames, after, states = [latent], [], list(states)
        for block in self.blocks:
            if isinstance(block, MemBlock):
                before = [states.pop(0), *frames[:-1]]
                after.append(frames[-1])
                frames = [block.merged(x, past) for x, past in zip(frames, before, strict=True)]
            elif isinstance(block, Grow):
                frames = [grown for x in frames for grown in block(x)]
            else:
                frames = [block(x) for x in frames]
        patch, made = self.model.config.patch, [self.ending(x) for x in frames]
        return [F.pixel_shuffle(x, patch) for x in made] if patch > 1 else made, after


class EncodeGraph(nn.Module):
    """What encode.onnx holds: a clip in, the latents that anchor a stream out."""

    def __init__(self, model: Taehv):
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """frames [4T − lead, H, W, 3] uint8 RGB -> latent [1, C, T, h, w] float32. The frames that a decoder does not show
        are taken to have been like the first one."""
        clip = (frames.float() / 255).permute(0, 3, 1, 2).unsqueeze(0)
        lead = clip[:, :1].expand(-1, self.model.config.lead, -1, -1, -1)
        latents, _ = self.model.encode(torch.cat([lead, clip], 1).to(self.model.encoder[0].weight.dtype))  # type: ignore[arg-type]
        return latents.transpose(1, 2).float()
