"""Distil the trained transformer into its own four steps, on its own history.

    python training/distill.py [--minutes 60] [--device cuda]

The flow-matching model of transformer.py (the teacher) is good with many small steps; four large ones are blurred. The
student starts as a copy of it, or as the student of the teacher before it (`--anew`: not where the autoencoder has
changed since; its loss began at 0.66, that of a copy at 0.033), and rolls out five chunks as at run time: four steps,
commit, sinks and ring, everything it sees made by itself. At two random steps of every chunk, the flow along which it
goes to the next sigma is drawn towards the mean of the teacher's over four steps of that way, from the same noisy
latent, with the same history in the teacher's own keys and values (progressive distillation, arXiv 2202.00512, at once
from 16 steps to four and under the self-rollout of Self-Forcing, arXiv 2506.08009). A way has one end, so nothing is
averaged, and it is short: with the end of the whole path as the target, however few steps led there, the student laid
out no trees and no fish that the teacher had.

The teacher is guided by itself when young (autoguidance, arXiv 2406.02507, equation 1): its flow is moved away from
that of an early checkpoint (`--young` of transformer.py), which is wrong in the same places, only more so. energy.py
tells what that gives.
"""

from __future__ import annotations

import argparse
import itertools
import math

import torch
from torch import Tensor

from everframe.export.wan import Block, Wan

from common import autocast, evaluate_with, update
from latents import encode_pool, load_texts
from rollout import CHUNK, KV, SCHEDULE, Lose, Tables, commit, denoised, nothing, renoised, seen_by, sigmas_of
from run import Ema, Run, compact_path, progress_of
from settings import TRANSFORMER
from team import Team
from transformer import Batches, of_step, optimisers, preview, upright
from weights import trained_transformer

STEPS, PEAK = 2_000, 3e-4
SUBSTEPS = 4  # of the teacher for one of the student
TRUE_SINKS = 0.3  # share of the sequences whose first chunk is a rendered one
GUIDANCE = 0.9  # how far the teacher is moved away from its young self (energy.py: 1.5 is too much),
GUIDED_BELOW = 0.8  # and at which sigmas: above, where the picture is laid out, it makes seeds alike (arXiv 2404.07724)


class Teacher:
    """The first of the models, guided by the last two: moved on along the way from the last, which is worse, to the one
    before it. These are the teacher and its young self (refine.py puts another before them), each with its own keys and
    values of the student's chunks. What differs between a chunk's latent frames may be moved by another measure."""

    def __init__(self, *models: Wan, guidance: float | Tensor = GUIDANCE, moving: float | Tensor | None = None):
        self.models = models
        self.guidance, self.moving = guidance, moving  # or one for each place of a chunk, broadcast
        for model in models:
            model.eval().requires_grad_(False)
        self.kept: list[list[KV]] = []

    @torch.no_grad()
    def contexts(self, text: Tensor) -> list[KV]:
        return [model.context(text) for model in self.models]

    @torch.no_grad()
    def x0(self, x: Tensor, sigma: float, rope: tuple[Tensor, Tensor], contexts: list[KV], c: int) -> Tensor:
        measures = (self.guidance, 0.0 if self.moving is None else self.moving)
        guided = sigma < GUIDED_BELOW and any(torch.as_tensor(measure).any() for measure in measures)
        made = [
            denoised(model, x, sigma, rope, contexts[i], [self.kept[j][i] for j in seen_by(c)])
            for i, model in enumerate(self.models if guided else self.models[:1])
        ]
        if not guided:
            return made[0]
        ahead = made[-2] - made[-1]
        if self.moving is None:
            return made[0] + self.guidance * ahead
        stands = ahead.mean(2, keepdim=True)
        return made[0] + self.guidance * stands + self.moving * (ahead - stands)

    @torch.no_grad()
    def commit(self, x0: Tensor, rope: tuple[Tensor, Tensor], contexts: list[KV], c: int) -> None:
        past = [[self.kept[j][i] for j in seen_by(c)] for i in range(len(self.models))]
        self.kept.append(
            [
                commit(model, x0, rope, context, kv)
                for model, context, kv in zip(self.models, contexts, past, strict=True)
            ]
        )


def euler(
    teacher: Teacher, x: Tensor, path: list[float], rope: tuple[Tensor, Tensor], contexts: list[KV], c: int
) -> Tensor:
    """Where the teacher gets from x at path[0] to path[-1], by Euler steps."""
    for now, after in itertools.pairwise(path):
        x0 = teacher.x0(x, now, rope, contexts, c)
        x = x0 + (after / now) * (x - x0)
    return x


def guided(teacher: Teacher, tables: Tables, text: Tensor, chunks: int) -> Tensor:
    """`rollout.generate` by the teacher, in as many steps as the student follows it: for texts [B, text_len, text_dim]
    latents [B, chunks·F, C, 2h, 2w]."""
    contexts, out = teacher.contexts(text), []
    teacher.kept = []
    shape = (len(text), TRANSFORMER.latent_channels, CHUNK, *(2 * tokens for tokens in tables.size))
    for c in range(chunks):
        rope = tables([CHUNK * c] * len(text), [1] * len(text))
        x = torch.randn(shape, device=text.device)
        x = euler(teacher, x, sigmas_of(SUBSTEPS * len(SCHEDULE.steps)), rope, contexts, c)
        teacher.commit(x, rope, contexts, c)
        out.append(x)
    return torch.cat(out, 2).transpose(1, 2)


