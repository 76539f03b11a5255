"""Teach the student other words: what is asked for in many more wordings is drawn as it draws the wordings it knows.

    python training/reword.py --steps 4700 [--minutes 30]

From the same noise and the same past the student, told a phrase of phrases.py, is drawn to where it went before this,
told one of the wordings that it has learnt (wishes.py, prompts.py), in its first chunk or over a stream. Nothing is
rendered for that, and only what reads the text learns: the text's embedding and the attention to it. At least two of five
of what it is told are the wordings it knows, whose pictures are to stay (docs/demo_training.md: with fewer they did not).
What it did before is in training/work/distill-worded.safetensors, which has to be kept until it has learnt; remove that
where another student is to learn other words.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from everframe.export.texts import MiniLm
from everframe.export.wan import Block, Wan

from clips import drawn_far
from common import autocast, update
from distill import Teacher, rollout_loss
from latents import padded
from phrases import phrase
from prompts import PROMPTS
from refine import of_step
from rollout import CHUNK, CHUNKS, COLUMNS, ROWS, Tables
from run import WORK, Ema, Run, about_compact
from settings import TRANSFORMER
from team import Team
from transformer import optimisers
from weights import trained_transformer
from wishes import Wish, every, wordings

PEAK = 2e-4
SWITCHED = 0.2  # share of the streams whose prompt changes
ASKS = 0.6  # share of the prompts that ask for something beyond scene and variant
KNOWN = 0.4  # share of those told in a wording that it knows: by 0.25, and fewer plain ones, the bank's pictures lost
WELL_KNOWN = 2  # of the wordings, for the teacher had seen no others for its first 3,600 steps
LESS_KNOWN = 0.1  # share of the rest, which are told like phrases
SAID_BY_COLOUR = ("aurora", "fire", "lava")  # scenes whose variants are colours, which phrases have of a wish alone


def prompts(rng: np.random.Generator) -> tuple[str, str]:
    """What the student is told, and a wording it knows of the same."""
    scene = str(rng.choice(list(PROMPTS)))
    variant = str(rng.choice(list(PROMPTS[scene])))
    asks = every(scene, variant)
    wish = asks[int(rng.integers(len(asks)))] if rng.random() < ASKS else Wish()
    ways = wordings(scene, variant, wish)[:-1] if wish else PROMPTS[scene][variant]
    known = str(rng.choice(ways[:WELL_KNOWN]))
    if rng.random() < KNOWN or (not wish and scene in SAID_BY_COLOUR):
        return known, known
    if rng.random() < LESS_KNOWN:
        return str(rng.choice(ways[WELL_KNOWN:])), known
    return phrase(scene, variant, wish, rng), known


def reads_text(name: str) -> bool:
    """Whether a weight of the transformer is of what reads the text."""
    return name.startswith("text_embedding") or ".cross_attn." in name


class Encoder:
    """Prompts as the bundle's bank has them."""

    def __init__(self) -> None:
        self.model = MiniLm()

    def __call__(self, said: list[str], device: str) -> Tensor:
        """[B, text_len, text_dim]"""
        with torch.autocast("cpu", enabled=False):
            made = [padded(self.model.encode(one, TRANSFORMER.text_len).half()) for one in said]
        return torch.stack(made).to(device)


def both(size: int, tables: Tables, encode: Encoder, rng: np.random.Generator, same: bool) -> tuple[Tensor, Tensor]:
    """What the student is told, and what it was told of the same, each [B, text_len, text_dim]."""
    told, known = zip(*(prompts(rng) for _ in range(size)), strict=True)
    text = encode(list(told), tables.device)
    return text, text if same else encode(list(known), tables.device)


