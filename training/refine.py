"""Go on with teacher and student on what some scenes need, and keep the rest of what they do.

    python training/refine.py teacher --steps 9750 [--scenes sea hills reef] [--minutes 60] [--device cuda]
    python training/refine.py student --steps 1000 [--scenes sea hills reef] [--minutes 40]

Most of the teacher's beginnings are of the scenes that are to learn: the first chunks of far more clips than the pool has
(beginnings.py), drawn to the truth. Where sea or hills are among them, two of five steps are of those that have lost or
spoilt in the chunks before what they should show (astray.py). All else, the beginnings of other scenes and the chunks with a
past of theirs and of the reef, is drawn to what the teacher did before (learning without forgetting, arXiv 1606.09282): a
target without the noise of flow matching, of which little is enough. In the sea the sky counts more, row by row, and the
most where all suns of its beginnings are; in chunks whose past tells its place, around their own sun. The first chunks of
sequences astray teach the teacher nothing that beginnings don't.

Then the student is moved as its teacher was (task arithmetic, arXiv 2212.04089), and those scenes are distilled from that
teacher; in the reef its fish count most, of which it drew enough in a stream's first chunk and forgot one of three in the
next ones (lasting.py). In the other scenes it is drawn to what it did before it was moved, guided further: by so much of
the way from the young teacher to the teacher at the same place (autoguidance, as in distill.py) as the variant lacks of
detail, and in what differs between latent frames as it lacks of motion, a target that begins where the student is. A
third of the steps of both are of upright pictures. What both did before is in training/work/NAME-before.safetensors, and
where upright pictures are to be as another one drew them, that is in NAME-upright.safetensors; remove these before other
scenes are refined. What the teacher was when a student began is in transformer-STEP.safetensors: the next student is
moved by what has come since.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from everframe.export.wan import Block, Wan

from astray import DISC, astray, sky_of
from beginnings import EACH, LATER, Beginnings, Drawn, later, sun_cells
from clips import HELD_OUT
from common import autocast, evaluate_with, update
from distill import TRUE_SINKS, Teacher, rollout_loss
from guidance import further_of, guidance_of
from latents import encode_pool, load_texts
from prompts import PROMPTS
from rollout import CHUNKS, KV, SCHEDULE, Reader, Tables, nothing, seen_by
from run import WORK, Ema, Run, about_compact, load_part, progress_of
from team import Team
from transformer import (
    JITTERED,
    Batches,
    held_out_loss,
    noised,
    optimisers,
    preview,
    random_timesteps,
    sequence_loss,
    upright,
)
from weights import trained_transformer

PEAK = 6e-4
CHECK = 200  # steps between two looks at clips that are not drawn here; with fewer --instances than before it knew them
EARLY, EARLY_FROM = 0.45, 700.0  # share of the beginnings at timesteps where the picture is laid out, and from which on
KEEP = 4.0  # what chunks with a past count, which are to stay
STAY = 3.0  # what the student's other scenes count beside those that it learns
UPRIGHT_EVERY = 3  # rounds of steps, the last of which is of upright pictures
STANDING = {"reef": 1.0}  # what is added to a student's weight where something stands out of its row by 1


def early_timesteps(n: int, device: str) -> Tensor:
    """`random_timesteps`, but for a share of them over the first third, a part of it at the very first. [n]"""
    above = EARLY_FROM + (1000 - EARLY_FROM) * torch.rand(n, device=device)
    above = torch.where(torch.rand(n, device=device) < 0.15, 1000.0, above)
    return torch.where(torch.rand(n, device=device) < EARLY, above, random_timesteps(n, device))


def weight_of(truth: Tensor, scenes: list[str]) -> Tensor:
    """What of beginnings [B, C, F, 2h, 2w] counts how much: of seas the sky more than the water, and where in it their suns
    are the most. [B, 1, 1, 2h, 2w]"""
    weight = torch.ones(len(truth), 1, 1, *truth.shape[3:], device=truth.device)
    sea = sky_of(truth).repeat(1, truth.shape[-1])
    sea[sun_cells(truth)] = DISC
    weight[[scene == "sea" for scene in scenes]] = sea
    return weight


def beginning_loss(model: Wan, before: Wan, tables: Tables, some: Drawn, learnt: Sequence[str]) -> Tensor:
    """Of chunks without a past, those of the scenes that are learnt to the truth."""
    truth, text = some.chunks, some.text
    size, device = len(truth), str(truth.device)
    t, noise = early_timesteps(size, device), torch.randn_like(truth)
    sigma = (t / 1000).view(-1, 1, 1, 1, 1)
    x = (1 - sigma) * truth + sigma * noise
    jitter = (torch.rand(size) < JITTERED).long().tolist()
    flow = model(x, model.time(t), tables([0] * size, jitter), model.context(text), Reader([])).float()
    target, others = noise - truth, [i for i, scene in enumerate(some.scenes) if scene not in learnt]
    if others:
        with torch.no_grad():
            rope = tables([0] * len(others), [jitter[i] for i in others])
            kept = before(x[others], before.time(t[others]), rope, before.context(text[others]), Reader([]))
        target[others] = kept.float()
    weight = weight_of(truth, some.scenes)
    weight[others] = 1.0
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


def kept_loss(
    student: Wan, was: Teacher, tables: Tables, one: tuple[str, str], batch: tuple[Tensor, Tensor, list[list[int]]]
) -> Tensor:
    """Of sequences of a scene and variant that a student keeps: its distance from what it was, guided further."""
    was.guidance, was.moving = further_of(one, batch[0])
    return rollout_loss(student, was, tables, batch, 1, things=STANDING.get(one[0], 0.0))


@dataclass(frozen=True)
class Place:
    """Pictures of one geometry: what is drawn of them, and the positions in them."""

    name: str  # "" or "upright"
    tables: Tables
    beginnings: Beginnings
    lost: Batches | None  # where no scene is learnt that has any
    batches: Batches


def places(args: argparse.Namespace, team: Team) -> list[Place]:
    """Wide, and upright, of which there are less."""
    texts = load_texts()
    whole = encode_pool(args.instances, args.instances, args.device, team)
    wide = Batches(whole, texts, args.device), Tables(args.device)
    kinds = [wide, *upright(args.portrait, texts, args.device, team)]
    made = []
    for (batches, tables), share, portrait in zip(kinds, (args.share, args.share / 4), (False, True), strict=True):
        beginnings = Beginnings(args.scenes, texts, args.device, team, share, portrait)
        goes_astray = [scene for scene in LATER if scene in args.scenes]
        lost = later(goes_astray, texts, args.device, team, share, portrait) if goes_astray else None
        made.append(Place("upright" * portrait, tables, beginnings, lost, batches))
    return made


def of_step(step: int, kinds: tuple[str, ...]) -> tuple[str, int]:
    """What a step is of, and which of the places."""
    return kinds[step % len(kinds)], int(step // len(kinds) % UPRIGHT_EVERY == UPRIGHT_EVERY - 1)


def as_it_was(name: str, team: Team, place: Place, scenes: Sequence[str]) -> Wan:
    """The weights of a run before these scenes' first step here, kept in training/work for the sessions that follow; or
    those that are there for this place. SystemExit where they are of before other scenes', which they would take back."""
    file, model, those = WORK / f"{name}-before.safetensors", trained_transformer(name), " ".join(scenes)
    if team.first and not file.exists():
        save_file(model.state_dict(), file, {"scenes": those})
    team.wait()
    with safe_open(file, "pt") as kept:
        found = (kept.metadata() or {}).get("scenes", those)
    if found != those:
        raise SystemExit(
            f"{file}: what {name} was before {found} went on, not {those}; remove it, or give --scenes {found}"
        )
    own = WORK / f"{name}-{place.name}.safetensors"
    model.load_state_dict(load_file(own if own.exists() else file))
    return model.eval().requires_grad_(False)