def standing_out(x0: Tensor) -> Tensor:
    """Squared distance of the cells of a chunk [B, C, F, 2h, 2w] from the median of their row, mean over channels: of the
    reef's fish 2 to 3, of the water 0.2. [B, 1, F, 2h, 2w]"""
    return (x0 - x0.median(-1, keepdim=True).values).square().mean(1, keepdim=True)


def rollout_loss(
    student: Wan,
    teacher: Teacher,
    tables: Tables,
    batch: tuple[Tensor, Tensor, list[list[int]]],
    substeps: int = SUBSTEPS,
    true: float = TRUE_SINKS,
    lose: Lose = nothing,
    weight: Tensor | float = 1.0,
    things: Tensor | float = 0.0,
    asked: Tensor | None = None,
) -> Tensor:
    """Mean squared distance to the teacher's flows over one rollout of the batch's chunks [B, n, C, F, 2h, 2w]. substeps: of
    the teacher for one of the student; true: share of the sequences with true sinks; lose: what of a chunk and its number
    later ones see; weight: what of a chunk [B, C, F, 2h, 2w], broadcast, counts how much; things: how much is added to that
    where something of what the teacher would end with stands out of its row by 1, likewise broadcast;
    asked: what the teacher is told where it isn't the batch's text."""
    truth, text, starts = batch
    size, chunks, steps = len(truth), truth.shape[1], len(SCHEDULE.steps)
    fine = sigmas_of(substeps * steps)
    true_sinks = torch.rand(size, 1, 1, 1, 1, device=truth.device) < true
    mine: list[KV] = []
    teacher.kept = []
    total = truth.new_zeros(())
    for c in range(chunks):
        rope = tables(starts[c], [1] * size)
        context, teaching = student.context(text[:, c]), teacher.contexts((text if asked is None else asked)[:, c])
        past = [mine[j] for j in seen_by(c)]
        early, late = (int(torch.randint(half, half + steps // 2, ())) for half in (0, steps // 2))
        x = torch.randn_like(truth[:, c])
        for i in range(steps):
            path = fine[substeps * i : substeps * (i + 1) + 1]
            sigma, after = path[0], path[-1]
            with torch.set_grad_enabled(i in (early, late)):
                x0 = denoised(student, x, sigma, rope, context, past)
            if i in (early, late):
                mean_flow = (x - euler(teacher, x, path, rope, teaching, c)) / (sigma - after)
                counts = weight + things * standing_out(x - sigma * mean_flow)
                total = total + (counts * ((x - x0) / sigma - mean_flow).square()).mean()
            x = renoised(x, x0.detach(), sigma, after)
        if c + 1 < chunks:
            made = lose(torch.where(true_sinks, truth[:, c], x) if c == 0 else x, c)
            mine.append(commit(student, made, rope, context, past))
            teacher.commit(made, rope, teaching, c)
    return total / (2 * chunks)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS, help="over all sessions")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--use", type=int, default=960)
    parser.add_argument("--batch", type=int, default=1, help="sequences a step of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", type=float, default=PEAK)
    parser.add_argument("--report", type=int, default=250, help="steps between two contact sheets")
    parser.add_argument("--anew", action="store_true", help="begin with the teacher, not with the student before it")
    parser.add_argument("--portrait", type=int, default=0, help="how many clips that stand upright to train on too")
    parser.add_argument(
        "--guidance", type=float, default=GUIDANCE, help="how far the teacher is moved from its young self"
    )
    args = parser.parse_args()
    team = Team(args.workers)
    latents = encode_pool(args.instances, args.use, args.device, team)
    torch.manual_seed(0)
    texts = load_texts()
    batches = Batches(latents, texts, args.device)
    Block.project, Block.finish = torch.compile(Block.project), torch.compile(Block.finish)  # type: ignore[method-assign]
    both = (trained_transformer(name).to(args.device) for name in ("transformer", "young"))
    teacher = Teacher(*both, guidance=args.guidance)
    began = (
        compact_path("distill").exists() and not args.anew
    )  # under an earlier teacher: it knows how to take four steps
    student = trained_transformer("distill" if began else "transformer").to(args.device)
    muon, adam = optimisers(student)
    ema = Ema(student, 0.995)
    parts = {"model": student, "muon": muon, "adam": adam, "ema": ema}
    run = Run("distill", parts, {"model": ema}, args.steps, args.minutes, team, of=progress_of("transformer"))
    tables = Tables(args.device)
    kinds = [(batches, tables), *upright(args.portrait, texts, args.device, team)]
    total = torch.zeros((), device=args.device)
    for step in run.count([(muon, args.peak), (adam, args.peak)], warmup=50):
        with autocast(args.device):
            drawn, places = of_step(kinds, step)
            loss = rollout_loss(student, teacher, places, drawn.draw(args.batch))
        update(loss, student, [muon, adam], team)
        ema.update(step)
        total += loss.detach()
        if step % 25 == 24:
            run.log(loss=round(float(total) / 25, 5))
            total.zero_()
        if step % args.report == args.report - 1:
            evaluate_with(ema, student, lambda: preview(run, student, tables, batches, len(SCHEDULE.steps)))


if __name__ == "__main__":
    main()
