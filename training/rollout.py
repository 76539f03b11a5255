"""How a stream runs, in PyTorch and with gradients: chunks in order, each seeing the sinks, the ring and itself."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from everframe.export.schedule import Schedule
from everframe.export.wan import Wan, WanConfig, eager_attention, join_tables, spatial_tables
from everframe.runtime.rope import axis_frequencies, draw_jitter, head_thetas, split_head_dim, temporal_tables

from settings import TRANSFORMER

CHUNK, CHUNKS, PAST = 3, 5, 2  # latent frames per chunk; chunks per sequence; chunks of ring before the current one
ROWS, COLUMNS = 9, 16  # tokens of a latent frame; --short: SHORT
SHORT = 4, 8
SCHEDULE = Schedule(steps=(1000, 750, 500, 250), shift=2.0)
ETA = 0.05  # of the sampler: share of fresh noise between its steps; with more, what is small is drawn and thrown away again
JITTER_SIGMA, JITTER_SEED = 0.8, 0
KV = list[tuple[Tensor, Tensor]]  # per layer (k, v), each [B, H, N, D]
Lose = Callable[[Tensor, int], Tensor]  # a chunk [.., 2h, 2w] and its number -> what later ones see of it


def nothing(chunk: Tensor, _: int) -> Tensor:
    return chunk


class Tables:
    """RoPE tables of whole chunks, for plain (row 0) and jittered (row 1) bases."""

    def __init__(
        self,
        device: str,
        jittered: bool = True,
        size: tuple[int, int] = (ROWS, COLUMNS),
        network: WanConfig = TRANSFORMER,
    ):
        self.jittered, self.size = jittered, size
        channels = split_head_dim(network.head_dim)[0]
        epsilon = draw_jitter(network.heads, JITTER_SEED)
        self.frequencies = [
            axis_frequencies(head_thetas(network.theta, s, epsilon), channels) for s in (0.0, JITTER_SIGMA)
        ]
        self.spatial = [t.to(device) for t in spatial_tables(network, *size)]
        self.device = device

    def __call__(self, starts: Sequence[int], jitter: Sequence[int]) -> tuple[Tensor, Tensor]:
        """First latent frame of every element's chunk, and which bases -> cos, sin [B, H, N, D/2]."""
        rows = [temporal_tables(np.arange(CHUNK) + s, self.frequencies[j]) for s, j in zip(starts, jitter, strict=True)]
        both = (torch.from_numpy(np.stack(part)).to(self.device) for part in zip(*rows, strict=True))
        cos, sin = (join_tables(t, s) for t, s in zip(both, self.spatial, strict=True))
        return cos, sin


def seen_by(c: int) -> list[int]:
    """Chunks in the ring when chunk c is made: the sinks and the PAST ones before it."""
    return sorted({0, *range(max(0, c - PAST), c)} - {c})


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q·kᵀ)·v, [B, H, N, D] × [B, H, S, D]. Written out in bfloat16 on a CPU: PyTorch's fused kernel takes 235 ms
    forward and backward on a core for six chunks of 432 tokens against 1728, this 108 ms, and three fifths of a step were
    there. Scores are rounded to bfloat16, which the fused kernel does not do. In float32 the fused one is faster, 215 ms
    against 359, and a GPU's needs no memory for the scores."""
    if q.is_cuda or q.dtype != torch.bfloat16:
        return eager_attention(q, k, v)
    return (q @ k.transpose(-1, -2)).softmax(-1) @ v


class Reader:
    """The `attend` of training: own keys and values behind those of the chunks in the ring."""

    def __init__(self, past: list[KV], copies: int = 1):
        self.past, self.copies = past, copies
        self.own: KV = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.own.append((k, v))
        for_all = [tuple(t.repeat(self.copies, 1, 1, 1) for t in kv[layer]) for kv in self.past]
        keys, values = (torch.cat([*(kv[i] for kv in for_all), own], 2) for i, own in enumerate((k, v)))
        return attention(q.to(v.dtype), keys.to(v.dtype), values)


def renoised(x: Tensor, x0: Tensor, sigma: float, after: float) -> Tensor:
    """The next step's input: x0 with the noise that the model sees in x, of which a share is fresh (η of DDIM, arXiv
    2010.02502)."""
    seen = (x - (1 - sigma) * x0) / sigma
    return (1 - after) * x0 + after * ((1 - ETA**2) ** 0.5 * seen + ETA * torch.randn_like(x))


def denoised(model: Wan, x: Tensor, sigma: float, rope: tuple[Tensor, Tensor], context: KV, past: list[KV]) -> Tensor:
    """x0 prediction at one sigma, float32."""
    t = torch.full((len(x),), 1000 * sigma, device=x.device)
    return x - sigma * model(x, model.time(t), rope, context, Reader(past)).float()


def sigmas_of(steps: int) -> list[float]:
    """So many evenly spaced before the shift, from 1 on, and the 0 behind them: a step for each of two neighbours."""
    s = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (SCHEDULE.shift * s / (1 + (SCHEDULE.shift - 1) * s)).tolist()


def sample_chunk(
    model: Wan, x: Tensor, path: Sequence[float], rope: tuple[Tensor, Tensor], context: KV, past: list[KV]
) -> Tensor:
    """One chunk from x [B, C, F, 2h, 2w], which is noised to the first sigma of the path, to the 0 at its end."""
    for sigma, after in itertools.pairwise(path):
        x = renoised(x, denoised(model, x, sigma, rope, context, past), sigma, after)
    return x


def commit(model: Wan, x0: Tensor, rope: tuple[Tensor, Tensor], context: KV, past: list[KV]) -> KV:
    reader = Reader(past)
    model(x0, model.time(torch.zeros(len(x0), device=x0.device)), rope, context, reader)
    return reader.own


def redrawn(
    model: Wan, truth: Tensor, text: Tensor, ropes: Sequence[tuple[Tensor, Tensor]], steps: Sequence[int]
) -> list[Tensor]:
    """The chunks of [B, n, C, F, 2h, 2w] as the model ends them, without gradients: each from the truth under the noise of
    one of those steps of its sampler, drawn for each, and on what it has made so of the chunks before."""
    out: list[Tensor] = []
    committed: list[KV] = []
    with torch.no_grad():
        for c, rope in enumerate(ropes):
            context, past = model.context(text[:, c]), [committed[j] for j in seen_by(c)]
            path = sigmas_of(len(SCHEDULE.steps))[steps[int(torch.randint(len(steps), ()))] :]
            x = (1 - path[0]) * truth[:, c] + path[0] * torch.randn_like(truth[:, c])
            out.append(sample_chunk(model, x, path, rope, context, past))
            committed.append(commit(model, out[-1], rope, context, past))
    return out


def generate(model: Wan, tables: Tables, text: Tensor, chunks: int, steps: int = len(SCHEDULE.steps)) -> Tensor:
    """Stream some chunks for each text [B, text_len, text_dim]: latents [B, chunks·F, C, 2h, 2w]."""
    shape = (len(text), TRANSFORMER.latent_channels, CHUNK, *(2 * tokens for tokens in tables.size))
    context, kept, out = model.context(text), {}, []
    for c in range(chunks):
        rope = tables([CHUNK * c] * len(text), [int(tables.jittered)] * len(text))
        past = [kept[j] for j in seen_by(c)]
        x0 = sample_chunk(model, torch.randn(shape, device=text.device), sigmas_of(steps), rope, context, past)
        kept = {j: kept[j] for j in seen_by(c)} | {c: commit(model, x0, rope, context, past)}
        out.append(x0)
    return torch.cat(out, 2).transpose(1, 2)
