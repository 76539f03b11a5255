"""The pass of a smooth prompt change: all frames of the window at once, at timestep 0, seeing each other both ways.

LongLive's KV-recache: the window's clean latents run through the model under the new prompt in one pass without a mask, and
what they leave is the new ring. The sinks keep their old keys and values, which the frames see; while a stream is not longer
than its window, they are made anew too. The last block ends with its keys and values: nothing reads what would follow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .graphs import (
    PortableStepGraph,
    Ring,
    SinkTurn,
    StepGraph,
    baked_modulation,
    plain_attention,
    ring_attention,
)
from .schedule import Schedule
from .wan import Wan, rope_tables, spatial_tables


class RecacheGraph(nn.Module):
    """W frames of the window in, a whole ring out. Nothing is read and written at once: the sinks come in as copies."""

    block_modulation: Tensor
    spatial_cos: Tensor
    spatial_sin: Tensor

    def __init__(self, model: Wan, schedule: Schedule, ring: Ring, portable: bool, turning: bool = False):
        """turning: the sinks follow the window."""
        super().__init__()
        self.model, self.ring, self.portable, self.turning = model, ring, portable, turning
        self.operators = (PortableStepGraph if portable else StepGraph).operators
        with torch.no_grad():
            blocks, _ = baked_modulation(model, torch.tensor([schedule.context_noise], dtype=torch.float64))
        cos, sin = spatial_tables(model.config, ring.rows, ring.columns)
        for name, value in {"block_modulation": blocks, "spatial_cos": cos, "spatial_sin": sin}.items():
            self.register_buffer(name, value.float())

    @property
    def held(self) -> int:
        """Tokens of the ring that come out: in the portable form it holds the past only."""
        return self.ring.cache_tokens - (self.ring.chunk_tokens if self.portable else 0)

    @property
    def sink_tokens(self) -> int:
        return self.ring.sink * self.ring.frame_tokens

    def forward(
        self,
        latents: Tensor,  # (1, C, W, 2h, 2w), clean, in the order of the ring's slots
        rope_cos: Tensor,  # (H, W, Dt/2), or every layer's own (L, H, W, Dt/2)
        rope_sin: Tensor,
        # kv_len (1,) int64, in the portable form mask (1, 1, 1, S): which of the frames are there; and where sinks follow
        # the window, sink_cos and sink_sin: how far they are turned for the frames to see them
        place: list[Tensor],
        keep: Tensor,  # (1,) int64: 1 the sinks stay as they are, 0 they are made anew
        sink_keys: list[Tensor],  # L × (1, H, sink tokens, D); none without sinks
        sink_values: list[Tensor],
        prompt_keys: list[Tensor],  # L × (1, H, text_len, D)
        prompt_values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """-> k_0_next … k_{L−1}_next, v_0_next … v_{L−1}_next, the ring (1, H, ring tokens, D)."""
        model = self.model
        rope = rope_tables(rope_cos, rope_sin, (self.spatial_cos, self.spatial_sin))
        where, *tables = place
        turned = SinkTurn(tables, self.ring, model.config.head_dim)
        cross, turn = self.operators
        x = model.patchify(latents.to(model.head.head.weight.dtype))
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for i, block in enumerate(model.blocks):
            modulation = self.block_modulation[:, i]
            q, k, v = block.project(x, modulation, rope if isinstance(rope, tuple) else rope[i], turn)  # type: ignore[operator]
            if sink_keys:
                k, v = self.sunk(k, sink_keys[i], keep), self.sunk(v, sink_values[i], keep)
            keys.append(k[:, :, : self.held])
            values.append(v[:, :, : self.held])
            if i < model.config.layers - 1:
                context = (prompt_keys[i], prompt_values[i])
                x = block.finish(x, self.attend(q, turned(i, k), v, where), modulation, context, cross)  # type: ignore[operator]
        return *keys, *values

    def sunk(self, made: Tensor, old: Tensor, keep: Tensor) -> Tensor:
        """made with the old sinks in place of its own where they are kept."""
        sinks = torch.where(keep.view(1, 1, 1, 1) > 0, old, made[:, :, : self.sink_tokens])
        return torch.cat([sinks, made[:, :, self.sink_tokens :]], 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, where: Tensor) -> Tensor:
        if not self.portable:
            return ring_attention(q, k, v, where)
        # A chunk's queries at a time: their scores take no more memory than those of a step.
        parts = q.split(self.ring.chunk_tokens, 2)
        return torch.cat([plain_attention(part, k, v, where) for part in parts], 2)


def example(
    graph: RecacheGraph, latent_shape: tuple[int, ...], kind: torch.dtype, tables: tuple[Tensor, Tensor]
) -> tuple[tuple, list[str], list[str]]:
    """Arguments to export with, the inputs' names and the outputs'. latent_shape [1, C, F, 2h, 2w]: a chunk's; tables: of
    W frames, and of one, as `sink_cos` has it."""
    c, ring = graph.model.config, graph.ring
    batch, channels, _, rows, columns = latent_shape
    if graph.portable:
        place = {"mask": torch.zeros(1, 1, 1, ring.cache_tokens)}
    else:
        place = {"kv_len": torch.tensor([ring.cache_tokens])}
    table, turn = tables
    if graph.turning:
        place |= {"sink_cos": turn.clone(), "sink_sin": turn.clone()}

    def layers(tokens: int) -> list[Tensor]:
        # Every argument is a tensor of its own, or the exporter would make one input of two; expanded, it costs nothing.
        blank = torch.zeros(1, c.heads, 1, c.head_dim, dtype=kind)
        return [blank.clone().expand(-1, -1, tokens, -1) for _ in range(c.layers)] if tokens else []

    sinks = [layers(graph.sink_tokens) for _ in range(2)]
    latents = torch.zeros(batch, channels, ring.window, rows, columns)
    keep = torch.zeros(1, dtype=torch.int64)
    prompts = (layers(c.text_len) for _ in range(2))
    args = (latents, table.clone(), table.clone(), list(place.values()), keep, *sinks, *prompts)
    names = {s: [f"{s}_{i}" for i in range(c.layers)] for s in ("sink_k", "sink_v", "prompt_k", "prompt_v")}
    inputs = ["latents", "rope_cos", "rope_sin", *place, "keep"]
    inputs += [n for s, group in names.items() for n in group if sinks[0] or not s.startswith("sink")]
    return args, inputs, [f"{s}_{i}_next" for s in "kv" for i in range(c.layers)]
