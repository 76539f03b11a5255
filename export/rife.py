"""RIFE's IFNet of versions 4.5 to 4.26, from its published weights alone: every width, the number of blocks and the kind of
encoder are read off the tensors.

Real-Time Intermediate Flow Estimation for Video Frame Interpolation, Huang et al. 2022 (https://arxiv.org/abs/2011.06294),
as https://github.com/hzwer/Practical-RIFE publishes it (`flownet.pkl`). Blocks go from coarse to fine. Each looks at the two
frames as its predecessors' flows move them, at how far between them the wanted one lies, and adds to the flows:

| | encoder of frames | blocks | mask | handed on |
|---|---|---|---|---|
| 4.5, 4.6 | none | 4 | adds up | |
| 4.7 to 4.24 | `encode.0`, `encode.1`, or `encode.cnn0` … `cnn3` | 4 | each block's own | |
| 4.25, 4.26 | `encode.cnn0` … `cnn3` | 5 | each block's own | what lastconv has beyond flows and mask |
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..engines.errors import UserError
from .names import State

UNUSED = 1  # of six values that the last convolution of a block without features makes, the sixth
SLOPE = 0.2


class _Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.beta = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x) * self.beta + x, SLOPE)


def _halving(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.LeakyReLU(SLOPE))


class _Block(nn.Module):
    """At 1/scale of the size: what it is given, and the flows so far -> what to add to them, a mask, features."""

    def __init__(self, taken: int, width: int, depth: int, made: int, scale: int):
        super().__init__()
        self.conv0 = nn.Sequential(_halving(taken, width // 2), _halving(width // 2, width))
        self.convblock = nn.Sequential(*(_Residual(width) for _ in range(depth)))
        self.lastconv = nn.Sequential(nn.ConvTranspose2d(width, 4 * made, 4, 2, 1), nn.PixelShuffle(2))
        self.scale = scale

    def forward(self, given: Tensor, flow: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        x = self._resized(given, 1 / self.scale)
        if flow is not None:
            x = torch.cat([x, self._resized(flow, 1 / self.scale) / self.scale], 1)
        made = self._resized(self.lastconv(self.convblock(self.conv0(x))), self.scale)
        return made[:, :4] * self.scale, made[:, 4:5], made[:, 5:]

    def _resized(self, x: Tensor, factor: float) -> Tensor:
        if self.scale == 1:
            return x
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


class _Head(nn.Module):
    """Four convolutions, the last of which is back at the frame's size."""

    def __init__(self, width: int, made: int):
        super().__init__()
        self.cnn0, self.cnn1 = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.cnn2, self.cnn3 = nn.Conv2d(width, width, 3, 1, 1), nn.ConvTranspose2d(width, made, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.cnn0, self.cnn1, self.cnn2):
            x = F.leaky_relu(conv(x), SLOPE)
        return self.cnn3(x)


class IFNet(nn.Module):
    """Two frames [1, 3, H, W] in [0, 1] and a position [1] in (0, 1) -> the frame there."""

    def __init__(self, blocks: list[tuple[int, int, int, int]], encode: nn.Module | None):
        """blocks: channels taken, width, residual convolutions and values made of each, coarse to fine."""
        super().__init__()
        self.count = len(blocks)
        for i, sizes in enumerate(blocks):
            self.add_module(f"block{i}", _Block(*sizes, scale=2 ** (self.count - 1 - i)))
        self.encode = encode
        self.hands_on = blocks[0][3] - 5 > UNUSED

    def forward(self, before: Tensor, after: Tensor, position: Tensor) -> Tensor:
        h, w = before.shape[2:]
        multiple = 4 * 2 ** (self.count - 1)
        edge = (0, -w % multiple, 0, -h % multiple)
        frames = [F.pad(frame, edge, mode="replicate") if any(edge) else frame for frame in (before, after)]
        place = position.view(1, 1, 1, 1).expand(1, 1, *frames[0].shape[2:])
        features = [] if self.encode is None else [self.encode(frame) for frame in frames]
        flow, mask, extra = self.get_submodule("block0")(torch.cat([*frames, *features, place], 1), None)
        for i in range(1, self.count):
            seen = [_warp(frame, flow, k) for group in (frames, features) for k, frame in enumerate(group)]
            given = torch.cat([*seen, place, mask, *([extra] if self.hands_on else [])], 1)
            more, own, extra = self.get_submodule(f"block{i}")(given, flow)
            flow, mask = flow + more, own if self.encode is not None else mask + own
        one, other = (_warp(frame, flow, k) for k, frame in enumerate(frames))
        share = torch.sigmoid(mask)
        return (one * share + other * (1 - share))[:, :, :h, :w]


