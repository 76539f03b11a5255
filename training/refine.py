"""Go on with teacher and student on the beginnings of the scenes that need it, and keep the rest of what they do.

    python training/refine.py teacher --steps 4850 [--minutes 40] [--device cuda]
    python training/refine.py student --steps 600 [--minutes 30]

Half of the teacher's chunks are of the sea, whose sun or moon is a small thing in one place of many: the first chunks of
far more clips than the pool has (beginnings.py), those of sea and reef drawn to the truth. All else, the beginnings of
other scenes and every chunk with a past, is drawn to what the teacher did before (learning without forgetting, arXiv
1606.09282): a target without the noise of flow matching, of which little is enough. In the sea the sky counts more, row by
row and not by what is there, which would draw suns where none belong.

Then the student is moved as its teacher was (task arithmetic, arXiv 2212.04089), and its beginnings of sea and reef are
distilled from that teacher; all else it does as it did before it was moved, in its four steps. What both did before is in
training/work/NAME-before.safetensors; remove these before another scene is refined.
"""

from __future__ import annotations

import argparse
import math

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from everframe.export.wan import Block, Wan

from beginnings import SHARE, Beginnings
from common import autocast, evaluate_with, update
from distill import Teacher, rollout_loss
from latents import encode_pool, load_texts
from rollout import CHUNKS, KV, Reader, Tables, seen_by
from run import WORK, Ema, Run, load_part, progress_of
from team import Team
from transformer import JITTERED, Batches, held_out_loss, noised, optimisers, random_timesteps
from weights import trained_transformer

PEAK = 6e-4
REFINED = ("sea", "reef")  # scenes that learn; of the others the beginnings stay
CHECK = 200  # steps between two looks at clips that are never drawn
EARLY, EARLY_FROM = 0.45, 700.0  # share of the beginnings at timesteps where the picture is laid out, and from which on
SKY, ABOVE, BELOW = 8, 3.0, 0.5  # rows of a sea's latent above the horizon, and what these and the others count
KEEP_EVERY, KEEP = 4, 4.0  # a step in so many is of chunks with a past, and how much it counts
STAY = 3.0  # what the student's other beginnings, and its rollouts, count beside those that it learns


def early_timesteps(n: int, device: str) -> Tensor:
    """`random_timesteps`, but for a share of them over the first third, a part of it at the very first. [n]"""
    above = EARLY_FROM + (1000 - EARLY_FROM) * torch.rand(n, device=device)
    above = torch.where(torch.rand(n, device=device) < 0.15, 1000.0, above)
    return torch.where(torch.rand(n, device=device) < EARLY, above, random_timesteps(n, device))


def beginning_loss(model: Wan, before: Wan, tables: Tables, batch: tuple[Tensor, Tensor, list[str]]) -> Tensor:
    """Of chunks without a past [B, C, F, 2h, 2w], each with its text and scene."""
    truth, text, scenes = batch
    size, device = len(truth), str(truth.device)
    t, noise = early_timesteps(size, device), torch.randn_like(truth)
    sigma = (t / 1000).view(-1, 1, 1, 1, 1)
    x = (1 - sigma) * truth + sigma * noise
    jitter = (torch.rand(size) < JITTERED).long().tolist()
    flow = model(x, model.time(t), tables([0] * size, jitter), model.context(text), Reader([])).float()
    target, others = noise - truth, [i for i, scene in enumerate(scenes) if scene not in REFINED]
    if others:
        with torch.no_grad():
            rope = tables([0] * len(others), [jitter[i] for i in others])
            kept = before(x[others], before.time(t[others]), rope, before.context(text[others]), Reader([]))
        target[others] = kept.float()
    weight = torch.ones(size, 1, 1, truth.shape[3], 1, device=device)
    seas = [i for i, scene in enumerate(scenes) if scene == "sea"]
    weight[seas, :, :, :SKY], weight[seas, :, :, SKY:] = ABOVE, BELOW
    return (weight * (flow - target).square()).mean()


def keeping_loss(model: Wan, before: Wan, tables: Tables, batch: tuple[Tensor, Tensor, list[list[int]]]) -> Tensor:
    """How far the flows of chunks with a past [B, 5, C, F, 2h, 2w] are from those of the teacher as it was, each with the
    keys and values of its own."""
    truth, text, starts = batch
    size, device = len(truth), truth.device
    ropes = [tables(s, [1] * size) for s in starts]
    kept: tuple[list[KV], list[KV]] = [], []
    losses = []
    for c in range(CHUNKS):
        clean = truth[:, c] + 0.1 * torch.rand(size, 1, 1, 1, 1, device=device) * torch.randn_like(truth[:, c])
        x, t, _ = noised(truth[:, c].repeat(2, 1, 1, 1, 1))
        cos, sin = (table.repeat(3, 1, 1, 1) for table in ropes[c])
        times, words, flows = torch.cat([torch.zeros(size, device=device), t]), text[:, c].repeat(3, 1, 1), []
        for one, mine in zip((model, before), kept, strict=True):
            with torch.set_grad_enabled(one is model):
                reader = Reader([mine[j] for j in seen_by(c)], copies=3)
                flow = one(torch.cat([clean, x]), one.time(times), (cos, sin), one.context(words), reader)
                flows.append(flow[size:].float())
                mine.append([(k[:size], v[:size]) for k, v in reader.own])
        if c:
            losses.append((flows[0] - flows[1]).square().mean())
    return torch.stack(losses).mean()


