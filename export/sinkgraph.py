"""Sinks that move: one layer of a running mean, into which every chunk that leaves the ring is folded (Reward Forcing).

    K_sink ← α·K_sink + (1 − α)·K_left,   V_sink ← α·V_sink + (1 − α)·V_left

token by token, on keys before RoPE. Keys stand in the ring after RoPE; a rotation is linear, so those that leave are
turned to where the sinks first stood, and the mean is kept there, in float32 and in the ring, whose step graph turns the
sinks if they are to follow the window. All layers have the same shapes: one graph, bound to each of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .graphs import Ring, time_alone
from .wan import WanConfig, rotate


class SinkGraph(nn.Module):
    def __init__(self, config: WanConfig, ring: Ring, portable: bool, kind: torch.dtype):
        super().__init__()
        self.config, self.ring, self.kind = config, ring, kind
        self.held = ring.cache_tokens - (ring.chunk_tokens if portable else 0)

    def forward(
        self,
        k: Tensor,  # (1, H, ring tokens, D), of one layer
        v: Tensor,
        mean_k: Tensor,  # (1, H, N, D) float32
        mean_v: Tensor,
        leaving: Tensor,  # (1,) int64: token index in the ring where the chunk that leaves begins
        keep: Tensor,  # (1,) float32: α; 1 folds nothing in, 0 makes that chunk the mean
        back_cos: Tensor,  # (H, 1, Dt/2), of the layer: from where the chunk stands to where the sinks first stood
        back_sin: Tensor,
    ) -> tuple[Tensor, ...]:
        """-> mean_k_next, mean_v_next, and the sinks as the ring is to hold them, k_0_new and v_0_new."""
        rows = leaving + torch.arange(self.ring.chunk_tokens, device=leaving.device)
        left_k, left_v = (x.index_select(2, rows).float() for x in (k, v))
        pairs = self.config.head_dim // 2
        left_k = rotate(left_k, *(time_alone(t, pairs, s)[None] for t, s in ((back_cos, 1.0), (back_sin, 0.0))))
        share = keep.view(1, 1, 1, 1)
        mean_k, mean_v = (share * m + (1 - share) * x for m, x in ((mean_k, left_k), (mean_v, left_v)))
        return mean_k, mean_v, mean_k.to(self.kind), mean_v.to(self.kind)

    def example(self, pairs: int) -> tuple[tuple[Tensor, ...], list[str], list[str]]:
        """Arguments to export with, the inputs' names and the outputs'. pairs: temporal channel pairs of a head."""
        c = self.config
        held = torch.zeros(1, c.heads, self.held, c.head_dim, dtype=self.kind)
        mean = torch.zeros(1, c.heads, self.ring.chunk_tokens, c.head_dim)
        tables = tuple(torch.zeros(c.heads, 1, pairs) for _ in range(2))
        args = (held, held.clone(), mean, mean.clone(), torch.zeros(1, dtype=torch.int64), torch.zeros(1), *tables)
        inputs = ["k_0", "v_0", "mean_k", "mean_v", "leaving", "keep", "back_cos", "back_sin"]
        return args, inputs, ["mean_k_next", "mean_v_next", "k_0_new", "v_0_new"]
