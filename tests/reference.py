"""An independent, slow reference of the causal sampler, written from the model's description in float64.

It knows nothing of rings, slots, folded weights or halves: it keeps the keys and values of every chunk ever made in a
list, picks sinks and window from it directly, rotates complex numbers, and reads the public checkpoint names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from everframe.export.wan import WanConfig

State = dict[str, Tensor]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def norm(x: Tensor, eps: float) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt()


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def rope(x: Tensor, frames: list[int], rows: int, columns: int, thetas: list[float], theta: float) -> Tensor:
    """x [tokens, heads, D]: rotate pairs (2j, 2j+1) as complex numbers; θ of the time axis differs by head."""
    tokens, heads, dim = x.shape
    side = 2 * (dim // 6)
    axes = (dim - 2 * side, side, side)
    out = torch.empty_like(x)
    for h in range(heads):
        for n in range(tokens):
            place = (frames[n // (rows * columns)], n // columns % rows, n % columns)
            angles = [
                place[a] * (thetas[h] if a == 0 else theta) ** (-2 * j / axes[a])
                for a in range(3)
                for j in range(axes[a] // 2)
            ]
            turned = torch.view_as_complex(x[n, h].view(-1, 2)) * torch.polar(
                torch.ones(dim // 2, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64)
            )
            out[n, h] = torch.view_as_real(turned).reshape(-1)
    return out


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[n, heads, D] each."""
    scores = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(q.shape[-1])
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