def taught_by(of: int) -> Path:
    """What the teacher was at a step from which a student has begun."""
    return WORK / f"transformer-{of}.safetensors"


def whose_student() -> Path:
    """What the teacher was from which the student has learnt: the one kept for its step, or what it was before all this.
    SystemExit where neither is there."""
    of = int(about_compact("distill").get("of", 0))
    found = [path for path in (taught_by(of), WORK / "transformer-before.safetensors") if path.exists()]
    if not found:
        raise SystemExit(f"{WORK}: no transformer-before.safetensors, what the teacher was before `refine.py teacher`")
    return found[0]


def moved_student(whose: dict[str, Tensor], teacher: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's weights, moved as its teacher's were since it learnt from them."""
    return {k: v + (teacher[k] - whose[k]) for k, v in load_part("distill", "model").items()}


def refine_teacher(args: argparse.Namespace, team: Team, drawn: list[Place]) -> None:
    befores = [as_it_was("transformer", team, place, args.scenes).to(args.device) for place in drawn]
    model = trained_transformer("transformer").to(args.device)
    muon, adam = optimisers(model)
    ema = Ema(model, 0.998)
    parts = {"model": model, "muon": muon, "adam": adam, "ema": ema}
    run = Run("transformer", parts, {"model": ema}, args.steps, args.minutes, team)
    kinds = ("beginnings", "astray", "beginnings", "astray", "kept")
    if not drawn[0].lost:
        kinds = ("beginnings", "beginnings", "kept")
    for step in run.count([(muon, args.peak), (adam, args.peak)], warmup=100):
        kind, at = of_step(step, kinds)
        place, before = drawn[at], befores[at]
        with autocast(args.device):
            if kind == "kept":
                others = [scene for scene in PROMPTS if scene not in args.scenes or scene not in LATER]
                some = place.batches.draw(1, one_of(place.batches, others))
                loss = KEEP * keeping_loss(model, before, place.tables, some)
            elif kind == "astray" and place.lost:
                one = astray(place.lost)
                loss = sequence_loss(model, place.tables, one.drawn, False, one.weight, one.lose)[1:].mean()
            else:
                loss = beginning_loss(model, before, place.tables, place.beginnings.draw(args.batch), args.scenes)
        update(loss, model, [muon, adam], team)
        ema.update(step)
        if step % 50 >= 45:
            run.log(**{f"{place.name} {kind}".strip(): round(float(loss.detach()), 5)})
        if step % CHECK == CHECK - 1 and team.first:
            evaluate_with(ema, model, lambda: run.log(held_out=held_out_loss(model, drawn[0].tables, drawn[0].batches)))


def refine_student(args: argparse.Namespace, team: Team, drawn: list[Place]) -> None:
    of = progress_of("transformer")
    young = trained_transformer("young").to(args.device)
    was = [
        [as_it_was(name, team, place, args.scenes).to(args.device) for name in ("distill", "transformer")]
        for place in drawn
    ]
    student, teacher = (trained_transformer(name) for name in ("distill", "transformer"))
    if progress_of("distill", of) == 0:
        student.load_state_dict(moved_student(load_file(whose_student()), teacher.state_dict()))
    if team.first:
        save_file(teacher.state_dict(), taught_by(of))
    own = Teacher(teacher.to(args.device), young)
    others = [Teacher(*both, young) for both in was]
    student.to(args.device)
    muon, adam = optimisers(student)
    ema = Ema(student, 0.99)
    parts = {"model": student, "muon": muon, "adam": adam, "ema": ema}
    run = Run("distill", parts, {"model": ema}, args.steps, args.minutes, team, of=of)
    for step in run.count([(muon, args.peak / 2), (adam, args.peak / 2)], warmup=50):
        kind, at = of_step(step, ("learnt", "others", "learnt", "others", "beginnings", "others"))
        place, tables = drawn[at], drawn[at].tables
        with autocast(args.device):
            if kind == "others":
                one = one_of(place.batches, [scene for scene in PROMPTS if scene not in args.scenes])
                loss = STAY * kept_loss(student, others[at], tables, one, place.batches.draw(1, one))
            elif kind == "learnt":
                one = one_of(place.batches, args.scenes)
                if one[0] in LATER and place.lost:
                    kind, lost = "astray", astray(place.lost)
                    own.guidance, own.moving = guidance_of(lost.kind, lost.weight)
                    true = TRUE_SINKS if lost.lose is nothing else 1.0
                    loss = rollout_loss(student, own, tables, lost.drawn, true=true, lose=lost.lose, weight=lost.weight)
                else:
                    some = place.batches.draw(1, one)
                    own.guidance, own.moving = guidance_of(one, some[0])
                    loss = rollout_loss(student, own, tables, some, things=STANDING.get(one[0], 0.0))
            else:
                some = place.beginnings.draw(args.batch // 2, args.scenes)
                pairs = [guidance_of(one, some.chunks) for one in some.kinds]
                own.guidance, own.moving = (of_each(list(measure)) for measure in zip(*pairs, strict=True))
                things = of_each([torch.full((1, 1), STANDING.get(scene, 0.0)) for scene in some.scenes])
                weight = weight_of(some.chunks, some.scenes)
                loss = rollout_loss(student, own, tables, alone(some), weight=weight, things=things.to(args.device))
        update(loss, student, [muon, adam], team)
        ema.update(step)
        if step % 41 >= 38:  # so that all kinds come up
            run.log(**{f"{place.name} {kind}".strip(): round(float(loss.detach()), 5)})
    wide = drawn[0]
    evaluate_with(ema, student, lambda: preview(run, student, wide.tables, wide.batches, len(SCHEDULE.steps)))


def one_of(batches: Batches, scenes: Sequence[str]) -> tuple[str, str]:
    """A scene and variant of what is drawn from, each of those scenes' as likely."""
    some = [pair for pair in batches.of if pair[0] in scenes]
    return some[int(torch.randint(len(some), ()))]


def of_each(values: list[Tensor]) -> Tensor:
    """For chunks [B, C, F, 2h, 2w] what has been given for each [2h, 1]. [B, 1, 1, 2h, 1]"""
    return torch.stack(values)[:, None, None]


def alone(some: Drawn) -> tuple[Tensor, Tensor, list[list[int]]]:
    """First chunks as `rollout_loss` takes them."""
    return some.chunks[:, None], some.text[:, None], [[0] * len(some.chunks)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("whom", choices=("teacher", "student"))
    parser.add_argument(
        "--steps", type=int, required=True, help="over all sessions; the teacher's before this are counted"
    )
    parser.add_argument("--scenes", nargs="+", choices=EACH, default=list(EACH), help="that are to learn")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=240, help="whole clips, which have to be rendered")
    parser.add_argument("--portrait", type=int, default=72, help="whole clips that stand upright, likewise")
    parser.add_argument("--share", type=float, default=1.0, help="of the beginnings that could be rendered")
    parser.add_argument("--batch", type=int, default=16, help="beginnings a step of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", type=float, default=PEAK)
    args = parser.parse_args()
    if min(args.instances, args.portrait) < 24:
        parser.error("--instances, --portrait: fewer than 24 are not of every scene and variant")
    if args.instances <= HELD_OUT:
        parser.error(f"--instances: {HELD_OUT} are held out, so that of {args.instances} none is left")
    args.scenes = [scene for scene in EACH if scene in args.scenes]
    team = Team(args.workers)
    torch.manual_seed(0)
    drawn = places(args, team)
    torch._dynamo.config.recompile_limit = 32  # sizes and sorts of calls are more than its eight
    Block.project, Block.finish = torch.compile(Block.project), torch.compile(Block.finish)  # type: ignore[method-assign]
    {"teacher": refine_teacher, "student": refine_student}[args.whom](args, team, drawn)


if __name__ == "__main__":
    main()
