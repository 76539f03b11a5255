"""Train the demo's causal transformer on the latents of the clip pool.

    python training/transformer.py --minutes 80 [--device cuda]

A training sequence is five chunks: the stream's first chunk (the sinks) and four chunks that follow it, at once or up to
3e5 latent frames later. They are run one after the other exactly as at run time: every chunk sees the keys and values of
the sinks, of the two chunks before it and of itself. In each call the clean chunk (timestep 0, slightly noisy: the commit
pass) stands beside two noisy copies of it at random timesteps, whose flow prediction is the loss.

What makes it endless: far positions; half of the sequences with jittered RoPE bases; in the second part of the training
the history is the model's own four-step output half of the time (self-rollout), while the target stays the truth, so
that it learns to return from its own mistakes; and prompt switches in the middle of a sequence, so that the prompt
outranks the sinks.

`--short` leaves all of that out but the history's noise: five chunks from latent frame 0, plain RoPE, true history. That is
how the published models were trained, so it is the variant in which sink-collapse can be studied (docs/study.md). The same
network at half the picture's height and width, so that it trains in minutes, on clips that it renders itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from everframe.export.schedule import Schedule, shifted_sigmas
from everframe.export.taehv import DEMO as AE
from everframe.export.taehv import Taehv
from everframe.export.wan import DEMO, Block, Wan, eager_attention, join_tables, spatial_tables, unfold
from everframe.runtime.rope import axis_frequencies, draw_jitter, head_thetas, split_head_dim, temporal_tables

from clips import FAR, NEAR, WARM, instance
from common import RUNS, WORK, Ema, Muon, Run, autocast, evaluate_with, load_pool, save_sheet
from scenes import PROMPTS, render

CHUNK, CHUNKS, PAST = 3, 5, 2  # latent frames per chunk; chunks per sequence; chunks of ring before the current one
ROWS, COLUMNS = 9, 16  # tokens of a latent frame; --short: SHORT
SHORT = 4, 8
SCHEDULE = Schedule(steps=(1000, 750, 500, 250), shift=2.0)
ETA = 0.4  # of the shipped sampler; training rolls out with fresh noise alone, which is the harder case
JITTER_SIGMA, JITTER_SEED = 0.8, 0
HELD_OUT = 24
KV = list[tuple[Tensor, Tensor]]  # per layer (k, v), each [B, H, N, D]


def encode_pool(instances: int, use: int, device: str) -> np.ndarray:
    """Latents of the pool's first `use` instances [use, 15 near + 12 far, C, h, w] float16, made once."""
    path = WORK / f"latents-{use}.npy"
    if not path.exists():
        ae = load_autoencoder(device)
        pool = load_pool(f"clips-{instances}.npy")
        shape = (use, (NEAR + FAR) // 4, AE.latent_channels, 2 * ROWS, 2 * COLUMNS)
        part = path.with_suffix(".part")
        mode = "r+" if part.exists() else "w+"  # goes on where a killed run stopped
        out = np.lib.format.open_memmap(part, mode=mode, dtype=np.float16, shape=shape)
        for i in range(use):
            if out[i].any():
                continue
            frames = torch.from_numpy(pool[i].copy()).to(device).permute(0, 3, 1, 2)[None].float() / 255
            near, far = (encode_clip(ae, clip) for clip in (frames[:, :NEAR], frames[:, NEAR:]))
            out[i] = torch.cat([near[0], far[0, WARM // 4 :]]).cpu().numpy()
            if i % 100 == 0:
                print(f"encoded {i}/{use}", flush=True)
        out.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


def render_short(use: int, device: str) -> np.ndarray:
    """Latents of so many instances' first five chunks at the size of --short [use, 15, C, h, w] float16, made once."""
    path = WORK / f"latents-short-{use}.npy"
    if not path.exists():
        ae = load_autoencoder(device)
        height, width = (16 * tokens for tokens in SHORT)
        made = []
        for i in range(use):
            it = instance(i)
            frames = render(it.scene, it.variant, it.seed, torch.arange(NEAR), height, width)
            made.append(encode_clip(ae, frames.permute(0, 3, 1, 2)[None].to(device))[0].half().cpu().numpy())
        np.save(path, np.stack(made))
    return np.load(path)


def load_autoencoder(device: str) -> Taehv:
    ae = Taehv(AE)
    ae.load_state_dict({k: v.float() for k, v in load_file(WORK / "autoencoder.safetensors").items()})
    return ae.to(device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def encode_clip(ae: Taehv, clip: Tensor) -> Tensor:
    """Eight frames at a time, which fit the cache: four times as fast as the whole clip at once."""
    states, parts = None, []
    with torch.no_grad(), autocast(clip.device.type):
        for part in clip.split(8, 1):
            latents, states = ae.encode(part, states)
            states = [state.float() for state in states]
            parts.append(latents.float())
    return torch.cat(parts, 1)


class Tables:
    """RoPE tables of whole chunks, for plain (row 0) and jittered (row 1) bases."""

    def __init__(self, device: str, jittered: bool = True, size: tuple[int, int] = (ROWS, COLUMNS)):
        self.jittered, self.size = jittered, size
        channels = split_head_dim(DEMO.head_dim)[0]
        epsilon = draw_jitter(DEMO.heads, JITTER_SEED)
        self.frequencies = [
            axis_frequencies(head_thetas(DEMO.theta, s, epsilon), channels) for s in (0.0, JITTER_SIGMA)
        ]
        self.spatial = [t.to(device) for t in spatial_tables(DEMO, *size)]
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


class Reader:
    """The `attend` of training: own keys and values behind those of the chunks in the ring."""

    def __init__(self, past: list[KV], copies: int = 1):
        self.past, self.copies = past, copies
        self.own: KV = []

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.own.append((k, v))
        for_all = [tuple(t.repeat(self.copies, 1, 1, 1) for t in kv[layer]) for kv in self.past]
        keys, values = (torch.cat([*(kv[i] for kv in for_all), own], 2) for i, own in enumerate((k, v)))
        return eager_attention(q.to(v.dtype), keys.to(v.dtype), values)


def sample_chunk(model: Wan, noise: list[Tensor], rope: tuple[Tensor, Tensor], context: KV, past: list[KV]) -> Tensor:
    """Four-step sampling of one chunk: noise has one tensor [B, C, F, 2h, 2w] per step. Returns x0 in float32."""
    sigmas = SCHEDULE.sigmas()
    x = noise[0]
    for i, sigma in enumerate(sigmas):
        t = torch.full((len(x),), 1000 * sigma, device=x.device)
        x0 = x - float(sigma) * model(x, model.time(t), rope, context, Reader(past)).float()
        x = x0 if i == len(sigmas) - 1 else (1 - sigmas[i + 1]) * x0 + sigmas[i + 1] * noise[i + 1]
    return x


def commit(model: Wan, x0: Tensor, rope: tuple[Tensor, Tensor], context: KV, past: list[KV]) -> KV:
    reader = Reader(past)
    model(x0, model.time(torch.zeros(len(x0), device=x0.device)), rope, context, reader)
    return reader.own


class Batches:
    """Draws sequences: latents [B, 5, C, F, 2h, 2w], text [B, 5, text_len, text_dim], chunk starts [5][B]."""

    def __init__(self, latents: np.ndarray, texts: dict[str, Tensor], device: str, short: bool = False):
        self.latents, self.device, self.short = latents, device, short
        self.texts = {k: nn.functional.pad(v.float(), (0, 0, 0, DEMO.text_len - len(v))) for k, v in texts.items()}
        self.rng = np.random.default_rng()

    def chunks(self, i: int, near: bool) -> np.ndarray:
        frames = self.latents[i]
        picked = frames[:15] if near else np.concatenate([frames[:3], frames[15:]])
        return picked.reshape(CHUNKS, CHUNK, *frames.shape[1:]).swapaxes(1, 2)  # (5, C, F, 2h, 2w)

    def prompt(self, i: int) -> Tensor:
        it = instance(i)
        return self.texts[str(self.rng.choice(PROMPTS[it.scene][it.variant]))]

    def draw(self, size: int) -> tuple[Tensor, Tensor, list[list[int]]]:
        latents, texts, starts = [], [], []
        for i, other in self.rng.integers(0, len(self.latents) - HELD_OUT, (size, 2)).tolist():
            near = self.short or bool(self.rng.random() < 0.5)
            chunks, text = self.chunks(i, near), [self.prompt(i)] * CHUNKS
            if not self.short and self.rng.random() < 0.2:  # the prompt changes, and the picture with it
                at = int(self.rng.integers(1, CHUNKS))
                chunks = np.concatenate([chunks[:at], self.chunks(other, bool(self.rng.random() < 0.5))[at:]])
                text = [*text[:at], *[self.prompt(other)] * (CHUNKS - at)]
            first = 3 if near else instance(i).far
            latents.append(torch.from_numpy(chunks.astype(np.float32)))
            texts.append(torch.stack(text))
            starts.append([0, *(first + 3 * c for c in range(CHUNKS - 1))])
        columns = [list(column) for column in zip(*starts, strict=True)]
        return torch.stack(latents).to(self.device), torch.stack(texts).to(self.device), columns


def random_timesteps(n: int, device: str) -> Tensor:
    """Two fifths at the timesteps of inference, the rest over the whole shifted range. [n]"""
    table = torch.from_numpy(1000 * shifted_sigmas(SCHEDULE.shift)).float().to(device)
    steps = torch.from_numpy(SCHEDULE.timesteps()).float().to(device)
    anywhere = table[torch.randint(len(table), (n,), device=device)]
    return torch.where(
        torch.rand(n, device=device) < 0.4, steps[torch.randint(len(steps), (n,), device=device)], anywhere
    )


def sequence_loss(
    model: Wan, tables: Tables, batch: tuple[Tensor, Tensor, list[list[int]]], own_history: bool
) -> Tensor:
    truth, text, starts = batch
    size, device = len(truth), str(truth.device)
    jitter = torch.randint(0, 2, (size,)).tolist() if tables.jittered else [0] * size
    ropes = [tables(s, jitter) for s in starts]
    history = list(truth.unbind(1))
    if own_history:
        with torch.no_grad():
            committed: list[KV] = []
            for c in range(CHUNKS):
                context, past = model.context(text[:, c]), [committed[j] for j in seen_by(c)]
                if c:  # the sinks stay true
                    noise = [torch.randn_like(truth[:, c]) for _ in SCHEDULE.steps]
                    history[c] = sample_chunk(model, noise, ropes[c], context, past)
                committed.append(commit(model, history[c], ropes[c], context, past))
    kept: list[KV] = []
    total = truth.new_zeros(())
    for c in range(CHUNKS):
        clean = history[c] + 0.15 * torch.rand(size, 1, 1, 1, 1, device=device) * torch.randn_like(history[c])
        target = truth[:, c].repeat(2, 1, 1, 1, 1)
        noise, t = torch.randn_like(target), random_timesteps(2 * size, device)
        sigma = (t / 1000).view(-1, 1, 1, 1, 1)
        x = torch.cat([clean, (1 - sigma) * target + sigma * noise])
        reader = Reader([kept[j] for j in seen_by(c)], copies=3)
        cos, sin = (table.repeat(3, 1, 1, 1) for table in ropes[c])
        modulation = model.time(torch.cat([torch.zeros(size, device=device), t]))
        flow = model(x, modulation, (cos, sin), model.context(text[:, c].repeat(3, 1, 1)), reader)[size:].float()
        kept.append([(k[:size], v[:size]) for k, v in reader.own])
        total = total + (flow - (noise - target)).square().mean()
    return total / CHUNKS


def generate(model: Wan, tables: Tables, text: Tensor, chunks: int, start: int = 0) -> Tensor:
    """Stream some chunks for each text [B, text_len, text_dim]: latents [B, chunks·F, C, 2h, 2w]."""
    generator = torch.Generator().manual_seed(1)
    shape = (len(text), DEMO.latent_channels, CHUNK, *(2 * tokens for tokens in tables.size))
    context, kept, out = model.context(text), {}, []
    for c in range(chunks):
        rope = tables([start + CHUNK * c] * len(text), [int(tables.jittered)] * len(text))
        past = [kept[j] for j in seen_by(c)]
        noise = [torch.randn(shape, generator=generator).to(text.device) for _ in SCHEDULE.steps]
        x0 = sample_chunk(model, noise, rope, context, past)
        kept = {j: kept[j] for j in seen_by(c)} | {c: commit(model, x0, rope, context, past)}
        out.append(x0)
    return torch.cat(out, 2).transpose(1, 2)


def preview(run: Run, model: Wan, tables: Tables, batches: Batches, device: str, chunks: int = 16) -> None:
    """A contact sheet: one row per scene, frames spread over the stream, from the first chunk to the last."""
    ae = load_autoencoder(device)
    prompts = [variants[list(variants)[i % 3]][0] for i, variants in enumerate(PROMPTS.values())]
    with torch.no_grad():
        with autocast(device):
            latents = generate(model, tables, torch.stack([batches.texts[p] for p in prompts]).to(device), chunks)
        frames = torch.cat([ae.decode(row[None].float())[0] for row in latents]).permute(0, 1, 3, 4, 2)
    picks = [6, 10, 40, 44, *(int(f * frames.shape[1]) for f in (0.45, 0.7)), frames.shape[1] - 5, frames.shape[1] - 1]
    save_sheet([row[picks] for row in frames], RUNS / f"{run.name}.png")
    motion = (frames[:, 1:] - frames[:, :-1]).abs().mean((2, 3, 4)) * 255
    run.log(motion_first=round(float(motion[:, 24:60].mean()), 3), motion_last=round(float(motion[:, -36:].mean()), 3))


def optimisers(model: Wan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    known = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        Muon(matrices, lr=1e-3, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--use", type=int, default=960, help="how many of them to train on")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument(
        "--rollout-from", type=float, default=0.6, help="share of the budget after which self-rollout starts"
    )
    parser.add_argument("--short", action="store_true", help="the variant for the sink-collapse study")
    args = parser.parse_args()
    name = "short" if args.short else "transformer"
    torch.manual_seed(0)
    latents = render_short(args.use, args.device) if args.short else encode_pool(args.instances, args.use, args.device)
    batches = Batches(latents, load_file(WORK / "texts.safetensors"), args.device, args.short)
    Block.project, Block.finish = torch.compile(Block.project), torch.compile(Block.finish)  # type: ignore[method-assign]
    model = Wan(DEMO).to(args.device)
    nn.init.zeros_(model.head.head.weight)
    muon, adam = optimisers(model)
    ema = Ema(model, 0.998)
    run = Run(name, {"model": model, "muon": muon, "adam": adam, "ema": ema}, args.minutes)  # type: ignore[dict-item]
    tables = Tables(args.device, jittered=not args.short, size=SHORT if args.short else (ROWS, COLUMNS))
    total, counted = 0.0, 0
    for step in run.steps([muon, adam], peak=args.peak):
        own = not args.short and run.progress > args.rollout_from and step % 2 == 0
        with autocast(args.device):
            loss = sequence_loss(model, tables, batches.draw(args.batch), own)
        muon.zero_grad()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adam.step()
        ema.update(step)
        if not own:
            total, counted = total + loss.item(), counted + 1
        if step % 50 == 49:
            run.log(loss=round(total / max(counted, 1), 5))
            total, counted = 0.0, 0
        if step % 1000 == 999:
            evaluate_with(ema, model, lambda: preview(run, model, tables, batches, args.device))
    state = unfold({k: v.float().cpu() for k, v in ema.shadow.items()}, DEMO)
    save_file({k: v.half().contiguous() for k, v in state.items()}, WORK / f"{name}.safetensors")
    evaluate_with(ema, model, lambda: preview(run, model, tables, batches, args.device))


if __name__ == "__main__":
    main()
