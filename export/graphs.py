"""The exported graphs as PyTorch modules: one denoising or commit pass over the KV ring, and the prompt's keys and values.

In eager mode these modules compute the same numbers with plain PyTorch (the ring is copied, not updated in place); under
ONNX export the two cache operations become TensorScatter and Attention of opset 24, which ONNX Runtime and TensorRT run
in place, and RoPE becomes RotaryEmbedding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .samplers import sampler_of
from .schedule import Schedule
from .wan import Attend, Attention3, Rotate, Wan, eager_attention, rope_tables, rotate, spatial_tables

OPSET = 24
PORTABLE_OPSET = 18


@dataclass(frozen=True)
class Ring:
    """Sizes that make a step graph static. Counts are latent frames; rows and columns are tokens."""

    chunk: int  # F
    sink: int
    window: int  # sinks and the current chunk included
    rows: int
    columns: int

    @property
    def frame_tokens(self) -> int:
        return self.rows * self.columns

    @property
    def chunk_tokens(self) -> int:  # N
        return self.chunk * self.frame_tokens

    @property
    def cache_tokens(self) -> int:  # S
        return self.window * self.frame_tokens


def scatter_tokens(ring: Tensor, new: Tensor, slot: Tensor) -> Tensor:
    """ring [1, H, S, D] with tokens slot … slot+N−1 replaced by new [1, H, N, D]."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            (ring, new, slot),
            {"axis": 2, "mode": "linear"},
            dtype=ring.dtype,
            shape=ring.shape,
            version=24,
        )
    rows = slot + torch.arange(new.shape[2], device=slot.device)
    return ring.index_copy(2, rows, new)


def ring_attention(q: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
    """softmax(q·kᵀ)·v over the first `valid` ring tokens; the scale is already in q."""
    if torch.onnx.is_in_onnx_export():
        inputs = (q, keys, values, None, None, None, valid)
        return torch.onnx.ops.symbolic(
            "Attention", inputs, {"scale": 1.0, "is_causal": 0}, dtype=q.dtype, shape=q.shape, version=24
        )
    mask = torch.arange(keys.shape[2], device=valid.device) < valid
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask.expand(q.shape[2], -1), scale=1.0)