def _warp(image: Tensor, flow: Tensor, k: int) -> Tensor:
    """What flow k of two [1, 4, H, W] (right, down, in pixels) finds in the image; beyond its edge, the edge."""
    _, _, h, w = image.shape
    x = torch.linspace(-1, 1, w).view(1, 1, w) + flow[:, 2 * k] * (2 / (w - 1))
    y = torch.linspace(-1, 1, h).view(1, h, 1) + flow[:, 2 * k + 1] * (2 / (h - 1))
    return F.grid_sample(image, torch.stack([x, y], -1), mode="bilinear", padding_mode="border", align_corners=True)


def find_ifnet(state: State, file: Path) -> tuple[IFNet, str]:
    """The network that these tensors are of. Raises UserError for other ones."""
    tensors = {name.removeprefix("module."): value.float() for name, value in state.items()}

    def refuse(found: str) -> UserError:
        return UserError(f"--smooth {file}: {found}; expected the weights of RIFE's IFNet, 4.5 to 4.26 (flownet.pkl)")

    def shape(name: str) -> torch.Size:
        if name not in tensors:
            raise refuse(f"has no tensor {name}, but {next(iter(state))}")
        return tensors[name].shape

    count = len({m[1] for name in tensors if (m := re.match(r"block(\d+)\.conv0", name))})
    if count not in (4, 5):
        raise refuse(f"found {count} blocks")
    blocks = []
    for i in range(count):
        width, taken = shape(f"block{i}.conv0.1.0.weight")[0], shape(f"block{i}.conv0.0.0.weight")[1]
        depth = sum(f"block{i}.convblock.{j}.beta" in tensors for j in range(64))
        blocks.append((taken, width, depth, shape(f"block{i}.lastconv.0.weight")[1] // 4))
    encode = _encoder(tensors, shape)
    net = IFNet(blocks, encode)
    wanted = net.state_dict()
    try:  # what training alone needed (teacher, caltime) is in the files too
        net.load_state_dict({name: value for name, value in tensors.items() if name in wanted})
    except RuntimeError as error:
        raise refuse(" ".join(str(error).split())[:300]) from None
    made = (
        0 if encode is None else shape("encode.1.weight" if "encode.1.weight" in tensors else "encode.cnn3.weight")[1]
    )
    extra = blocks[0][3] - 5 if net.hands_on else 0
    for i, (taken, *_) in enumerate(blocks):
        want = 7 + 2 * made if i == 0 else 12 + 2 * made + extra
        if taken != want:
            raise refuse(f"block{i} takes {taken} channels, not {want}")
    return net, f"RIFE IFNet of {count} blocks, {sum(p.numel() for p in net.parameters()) / 1e6:.1f} M parameters"


def _encoder(tensors: State, shape: object) -> nn.Module | None:
    if "encode.0.weight" in tensors:
        width, made = tensors["encode.0.weight"].shape[0], shape("encode.1.weight")[1]  # type: ignore[operator]
        return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ConvTranspose2d(width, made, 4, 2, 1))
    if "encode.cnn0.weight" in tensors:
        return _Head(tensors["encode.cnn0.weight"].shape[0], shape("encode.cnn3.weight")[1])  # type: ignore[operator]
    return None