def reworded_loss(
    student: Wan,
    was: Teacher,
    tables: Tables,
    encode: Encoder,
    rng: np.random.Generator,
    size: int,
    chunks: int,
    same: bool = False,
) -> Tensor:
    """Of so many streams of so many chunks, near or far, of which some are told something else on the way. same: what it was
    is told the same."""
    told = [both(size, tables, encode, rng, same)] * chunks
    if chunks > 1 and rng.random() < SWITCHED:
        at = int(rng.integers(1, chunks))
        told = [*told[:at], *[both(size, tables, encode, rng, same)] * (chunks - at)]
    text, asked = (torch.stack(list(texts), 1) for texts in zip(*told, strict=True))
    first = [CHUNK if rng.random() < 0.5 else drawn_far(rng) for _ in range(size)]
    starts = [[0] * size, *([frame + CHUNK * c for frame in first] for c in range(chunks - 1))]
    shape = (size, chunks, TRANSFORMER.latent_channels, CHUNK, *(2 * tokens for tokens in tables.size))
    nothing_true = torch.zeros(shape, device=tables.device)
    return rollout_loss(student, was, tables, (nothing_true, text, starts), 1, true=0.0, asked=asked)


def as_it_was(team: Team, learns: str) -> Wan:
    """The student before its first step of learning that, kept for the sessions that follow."""
    file, model = WORK / f"distill-{learns}.safetensors", trained_transformer("distill")
    if team.first and not file.exists():
        save_file(model.state_dict(), file)
        (WORK / "distill.pt").unlink(missing_ok=True)  # it begins with these weights, the averaged ones
    team.wait()
    model.load_state_dict(load_file(file))
    return model


def arguments(peak: float) -> argparse.Namespace:
    """Of this script and settle.py."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True, help="the student's, over all sessions")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=12, help="first chunks a step of each worker; of streams a sixth")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", type=float, default=peak)
    return parser.parse_args()


def size_and_chunks(kind: str, batch: int) -> tuple[int, int]:
    """Of a step: how many streams, of how many chunks."""
    return (max(1, batch // 6), CHUNKS) if kind == "streams" else (batch, 1)


def learn(
    args: argparse.Namespace, team: Team, student: Wan, kinds: tuple[str, ...], loss_of: Callable[[str, int], Tensor]
) -> None:
    """Go on with what of the student requires a gradient. loss_of: of a step of that kind, of wide (0) or upright (1)
    pictures."""
    Block.project, Block.finish = torch.compile(Block.project), torch.compile(Block.finish)  # type: ignore[method-assign]
    torch._dynamo.config.recompile_limit = 32
    muon, adam = optimisers(student)
    ema = Ema(student, 0.99)
    parts = {"model": student, "muon": muon, "adam": adam, "ema": ema}
    of = int(about_compact("distill").get("of", 0))
    run = Run("distill", parts, {"model": ema}, args.steps, args.minutes, team, of=of)
    told = defaultdict[str, list[float]](list)
    for step in run.count([(muon, args.peak), (adam, args.peak)], warmup=50):
        kind, at = of_step(step, kinds)
        with autocast(args.device):
            loss = loss_of(kind, at)
        update(loss, student, [muon, adam], team)
        ema.update(step)
        told[kind].append(float(loss.detach()))
        if step % 24 == 23:
            run.log(**{name: round(sum(some) / len(some), 5) for name, some in told.items()})
            told.clear()


def main() -> None:
    args = arguments(PEAK)
    team = Team(args.workers)
    torch.manual_seed(0)
    rng = np.random.default_rng()
    was = Teacher(as_it_was(team, "worded").to(args.device), guidance=0.0)
    student, encode = trained_transformer("distill").to(args.device), Encoder()
    for name, weight in student.named_parameters():
        weight.requires_grad_(reads_text(name))
    places = [Tables(args.device), Tables(args.device, size=(COLUMNS, ROWS))]

    def loss_of(kind: str, at: int) -> Tensor:
        return reworded_loss(student, was, places[at], encode, rng, *size_and_chunks(kind, args.batch))

    learn(args, team, student, ("first chunks", "first chunks", "streams"), loss_of)


if __name__ == "__main__":
    main()