def as_it_was(name: str, team: Team) -> Wan:
    """The weights of a run before their first step here, kept in training/work for the sessions that follow."""
    file, model = WORK / f"{name}-before.safetensors", trained_transformer(name)
    if team.first and not file.exists():
        save_file(model.state_dict(), file)
    team.wait()
    model.load_state_dict(load_file(file))
    return model.eval().requires_grad_(False)


def moved_student(before: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's weights, moved as its teacher's were."""
    return {k: v + (teacher[k] - before[k]).cpu() for k, v in load_part("distill", "model").items()}


def refine_teacher(args: argparse.Namespace, team: Team, beginnings: Beginnings, batches: Batches) -> None:
    before = as_it_was("transformer", team).to(args.device)
    model = trained_transformer("transformer").to(args.device)
    muon, adam = optimisers(model)
    ema = Ema(model, 0.998)
    parts = {"model": model, "muon": muon, "adam": adam, "ema": ema}
    run = Run("transformer", parts, {"model": ema}, args.steps, args.minutes, team)
    tables = Tables(args.device)
    for step in run.count([(muon, args.peak), (adam, args.peak)], warmup=100):
        keeps = step % KEEP_EVERY == KEEP_EVERY - 1
        with autocast(args.device):
            if keeps:
                loss = KEEP * keeping_loss(model, before, tables, batches.draw(1))
            else:
                loss = beginning_loss(model, before, tables, beginnings.draw(args.batch))
        update(loss, model, [muon, adam], team)
        ema.update(step)
        if step % 50 in (48, 49):
            run.log(**{"kept" if keeps else "beginnings": round(float(loss.detach()), 5)})
        if step % CHECK == CHECK - 1 and team.first:
            evaluate_with(ema, model, lambda: run.log(held_out=held_out_loss(model, tables, batches)))


def refine_student(args: argparse.Namespace, team: Team, beginnings: Beginnings, batches: Batches) -> None:
    of, tables = progress_of("transformer"), Tables(args.device)
    new = Teacher(*(trained_transformer(name).to(args.device) for name in ("transformer", "young")))
    old = Teacher(as_it_was("distill", team).to(args.device), guidance=0.0)
    student = trained_transformer("distill")
    if progress_of("distill", of) == 0:
        teacher = trained_transformer("transformer").state_dict()
        student.load_state_dict(moved_student(as_it_was("transformer", team).state_dict(), teacher))
    student.to(args.device)
    muon, adam = optimisers(student)
    ema = Ema(student, 0.99)
    run = Run(
        "distill",
        {"model": student, "muon": muon, "adam": adam, "ema": ema},
        {"model": ema},
        args.steps,
        args.minutes,
        team,
        of=of,
    )
    others = [scene for scene in SHARE if scene not in REFINED]
    for step in run.count([(muon, args.peak / 2), (adam, args.peak / 2)], warmup=50):
        kind = step % 3
        with autocast(args.device):
            if kind == 0:
                loss = rollout_loss(student, new, tables, alone(beginnings.draw(args.batch // 2, REFINED)))
            elif kind == 1:
                loss = STAY * rollout_loss(student, old, tables, alone(beginnings.draw(args.batch, others)), 1)
            else:
                loss = STAY * rollout_loss(student, old, tables, batches.draw(1), 1)
        update(loss, student, [muon, adam], team)
        ema.update(step)
        if step % 30 >= 27:
            run.log(**{("new", "others", "rollouts")[kind]: round(float(loss.detach()), 5)})


def alone(batch: tuple[Tensor, Tensor, list[str]]) -> tuple[Tensor, Tensor, list[list[int]]]:
    """First chunks as `rollout_loss` takes them."""
    truth, text, _ = batch
    return truth[:, None], text[:, None], [[0] * len(truth)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("whom", choices=("teacher", "student"))
    parser.add_argument(
        "--steps", type=int, required=True, help="over all sessions; the teacher's before this are counted"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=240, help="whole clips, which have to be rendered")
    parser.add_argument("--share", type=float, default=1.0, help="of the beginnings that could be rendered")
    parser.add_argument("--batch", type=int, default=16, help="beginnings a step of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", type=float, default=PEAK)
    args = parser.parse_args()
    team, texts = Team(args.workers), load_texts()
    torch.manual_seed(0)
    beginnings = Beginnings(texts, args.device, team, args.share)
    batches = Batches(encode_pool(args.instances, args.instances, args.device, team), texts, args.device)
    Block.project, Block.finish = torch.compile(Block.project), torch.compile(Block.finish)  # type: ignore[method-assign]
    {"teacher": refine_teacher, "student": refine_student}[args.whom](args, team, beginnings, batches)


if __name__ == "__main__":
    main()