def prompt_attention(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Cross-attention over all rows of the prompt, padding included (as the checkpoints were trained)."""
    if torch.onnx.is_in_onnx_export():
        attributes = {"scale": 1.0, "is_causal": 0}
        return torch.onnx.ops.symbolic(
            "Attention", (q, keys, values), attributes, dtype=q.dtype, shape=q.shape, version=24
        )
    return eager_attention(q, keys, values)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """rotate() as one operator. Its tables are shared by heads and differ by batch, ours the other way round: the heads
    are its batch. x [1, H, N, D], cos and sin [1, H, N, D/2]"""
    if torch.onnx.is_in_onnx_export():
        heads = x.float().reshape(x.shape[1], 1, *x.shape[2:])
        turned = torch.onnx.ops.symbolic(
            "RotaryEmbedding", (heads, cos[0], sin[0]), {}, dtype=heads.dtype, shape=heads.shape, version=23
        )
        return turned.reshape(x.shape).to(x.dtype)
    return rotate(x, cos, sin)


def plain_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ + mask)·v in matrix products that every runtime has; softmax in float32."""
    scores = (q @ keys.transpose(2, 3)).float()
    return (scores if mask is None else scores + mask).softmax(-1).to(values.dtype) @ values


class SinkTurn:
    """Sinks that follow the window: their keys stand in the ring as they were committed, and attention sees them turned.

    A key committed at latent frame p and turned by (p′ − p)·ω is the key at p′, so that the stored one serves for ever and
    no error accumulates. tables: none (they are seen where they stand), or cosines and sines of that distance, (H, 1, Dt/2)
    or every layer's own (L, H, 1, Dt/2).
    """

    def __init__(self, tables: list[Tensor], ring: Ring, head_dim: int):
        self.tokens = ring.sink * ring.frame_tokens
        # Written out for every token, once for all layers: ONNX Runtime broadcasts over them twice as slowly.
        self.tables = [
            time_alone(table, head_dim // 2, still).unsqueeze(-4).expand(*[-1] * (table.dim() - 1), self.tokens, -1)
            for table, still in zip(tables, (1.0, 0.0), strict=False)
        ]

    def __call__(self, layer: int, keys: Tensor, *more: Tensor) -> Tensor:
        """keys [1, H, …, D] that begin with the sinks, and what comes after them."""
        if not self.tables:
            return torch.cat([keys, *more], 2) if more else keys
        cos, sin = (t if t.dim() == 4 else t[layer] for t in self.tables)
        others = keys.shape[2] - self.tokens
        sinks, *rest = keys.split([self.tokens, others] if others else self.tokens, 2)
        return torch.cat([rotate(sinks, cos, sin), *rest, *more], 2)


def time_alone(table: Tensor, pairs: int, still: float) -> Tensor:
    """A temporal table (…, 1, Dt/2) for all channel pairs of a head (…, 1, pairs): rows and columns stand still."""
    return torch.cat([table, torch.full((*table.shape[:-1], pairs - table.shape[-1]), still)], -1)


def sink_mass(q: Tensor, keys: Tensor, valid: Tensor, sink_tokens: int) -> Tensor:
    """Share of the attention that goes to the first `sink_tokens` of the `valid` ring tokens, mean over queries [H].

    With plain operators, in eager mode and in the graph alike: it is what the fused attention does not tell.
    """
    unseen = torch.arange(keys.shape[2], device=valid.device) >= valid
    scores = (q @ keys.transpose(2, 3)).float().masked_fill(unseen, float("-inf"))
    return scores.softmax(-1)[..., :sink_tokens].sum(-1).mean(-1)[0]


class StepGraph(nn.Module):
    """One pass: step 0 … n−1 denoises, step n commits, step n+1 … n+m denoises a first chunk with a schedule of its own.
    Inputs and outputs are those of design.md §3.

    With probe=True there is one output more, sink_mass [L, H]: the share of attention on the sinks. It costs a second
    evaluation of all attention scores, so it has a graph of its own, for studies.
    """

    block_modulation: Tensor
    head_modulation: Tensor
    spatial_cos: Tensor
    spatial_sin: Tensor
    operators: tuple[Attention3, Rotate] = (prompt_attention, rotary)  # of the cross-attention, and of RoPE

    def __init__(
        self,
        model: Wan,
        schedule: Schedule,
        ring: Ring,
        probe: bool = False,
        turning: bool = False,
        held: bool = False,
    ):
        """turning: the sinks follow the window; held: frames may be given, see `samplers.UniPC`."""
        super().__init__()
        self.model, self.ring, self.probe, self.turning = model, ring, probe, turning
        self.sampler, self.commit = sampler_of(schedule, held), len(schedule.steps)
        lists = schedule.timesteps(), np.array([schedule.context_noise]), schedule.first_timesteps()
        with torch.no_grad():
            blocks, head = baked_modulation(model, torch.from_numpy(np.concatenate(lists).astype(np.float64)))
        cos, sin = spatial_tables(model.config, ring.rows, ring.columns)
        tables = {"block_modulation": blocks, "head_modulation": head, "spatial_cos": cos, "spatial_sin": sin}
        for name, value in tables.items():
            self.register_buffer(name, value.float())

    def forward(
        self,
        latent: Tensor,  # (1, C, F, 2h, 2w)
        step: Tensor,  # (1,) int64
        read: Tensor | list[Tensor],  # what the sampler reads: renoise's noise (1, C, F, 2h, 2w), or a list of all
        rope_cos: Tensor,  # (H, F, Dt/2), or every layer's own (L, H, F, Dt/2)
        rope_sin: Tensor,
        place: list[Tensor],  # where the chunk stands in the ring: of this form, see `attention`
        keys: list[Tensor],  # L × (1, H, ring tokens, D)
        values: list[Tensor],
        prompt_keys: list[Tensor],  # L × (1, H, text_len, D)
        prompt_values: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """-> x0, next, what the sampler leaves, and what this form's attention leaves behind."""
        context = list(zip(prompt_keys, prompt_values, strict=True))
        attend, left = self.attention(place, keys, values)
        given = [read] if isinstance(read, Tensor) else list(read)
        return *self.advance(latent, step, given, rope_cos, rope_sin, context, attend), *left()

    def attention(
        self, place: list[Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> tuple[Attend, Callable[[], list[Tensor]]]:
        """Attention over the ring [1, H, S, D], updated in place. place: slot (1,) int64, kv_len (1,) int64, and where
        sinks follow the window sink_cos, sink_sin.

        Left behind: k_0_next … k_{L−1}_next, v_0_next … v_{L−1}_next (the updated ring), with probe sink_mass.
        """
        slot, kv_len, *tables = place
        turned = SinkTurn(tables, self.ring, self.model.config.head_dim)
        new_keys: list[Tensor] = []
        new_values: list[Tensor] = []
        masses: list[Tensor] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            new_keys.append(scatter_tokens(keys[layer], k, slot))
            new_values.append(scatter_tokens(values[layer], v, slot))
            seen = turned(layer, new_keys[layer])
            if self.probe:
                masses.append(sink_mass(q, seen, kv_len, self.ring.sink * self.ring.frame_tokens))
            return ring_attention(q, seen, new_values[layer], kv_len)

        return attend, lambda: [*new_keys, *new_values, *([torch.stack(masses)] if self.probe else [])]

    def advance(
        self,
        latent: Tensor,
        step: Tensor,
        read: list[Tensor],
        rope_cos: Tensor,
        rope_sin: Tensor,
        context: list[tuple[Tensor, Tensor]],
        attend: Attend,
    ) -> tuple[Tensor, ...]:
        """The model and the sampler's arithmetic around it -> x0, next, what the sampler leaves."""
        # Frames that are given are clean ones to the model: theirs is the commit pass' timestep.
        told = torch.where(read[-1] > 0, self.commit, step) if "still" in self.sampler.reads else step
        modulation = (self.block_modulation.index_select(0, told), self.head_modulation.index_select(0, told))
        rope = rope_tables(rope_cos, rope_sin, (self.spatial_cos, self.spatial_sin))
        x = latent.to(self.model.head.head.weight.dtype)
        flow = self.model(x, modulation, rope, context, attend, *self.operators).float()
        return self.sampler(latent, flow, step, read)


class PortableStepGraph(StepGraph):
    """The same pass in operators of opset 18, for runtimes without an in-place cache: the ring [1, H, S−N, D] holds the
    past only and is read, never written; an additive mask [1, 1, 1, S] hides what is not filled yet; the chunk's own keys
    and values are outputs, which the runtime copies into their slot after the commit pass."""

    operators = (plain_attention, rotate)

    def attention(
        self, place: list[Tensor], keys: list[Tensor], values: list[Tensor]
    ) -> tuple[Attend, Callable[[], list[Tensor]]]:
        """place: mask (1, 1, 1, S): 0 for keys that are there, −inf (or far below 0) for others; sink_cos, sink_sin.

        Left behind: k_0_new … k_{L−1}_new, v_0_new … v_{L−1}_new (this chunk's own [1, H, N, D]).
        """
        mask, *tables = place
        turned = SinkTurn(tables, self.ring, self.model.config.head_dim)
        own: list[tuple[Tensor, Tensor]] = []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            own.append((k, v))
            return plain_attention(q, turned(layer, keys[layer], k), torch.cat([values[layer], v], 2), mask)

        return attend, lambda: [*(k for k, _ in own), *(v for _, v in own)]


def baked_modulation(model: Wan, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Modulation of all passes, computed in float64: blocks [passes, L, 6, d] and head [passes, 2, d], float32."""
    exact = copy.copy(model)  # its own dictionaries, the same parameters
    exact._modules = dict(model._modules)
    for name in ("time_embedding", "time_projection"):
        exact._modules[name] = copy.deepcopy(getattr(model, name)).double()
    blocks, head = exact.time(timesteps)
    return blocks.float(), head.float()


class PromptGraph(nn.Module):
    """Text embeddings -> cross-attention keys and values of every layer."""

    def __init__(self, model: Wan):
        super().__init__()
        self.model = model

    def forward(self, text: Tensor) -> tuple[Tensor, ...]:
        """text [1, text_len, text_dim] -> prompt_k_0 … prompt_k_{L−1}, prompt_v_0 … prompt_v_{L−1}"""
        pairs = self.model.context(text.to(self.model.head.head.weight.dtype))
        return *(k for k, _ in pairs), *(v for _, v in pairs)
