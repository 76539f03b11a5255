"""The causal Wan transformer, written once: for training, for eager checks and for export.

`WAN_1_3B`, `WAN_5B` and `DEMO` differ only in numbers. Parameter names are the public checkpoint's. Two exact rewritings are
folded into the weights when a checkpoint is loaded (`fold`), because they make the exported graph smaller and faster:

* the rows of q and k are permuted within each head from interleaved RoPE pairs (2j, 2j+1) to halves (j, j + D/2); a dot
  product does not see a permutation that both sides share;
* 1/√D goes into the RMSNorm weight of q, so that every attention here has scale 1.

Shapes in comments: B batch, N = F·h·w tokens of a chunk, H heads, D head dim, d = H·D.
How keys and values of a chunk meet those of the past is not the model's business: `attend(layer, q, k, v)` is passed in,
and is the KV ring in the step graph, a gather over whole sequences in training, a plain list in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.rope import axis_frequencies, split_head_dim
from .lazy import Lazy, changed
from .sizes import check_sizes

Attention3 = Callable[[Tensor, Tensor, Tensor], Tensor]  # (q, k, v) -> [B, H, N, D]
Rotate = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, cos, sin), see rotate
Rope = tuple[Tensor, Tensor]  # cosines and sines [B, H, N, D/2]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # (layer, q, k, v) each [B, H, N, D] -> [B, H, N, D]


@dataclass(frozen=True)
class WanConfig:
    """Numbers of one member of the family."""

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    latent_channels: int
    text_dim: int
    text_len: int
    freq_dim: int = 256
    eps: float = 1e-6
    theta: float = 10000.0  # RoPE base

    def __post_init__(self) -> None:
        """Raises ValueError for numbers of which no transformer is made, whichever file said them."""
        whole = ("dim", "ffn_dim", "heads", "layers", "latent_channels", "text_dim", "text_len", "freq_dim")
        check_sizes((name, getattr(self, name)) for name in whole)
        for name, value in (("eps", self.eps), ("theta", self.theta)):
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
                raise ValueError(f"{name} {value!r}: expected a number above 0")
        if self.dim % self.heads or self.head_dim % 2:
            raise ValueError(
                f"{self.heads} heads for dim {self.dim}; expected a number that divides it into even parts"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, heads=12, layers=30, latent_channels=16, text_dim=4096, text_len=512)
WAN_5B = WanConfig(dim=3072, ffn_dim=14336, heads=24, layers=30, latent_channels=48, text_dim=4096, text_len=512)
DEMO = WanConfig(dim=256, ffn_dim=640, heads=4, layers=4, latent_channels=16, text_dim=384, text_len=32)


def spatial_tables(config: WanConfig, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the row and column angles of one latent frame's tokens, float32 [rows·columns, pairs]."""
    _, dh, dw = split_head_dim(config.head_dim)
    row = np.arange(rows)[:, None, None] * axis_frequencies(config.theta, dh)  # (h, 1, dh/2)
    column = np.arange(columns)[None, :, None] * axis_frequencies(config.theta, dw)  # (1, w, dw/2)
    shape = (rows, columns)
    angle = np.concatenate([np.broadcast_to(a, (*shape, a.shape[-1])) for a in (row, column)], -1)
    angle = torch.from_numpy(angle.reshape(rows * columns, -1))
    return angle.cos().float(), angle.sin().float()


def join_tables(temporal: Tensor, spatial: Tensor) -> Tensor:
    """temporal [B, H, F, Kt], spatial [h·w, Ks] -> [B, H, N, D/2], tokens in frame, row, column order."""
    return join_spread(temporal, spatial.expand(*temporal.shape[:3], *spatial.shape))


def join_spread(temporal: Tensor, spatial: Tensor) -> Tensor:
    """The same for spatial [B, H, F, h·w, Ks]."""
    b, heads, frames, kt = temporal.shape
    time = temporal.unsqueeze(3).expand(b, heads, frames, spatial.shape[3], kt)
    return torch.cat([time, spatial], -1).flatten(2, 3)


