"""Train the demo's causal transformer on the latents of the clip pool.

    python training/transformer.py [--minutes 60] [--device cuda]

A training sequence is five chunks: the stream's first chunk (the sinks) and four chunks that follow it, at once or up to
3e5 latent frames later. They are run one after the other exactly as at run time: every chunk sees the keys and values of
the sinks, of the two chunks before it and of itself. In each call the clean chunk (timestep 0, slightly noisy: the commit
pass) stands beside two noisy copies of it at random timesteps, whose flow prediction is the loss.

Beside them stand chunks without a past, the beginning of a stream, four from other clips for every sequence: what is missing
in the sinks is missing for good, and a sequence shows one beginning for four chunks that can copy it.

It starts from the transformer of training/demo, for latents move little when an autoencoder is trained on: the first demo's
and those after 3,400 steps of the next are 95 % each other's by one affine map, which is nearly the identity.

What makes it endless: far positions; jittered RoPE bases in nine sequences of ten; in the second part of the training
the history is half of the time what the model itself makes of the truth under noise (self-rollout: the last steps of its
sampler, so that what it sees is its own, and still of the picture that it is to go on with); and prompt switches in the
middle of a sequence, so that the prompt outranks the sinks.

`--short` leaves all of that out but the history's noise: five chunks from latent frame 0, plain RoPE, true history. That is
how the published models were trained, so it is the variant in which sink-collapse can be studied (docs/study.md). The same
network at half the picture's height and width, so that it trains in minutes, on clips that it renders itself. `--many`: the
same with 12 layers of 8 heads, whether jitter cures more where there are more bases.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from everframe.export.schedule import shifted_sigmas
from everframe.export.wan import Block, Wan, unfold

from clips import FAR, UPRIGHT, Instance, instance, trained, unseen
from common import Muon, autocast, evaluate_with, save_sheet, update
from latents import encode_pool, first_wording, load_texts, render_short
from prompts import PROMPTS
from rollout import (
    CHUNK,
    CHUNKS,
    COLUMNS,
    KV,
    ROWS,
    SCHEDULE,
    SHORT,
    Lose,
    Reader,
    Tables,
    generate,
    nothing,
    redrawn,
    seen_by,
)
from run import RUNS, WORK, Ema, Run
from settings import MANY_HEADED, TRANSFORMER
from team import Team
from weights import first_autoencoder, shipped_transformer, trained_autoencoder

STEPS, PEAK = 2_000, 6e-4
JITTERED = 0.9  # share of the sequences: the demo runs with jitter
BEGINNINGS = 4  # chunks without a past for every sequence
PORTRAIT_EVERY = 6  # pairs of steps (one of each is on self-made history): that pair is of upright pictures
OWN_FROM, OWN_STEPS = 400, (1, 2)  # step at which self-rollout starts, and of its sampler those from which it goes on
CHECK = 200  # steps between two looks at clips that are never drawn
YOUNG = 200  # the step whose checkpoint guides the distillation, by being worse


class Batches:
    """Draws sequences: latents [B, 5, C, F, 2h, 2w], text [B, 5, text_len, text_dim], chunk starts [5][B]."""

    def __init__(
        self,
        latents: np.ndarray,
        texts: dict[str, Tensor],
        device: str,
        short: bool = False,
        shown: Sequence[Instance] = (),
    ):
        """shown: what the latents show, which are then all trained on; else the pool's instances, from its first on."""
        self.latents, self.texts = torch.from_numpy(latents).to(device), {k: v.to(device) for k, v in texts.items()}
        self.device, self.short = device, short
        self.shown = shown or [instance(i, not short) for i in range(len(latents))]
        self.rng = np.random.default_rng()
        self.unseen = [] if shown else unseen(len(latents))  # clips that are never drawn
        self.trained = list(range(len(latents))) if shown else trained(len(latents))
        self.of: dict[tuple[str, str], list[int]] = {}  # the clips of every scene and variant
        for i in self.trained:
            self.of.setdefault((self.shown[i].scene, self.shown[i].variant), []).append(i)

    def chunks(self, i: int, near: bool) -> Tensor:
        frames = self.latents[i].float()
        picked = frames[:15] if near else torch.cat([frames[:3], frames[15:]])
        return picked.unflatten(0, (CHUNKS, CHUNK)).transpose(1, 2)  # (5, C, F, 2h, 2w)

    def prompt(self, i: int) -> Tensor:
        return self.texts[str(self.rng.choice(self.shown[i].wordings))]

    def beginnings(self, size: int) -> tuple[Tensor, Tensor]:
        """Three neighbouring latent frames of as many clips [B, C, F, 2h, 2w], and their texts [B, text_len, text_dim]."""
        picked, texts = [], []
        for i in self.rng.choice(self.trained, size).tolist():
            near = self.latents.shape[1] - FAR // 4
            at = int(self.rng.choice([*range(near - CHUNK + 1), *range(near, self.latents.shape[1] - CHUNK + 1)]))
            picked.append(self.latents[i, at : at + CHUNK].transpose(0, 1).float())
            texts.append(self.prompt(i))
        return torch.stack(picked), torch.stack(texts)

    def held_out(self) -> tuple[Tensor, Tensor, list[list[int]]]:
        """A sequence of each clip that is never drawn, near, with the first wording."""
        truth = torch.stack([self.chunks(i, True) for i in self.unseen])
        text = torch.stack([first_wording(self.texts, i) for i in self.unseen])
        starts = [[CHUNK * c] * len(truth) for c in range(CHUNKS)]
        return truth, text[:, None].repeat(1, CHUNKS, 1, 1), starts

    def draw(self, size: int, only: tuple[str, str] | None = None) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Of one scene and variant, or of all."""
        latents, texts, starts = [], [], []
        among = self.trained if only is None else self.of[only]
        for i, other in self.rng.choice(among, (size, 2)).tolist():
            near = self.short or bool(self.rng.random() < 0.5)
            chunks, text = self.chunks(i, near), [self.prompt(i)] * CHUNKS
            if not self.short and self.rng.random() < 0.2:  # the prompt changes, and the picture with it
                at = int(self.rng.integers(1, CHUNKS))
                chunks = torch.cat([chunks[:at], self.chunks(other, bool(self.rng.random() < 0.5))[at:]])
                text = [*text[:at], *[self.prompt(other)] * (CHUNKS - at)]
            first = 3 if near else self.shown[i].far
            latents.append(chunks)
            texts.append(torch.stack(text))
            starts.append([0, *(first + 3 * c for c in range(CHUNKS - 1))])
        columns = [list(column) for column in zip(*starts, strict=True)]
        return torch.stack(latents), torch.stack(texts), columns


def random_timesteps(n: int, device: str) -> Tensor:
    """A fifth at the timesteps of inference, the rest over the whole shifted range, one in each n-th of it. [n]"""
    table = torch.from_numpy(1000 * shifted_sigmas(SCHEDULE.shift)).float()
    steps = torch.from_numpy(SCHEDULE.timesteps()).float()
    anywhere = table[((torch.randperm(n) + torch.rand(n)) * len(table) / n).long().clamp(max=len(table) - 1)]
    return torch.where(torch.rand(n) < 0.2, steps[torch.randint(len(steps), (n,))], anywhere).to(device)


def noised(truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_t at random timesteps, the timesteps [B], and the flow that leads there."""
    noise, t = torch.randn_like(truth), random_timesteps(len(truth), str(truth.device))
    sigma = (t / 1000).view(-1, 1, 1, 1, 1)
    return (1 - sigma) * truth + sigma * noise, t, noise - truth