class Reference:
    """One stream. All tensors are float64 and unbatched."""

    def __init__(self, state: State, config: WanConfig, *, chunk: int, sink: int, window: int, thetas: list):
        self.state = {k: v.double() for k, v in state.items()}
        self.c, self.chunk, self.sink, self.window, self.thetas = config, chunk, sink, window, thetas
        self.past: list[list[tuple[Tensor, Tensor]]] = []  # [latent chunk][layer] -> keys (rotated), values
        self.eta = 1.0  # share of fresh noise when x0 is noised again
        self.sink_mass: list[Tensor] = []  # [heads] of every self-attention ever made, layer after layer

    def thetas_of(self, layer: int) -> list[float]:
        """Of its heads: thetas are the same for all layers, or a list a layer."""
        return self.thetas[layer] if isinstance(self.thetas[0], list) else self.thetas

    def forward(self, latent: Tensor, timestep: float, text: Tensor, start: int) -> tuple[Tensor, list]:
        """latent [C, F, 2h, 2w] -> flow of the same shape, and this chunk's keys and values by layer."""
        s, c = self.state, self.c
        channels, f, hh, ww = latent.shape
        rows, columns = hh // 2, ww // 2
        x = torch.nn.functional.conv3d(
            latent[None], s["patch_embedding.weight"], s["patch_embedding.bias"], stride=(1, 2, 2)
        )[0]
        x = x.flatten(1).T  # [tokens, dim] in frame, row, column order
        half = c.freq_dim // 2
        wave = timestep * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        wave = torch.cat([wave.cos(), wave.sin()])
        e = linear(s, "time_embedding.2", silu(linear(s, "time_embedding.0", wave)))
        e0 = linear(s, "time_projection.1", silu(e)).view(6, c.dim)
        padded = torch.zeros(c.text_len, c.text_dim, dtype=torch.float64)
        padded[: len(text)] = text
        context = linear(s, "text_embedding.2", gelu_tanh(linear(s, "text_embedding.0", padded)))
        frames = [start + i for i in range(f)]
        own = []
        for i in range(c.layers):
            b = f"blocks.{i}"

            def heads(t: Tensor) -> Tensor:
                return t.view(len(t), c.heads, -1)

            m = s[f"{b}.modulation"][0] + e0
            y = norm(x, c.eps) * (1 + m[1]) + m[0]
            q = heads(rms(linear(s, f"{b}.self_attn.q", y), s[f"{b}.self_attn.norm_q.weight"], c.eps))
            k = heads(rms(linear(s, f"{b}.self_attn.k", y), s[f"{b}.self_attn.norm_k.weight"], c.eps))
            v = heads(linear(s, f"{b}.self_attn.v", y))
            q, k = (rope(t, frames, rows, columns, self.thetas_of(i), c.theta) for t in (q, k))
            own.append((k, v))
            seen = [*(kv[i] for kv in self.visible()), (k, v)]
            y = attention(q, torch.cat([kv[0] for kv in seen]), torch.cat([kv[1] for kv in seen]))
            self.sink_mass.append(self.mass_on_sinks(q, torch.cat([kv[0] for kv in seen]), len(q)))
            x = x + m[2] * linear(s, f"{b}.self_attn.o", y.flatten(1))
            y = norm(x, c.eps) * s[f"{b}.norm3.weight"] + s[f"{b}.norm3.bias"]
            q = heads(rms(linear(s, f"{b}.cross_attn.q", y), s[f"{b}.cross_attn.norm_q.weight"], c.eps))
            k = heads(rms(linear(s, f"{b}.cross_attn.k", context), s[f"{b}.cross_attn.norm_k.weight"], c.eps))
            v = heads(linear(s, f"{b}.cross_attn.v", context))
            x = x + linear(s, f"{b}.cross_attn.o", attention(q, k, v).flatten(1))
            y = norm(x, c.eps) * (1 + m[4]) + m[3]
            x = x + m[5] * linear(s, f"{b}.ffn.2", gelu_tanh(linear(s, f"{b}.ffn.0", y)))
        m = s["head.modulation"][0] + e
        x = linear(s, "head.head", norm(x, c.eps) * (1 + m[1]) + m[0])
        flow = torch.empty_like(latent)
        for n in range(len(x)):
            frame, row, column = n // (rows * columns), n // columns % rows, n % columns
            patch = x[n].view(2, 2, channels)
            flow[:, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch.permute(2, 0, 1)
        return flow, own

    def mass_on_sinks(self, q: Tensor, k: Tensor, chunk_tokens: int) -> Tensor:
        """Softmax weights on the sinks' tokens (they come first among those seen), summed and averaged over queries."""
        tokens = self.sink // self.chunk * chunk_tokens
        weights = (torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        return weights[:, :, :tokens].sum(2).mean(1)

    def visible(self) -> list[list[tuple[Tensor, Tensor]]]:
        """The chunks that the next one sees beside itself: the sinks, and the newest that fit in the window with it."""
        sinks = self.sink // self.chunk
        room = (self.window - self.sink) // self.chunk - 1
        rest = self.past[sinks:]
        return [*self.past[:sinks], *(rest[-room:] if room else [])]

    def next_chunk(self, noise: Tensor, sigmas: list[float], text: Tensor, start: int) -> Tensor:
        """noise [steps, C, F, 2h, 2w] -> x0; its clean keys and values join the past."""
        x = x0 = noise[0]
        for i, sigma in enumerate(sigmas):
            flow, _ = self.forward(x, 1000 * sigma, text, start)
            x0 = x - sigma * flow
            if i + 1 < len(sigmas):
                seen = (x - (1 - sigma) * x0) / sigma  # the noise in x_t, from x_t = (1 − σ)·x0 + σ·noise
                fresh = self.eta * noise[i + 1] + math.sqrt(1 - self.eta**2) * seen
                x = (1 - sigmas[i + 1]) * x0 + sigmas[i + 1] * fresh
        self.commit(x0, text, start)
        return x0

    def recache(self, latents: Tensor, text: Tensor, start: int, keep: int) -> None:
        """All these frames [C, n·F, h, w] in one pass, seeing each other both ways and the first `keep` chunks."""
        self.past = self.past[:keep]
        _, own = self.forward(latents, 0.0, text, start)
        tokens = len(own[0][0]) * self.chunk // latents.shape[1]
        layers = [(k.split(tokens), v.split(tokens)) for k, v in own]
        for i in range(latents.shape[1] // self.chunk):
            self.past.append([(k[i], v[i]) for k, v in layers])

    def commit(self, x0: Tensor, text: Tensor, start: int) -> None:
        _, own = self.forward(x0, 0.0, text, start)
        self.past.append(own)


def flow_sigmas(steps: list[int], shift: float) -> list[float]:
    """The warped few-step schedule, by the shift formula."""
    return [shift * (s / 1000) / (1 + (shift - 1) * (s / 1000)) for s in steps]
