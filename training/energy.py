"""How much there is to see in what each stage makes, as shares of renders that it was not trained on: whose fault a blur is.

    python training/energy.py --guidance 0 1 1.5 2

The autoencoder on the clips held out, the teacher in 16 Euler steps (unguided, and guided by its young self), the student in
its four; every prompt in its first wording, the second to the fourth chunk of a stream, in PyTorch. Minutes, where judge.py
takes ten.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from everframe.export.wan import Wan

from clips import instance
from common import autocast, load_pool
from distill import GUIDANCE, GUIDED_BELOW, SUBSTEPS, Teacher, euler
from latents import encode_pool, load_texts
from measures import geometric, motion, octaves
from rollout import CHUNK, SCHEDULE, Tables, generate, sigmas_of
from run import load_part
from scenes import PROMPTS
from settings import TRANSFORMER
from team import Team
from transformer import HELD_OUT
from weights import trained_autoencoder

CHUNKS, WARM = 4, 12  # of a stream; pixel frames at its beginning that are not looked at
COLUMNS = ("finest", "next", "third", "motion")


def network(name: str) -> Wan:
    model = Wan(TRANSFORMER)
    model.load_state_dict(load_part(name, "model"))
    return model


def guided(teacher: Teacher, tables: Tables, text: Tensor, steps: int) -> Tensor:
    """`rollout.generate`, by the teacher."""
    contexts, out = teacher.contexts(text), []
    teacher.kept = []
    for c in range(CHUNKS):
        rope = tables([CHUNK * c] * len(text), [1] * len(text))
        x = torch.randn(len(text), TRANSFORMER.latent_channels, CHUNK, *(2 * tokens for tokens in tables.size))
        x = euler(teacher, x, sigmas_of(steps), rope, contexts, c)
        teacher.commit(x, rope, contexts, c)
        out.append(x)
    return torch.cat(out, 2).transpose(1, 2)


def figures(clips: list[np.ndarray], scenes: list[str]) -> dict[str, np.ndarray]:
    """The columns of every scene, summed over its clips: one with little to see must not weigh as much as one with a lot."""
    every = [np.array([*octaves(clip, 3), motion(clip)]) for clip in clips]
    return {scene: np.sum([f for f, s in zip(every, scenes, strict=True) if s == scene], 0) for scene in PROMPTS}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--use", type=int, default=480)
    parser.add_argument("--guidance", type=float, nargs="*", default=[0.0, GUIDANCE])
    parser.add_argument("--below", type=float, default=GUIDED_BELOW)
    args = parser.parse_args()
    frames = slice(WARM, 4 * CHUNK * CHUNKS)
    latents, pool = encode_pool(args.instances, args.use, "cpu", Team(1)), load_pool(f"clips-{args.instances}.npy")
    held_out = range(args.use - HELD_OUT, args.use)
    scenes, texts = [instance(i).scene for i in held_out], load_texts()
    text = torch.stack([texts[PROMPTS[instance(i).scene][instance(i).variant][0]] for i in held_out])
    true = figures([pool[i][frames] for i in held_out], scenes)
    ae, tables = trained_autoencoder(), Tables("cpu")

    def show(name: str, make: Callable[[], Tensor]) -> None:
        torch.manual_seed(1)
        with torch.no_grad(), autocast("cpu"):
            made = [ae.decode(row[None].float())[0][0].clamp(0, 1) for row in make()]
        clips = [(255 * clip).round().byte().permute(0, 2, 3, 1).numpy()[WARM:] for clip in made]
        found = figures(clips, scenes)
        shares = np.array([found[scene] / true[scene] for scene in PROMPTS])
        print(f"{name:20}" + " ".join(f"{geometric(c):7.2f}" for c in shares.T), flush=True)
        print(" " * 20 + ", ".join(f"{s} {row[0]:.2f} {row[-1]:.2f}" for s, row in zip(PROMPTS, shares, strict=True)))

    print(" " * 20 + " ".join(f"{c:>7}" for c in COLUMNS) + "; of every scene the first and the last")
    near = torch.from_numpy(np.stack([latents[i][: CHUNK * CHUNKS] for i in held_out]))
    show("autoencoder", lambda: near)
    for guidance in args.guidance:
        teacher = Teacher(network("transformer"), network("young"), guidance=guidance, below=args.below)
        show(f"teacher, {guidance:g}", lambda t=teacher: guided(t, tables, text, SUBSTEPS * len(SCHEDULE.steps)))
    show("student", lambda: generate(network("distill").eval(), tables, text, CHUNKS))


if __name__ == "__main__":
    main()