def beginning_loss(model: Wan, tables: Tables, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of chunks without a past [B, C, F, 2h, 2w], each with its text."""
    truth, text = batch
    x, t, target = noised(truth)
    jitter = (torch.rand(len(truth)) < JITTERED).long().tolist()
    flow = model(x, model.time(t), tables([0] * len(truth), jitter), model.context(text), Reader([]))
    return (flow.float() - target).square().mean()


def sequence_loss(
    model: Wan,
    tables: Tables,
    batch: tuple[Tensor, Tensor, list[list[int]]],
    own_history: bool,
    weight: Tensor | float = 1.0,
    lose: Lose = nothing,
) -> Tensor:
    """Of every chunk of the sequences [5]. weight: what of a chunk [C, F, 2h, 2w], broadcast, counts how much; lose: what of
    a chunk [B, C, F, 2h, 2w] and its number later ones see."""
    truth, text, starts = batch
    size, device = len(truth), str(truth.device)
    jitter = (torch.rand(size) < JITTERED).long().tolist() if tables.jittered else [0] * size
    ropes = [tables(s, jitter) for s in starts]
    history = redrawn(model, truth, text, ropes, OWN_STEPS) if own_history else truth.unbind(1)
    kept: list[KV] = []
    losses = []
    for c in range(CHUNKS):
        seen = lose(history[c], c)
        clean = seen + 0.1 * torch.rand(size, 1, 1, 1, 1, device=device) * torch.randn_like(seen)
        x, t, target = noised(truth[:, c].repeat(2, 1, 1, 1, 1))
        reader = Reader([kept[j] for j in seen_by(c)], copies=3)
        cos, sin = (table.repeat(3, 1, 1, 1) for table in ropes[c])
        modulation = model.time(torch.cat([torch.zeros(size, device=device), t]))
        flow = model(torch.cat([clean, x]), modulation, (cos, sin), model.context(text[:, c].repeat(3, 1, 1)), reader)[
            size:
        ].float()
        kept.append([(k[:size], v[:size]) for k, v in reader.own])
        losses.append((weight * (flow - target).square()).mean())
    return torch.stack(losses)


def held_out_loss(model: Wan, tables: Tables, batches: Batches) -> dict[str, float]:
    """Of the chunks of clips that it has never seen, with the same noise every time."""
    truth, text, starts = batches.held_out()
    with torch.random.fork_rng(), torch.no_grad(), autocast(batches.device):
        torch.manual_seed(0)
        parts = zip(truth.split(4), text.split(4), strict=True)
        losses = [sequence_loss(model, tables, (*part, [s[: len(part[0])] for s in starts]), False) for part in parts]
    mean = torch.stack(losses).mean(0)
    return {"first": round(float(mean[0]), 5), "others": round(float(mean[1:].mean()), 5)}


def preview(run: Run, model: Wan, tables: Tables, batches: Batches, steps: int, chunks: int = 8) -> None:
    """A contact sheet: one row per scene, frames spread over the stream, from the first chunk to the last. A model that is
    not distilled yet takes more steps than four."""
    if not run.team.first:
        return
    device = batches.device
    ae = (first_autoencoder() if batches.short else trained_autoencoder()).to(device)
    prompts = [variants[list(variants)[i % 3]][0] for i, variants in enumerate(PROMPTS.values())]
    text = torch.stack([batches.texts[p] for p in prompts]).to(device)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        with autocast(device):
            latents = generate(model, tables, text, chunks, steps)
        frames = torch.cat([ae.decode(row[None].float())[0] for row in latents]).permute(0, 1, 3, 4, 2)
    picks = [6, 10, 40, 44, *(int(f * frames.shape[1]) for f in (0.45, 0.7)), frames.shape[1] - 5, frames.shape[1] - 1]
    save_sheet([row[picks] for row in frames], RUNS / f"{run.name}.png")
    motion = (frames[:, 1:] - frames[:, :-1]).abs().mean((2, 3, 4)) * 255
    run.log(motion_first=round(float(motion[:, 24:60].mean()), 3), motion_last=round(float(motion[:, -36:].mean()), 3))


def upright(clips: int, texts: dict[str, Tensor], device: str, team: Team) -> list[tuple[Batches, Tables]]:
    """Sequences of so many clips that stand upright, and the places in them."""
    if not clips:
        return []
    latents = encode_pool(clips, clips, device, team, portrait=True)
    shown = [instance(UPRIGHT + i) for i in range(clips)]
    return [(Batches(latents, texts, device, shown=shown), Tables(device, size=(COLUMNS, ROWS)))]


def of_step(kinds: Sequence[tuple[Batches, Tables]], step: int) -> tuple[Batches, Tables]:
    """Of [wide] or [wide, upright], what a step draws from."""
    return kinds[-1 if step // 2 % PORTRAIT_EVERY == 0 else 0]


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
    parser.add_argument("--steps", type=int, default=STEPS, help="over all sessions")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--use", type=int, default=960, help="how many of them to train on")
    parser.add_argument("--batch", type=int, default=2, help="sequences a step of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", type=float, default=PEAK)
    parser.add_argument("--report", type=int, default=1000, help="steps between two contact sheets")
    parser.add_argument("--portrait", type=int, default=0, help="how many clips that stand upright to train on too")
    parser.add_argument("--young", type=int, default=YOUNG, help="the step whose checkpoint is the young one")
    parser.add_argument("--short", action="store_true", help="the variant for the sink-collapse study")
    parser.add_argument("--many", action="store_true", help="the same with 12 layers of 8 heads")
    args = parser.parse_args()
    args.short |= args.many
    if args.short and args.portrait:
        parser.error("--portrait: the study's variants know no upright pictures")
    network = MANY_HEADED if args.many else TRANSFORMER
    name, size = ("many" if args.many else "short", SHORT) if args.short else ("transformer", (ROWS, COLUMNS))
    team = Team(args.workers)
    texts = load_texts()
    if args.short:
        latents = render_short(args.use, SHORT, args.device, team)
    else:
        latents = encode_pool(args.instances, args.use, args.device, team)
    torch.manual_seed(0)
    batches = Batches(latents, texts, args.device, args.short)
    Block.project, Block.finish = torch.compile(Block.project), torch.compile(Block.finish)  # type: ignore[method-assign]
    model = Wan(network)
    if args.short:
        nn.init.zeros_(model.head.head.weight)
    else:
        model.load_state_dict(shipped_transformer().state_dict())
    model.to(args.device)
    muon, adam = optimisers(model)
    ema = Ema(model, 0.998)
    parts = {"model": model, "muon": muon, "adam": adam, "ema": ema}
    run = Run(name, parts, {"model": ema}, args.steps, args.minutes, team)
    tables = Tables(args.device, jittered=not args.short, size=size, network=network)
    kinds = [(batches, tables), *upright(args.portrait, texts, args.device, team)]
    total, counted = torch.zeros((), device=args.device), 0
    for step in run.count([(muon, args.peak), (adam, args.peak)], warmup=50):
        own = not args.short and step >= OWN_FROM and step % 2 == 0
        with autocast(args.device):
            drawn, places = of_step(kinds, step)
            loss = sequence_loss(model, places, drawn.draw(args.batch), own).mean()
            if not args.short:  # every noisy chunk counts the same
                first = beginning_loss(model, places, drawn.beginnings(BEGINNINGS * args.batch))
                loss = (2 * CHUNKS * loss + BEGINNINGS * first) / (2 * CHUNKS + BEGINNINGS)
        update(loss, model, [muon, adam], team)
        ema.update(step)
        if not own:
            total, counted = total + loss.detach(), counted + 1
        if step == args.young and not args.short:
            run.save_compact("young")
        if step % 50 == 49:
            run.log(loss=round(float(total) / max(counted, 1), 5))
            total, counted = torch.zeros((), device=args.device), 0
        if step % CHECK == CHECK - 1 and not args.short and team.first:
            evaluate_with(ema, model, lambda: run.log(held_out=held_out_loss(model, tables, batches)))
        if step % args.report == args.report - 1:
            evaluate_with(ema, model, lambda: preview(run, model, tables, batches, 4 if args.short else 16))
    if args.short and run.finished and team.first:
        state = unfold({k: v.float().cpu() for k, v in ema.shadow.items()}, network)
        save_file({k: v.half().contiguous() for k, v in state.items()}, WORK / f"{name}.safetensors")


if __name__ == "__main__":
    main()