def rope_tables(cos: Tensor, sin: Tensor, spatial: tuple[Tensor, Tensor]) -> Rope | list[Rope]:
    """A chunk's tables from its temporal ones [H, F, Kt], the same for all layers, or [L, H, F, Kt], a pair a layer."""
    # Spread once for all layers: an exported graph holds it as one constant then, not as one for every layer.
    of_cos, of_sin = (s.expand(1, *cos.shape[-3:-1], *s.shape) for s in spatial)
    if cos.dim() == 3:
        return join_spread(cos.unsqueeze(0), of_cos), join_spread(sin.unsqueeze(0), of_sin)
    layers = zip(cos.unsqueeze(1), sin.unsqueeze(1), strict=True)
    return [(join_spread(c, of_cos), join_spread(s, of_sin)) for c, s in layers]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on halves: x [B, H, N, D], cos and sin [B, H, N, D/2]. In float32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class RMSNorm(nn.Module):
    """Over all channels, before the split into heads; in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y / (y.square().mean(-1, keepdim=True) + self.eps).sqrt()  # a form that engines know as one operator
        return (y * self.weight.float()).to(x.dtype)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)


def frames_of(x: Tensor, numbers: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """change(x) of tokens x (B, N, d) by numbers (B, 1, d); or, where B is 1, by those of every frame (F, 1, d)."""
    if len(numbers) == len(x):
        return change(x)
    return change(x.reshape(len(numbers), -1, x.shape[-1])).reshape(x.shape)


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LN(x)·(1 + scale) + shift in float32; x (B, N, d), the others as in `frames_of`."""
    return frames_of(layer_norm(x, eps).float(), scale, lambda y: y * (1 + scale) + shift).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c: WanConfig):
        super().__init__()
        self.heads = c.heads
        self.q, self.k, self.v, self.o = (nn.Linear(c.dim, c.dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(c.dim, c.eps), RMSNorm(c.dim, c.eps)
        nn.init.constant_(self.norm_q.weight, 1 / math.sqrt(c.head_dim))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, d) -> (B, H, N, D)

    def queries(self, x: Tensor) -> Tensor:
        return self.split(self.norm_q(self.q(x)))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.norm_k(self.k(x))), self.split(self.v(x))

    def join(self, y: Tensor) -> Tensor:
        return self.o(y.transpose(1, 2).flatten(2))  # (B, H, N, D) -> (B, N, d)


class Block(nn.Module):
    def __init__(self, c: WanConfig):
        super().__init__()
        self.eps = c.eps
        self.modulation = nn.Parameter(torch.randn(1, 6, c.dim) / c.dim**0.5)
        self.self_attn, self.cross_attn = Attention(c), Attention(c)
        self.norm3 = nn.LayerNorm(c.dim, eps=c.eps)
        self.ffn = nn.Sequential(nn.Linear(c.dim, c.ffn_dim), nn.GELU("tanh"), nn.Linear(c.ffn_dim, c.dim))

    # In two halves around the self-attention: what the past is and how it is attended to stays outside.

    def project(self, x: Tensor, modulation: Tensor, rope: Rope, turn: Rotate) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, d), modulation (B, 6, d), rope (B, H, N, D/2) each -> rotated q and k, and v, (B, H, N, D)"""
        shift, scale = modulation[:, 0:1], modulation[:, 1:2]
        y = self.modulated(x, scale, shift)
        k, v = self.self_attn.keys_values(y)
        return turn(self.self_attn.queries(y), *rope), turn(k, *rope), v

    def finish(
        self, x: Tensor, y: Tensor, modulation: Tensor, context: tuple[Tensor, Tensor], attention: Attention3
    ) -> Tensor:
        """y (B, H, N, D): what the self-attention found; context: the prompt's k and v (B, H, text_len, D)"""
        gate1, shift, scale, gate2 = (modulation[:, i : i + 1] for i in range(2, 6))  # (B, 1, d) each
        x = self.gated(x, self.self_attn.join(y), gate1)
        q = self.cross_attn.queries(self.norm3(x.float()).to(x.dtype))
        x = x + self.cross_attn.join(attention(q, *context))
        return self.gated(x, self.ffn(self.modulated(x, scale, shift)), gate2)

    def modulated(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return modulated(x, scale, shift, self.eps)

    def gated(self, x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
        return (x.float() + frames_of(y.float(), gate, lambda y: y * gate)).to(x.dtype)


class Head(nn.Module):
    def __init__(self, c: WanConfig):
        super().__init__()
        self.eps = c.eps
        self.modulation = nn.Parameter(torch.randn(1, 2, c.dim) / c.dim**0.5)
        self.head = nn.Linear(c.dim, 4 * c.latent_channels)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.split(1, 1)
        return self.head(modulated(x, scale, shift, self.eps))


def eager_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ)·v with scale 1 (1/√D is in q). [B, H, N, D] × [B, H, S, D] -> [B, H, N, D]"""
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


class Wan(nn.Module):
    """The transformer without any notion of cache: tokens of one chunk in, flow prediction out."""

    def __init__(self, config: WanConfig):
        super().__init__()
        c = self.config = config
        self.patch_embedding = nn.Conv3d(c.latent_channels, c.dim, (1, 2, 2), stride=(1, 2, 2))
        self.text_embedding = nn.Sequential(nn.Linear(c.text_dim, c.dim), nn.GELU("tanh"), nn.Linear(c.dim, c.dim))
        self.time_embedding = nn.Sequential(nn.Linear(c.freq_dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.head = Head(c)

    def patchify(self, latent: Tensor) -> Tensor:
        """[B, C, F, 2h, 2w] -> tokens [B, N, d]: the Conv3d of the checkpoint, as one matrix product."""
        b, c, f, hh, ww = latent.shape
        x = latent.reshape(b, c, f, hh // 2, 2, ww // 2, 2)
        x = x.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, f * (hh // 2) * (ww // 2), 4 * c)  # (c, ph, pw) as in the kernel
        return F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def unpatchify(self, x: Tensor, frames: int, rows: int, columns: int) -> Tensor:
        """[B, N, (ph, pw, C)] -> [B, C, F, 2h, 2w]"""
        x = x.reshape(x.shape[0], frames, rows, columns, 2, 2, self.config.latent_channels)
        return x.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape[0], -1, frames, 2 * rows, 2 * columns)

    def time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """timestep [B] in 0…1000, or of one chunk's frames [F] -> modulation of every block [B, L, 6, d] and of the head
        [B, 2, d], float32."""
        half = self.config.freq_dim // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
        angle = timestep.double()[:, None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], -1).to(self.time_embedding[0].weight.dtype)  # type: ignore[arg-type]
        e = self.time_embedding(wave)  # (B, d)
        e0 = self.time_projection(e).unflatten(-1, (6, -1)).float()  # (B, 6, d)
        blocks = torch.stack([block.modulation.float() + e0 for block in self.blocks], 1)  # type: ignore[operator, union-attr]
        return blocks, self.head.modulation.float() + e.float().unsqueeze(1)

    def context(self, text: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Text embeddings [B, text_len, text_dim], zero rows after the prompt -> each layer's (k, v) [B, H, text_len, D]."""
        embedded = self.text_embedding(text)
        return [block.cross_attn.keys_values(embedded) for block in self.blocks]  # type: ignore[union-attr, operator]

    def forward(
        self,
        latent: Tensor,  # (B, C, F, 2h, 2w)
        modulation: tuple[Tensor, Tensor],  # from time()
        rope: Rope | Sequence[Rope],  # (B, H, N, D/2) each; a sequence: every layer's own
        context: list[tuple[Tensor, Tensor]],  # from context()
        attend: Attend,
        attention: Attention3 = eager_attention,
        turn: Rotate = rotate,
    ) -> Tensor:
        """Flow prediction v = noise − x0, [B, C, F, 2h, 2w]."""
        _, _, frames, hh, ww = latent.shape
        x = self.patchify(latent)
        for i, block in enumerate(self.blocks):
            own = modulation[0][:, i]  # (B, 6, d)
            turned = rope if isinstance(rope, tuple) else rope[i]
            y = attend(i, *block.project(x, own, turned, turn))  # type: ignore[operator]
            x = block.finish(x, y, own, context[i], attention)  # type: ignore[operator]
        return self.unpatchify(self.head(x, modulation[1]), frames, hh // 2, ww // 2)


def half_order(heads: int, head_dim: int) -> Tensor:
    """Row order that turns interleaved pairs into halves: new row j of a head is old row 2j, new row D/2 + j is 2j + 1."""
    within = torch.arange(head_dim).view(-1, 2).T.reshape(-1)
    return (torch.arange(heads)[:, None] * head_dim + within).reshape(-1)


def fold(state: Mapping[str, Tensor], config: WanConfig) -> Lazy:
    """A checkpoint in the public convention -> the convention of `Wan` (see the module docstring), tensor by tensor when
    they are asked for."""
    return _convert(state, half_order(config.heads, config.head_dim), 1 / math.sqrt(config.head_dim))


def unfold(state: Mapping[str, Tensor], config: WanConfig) -> dict[str, Tensor]:
    """The inverse of `fold`, for saving what was trained here in the public convention."""
    return dict(_convert(state, torch.argsort(half_order(config.heads, config.head_dim)), math.sqrt(config.head_dim)))


def _convert(state: Mapping[str, Tensor], order: Tensor, q_scale: float) -> Lazy:
    rows = tuple(
        f"self_attn.{n}" for n in ("q.weight", "q.bias", "k.weight", "k.bias", "norm_q.weight", "norm_k.weight")
    )
    permuted = changed(state, {name: lambda value: value[order] for name in state if name.endswith(rows)})
    scaled = [name for name in state if name.endswith("norm_q.weight")]
    # The factor is no power of two: half precision would round.
    return changed(permuted, {name: lambda value: value.float() * q_scale for name in scaled})
