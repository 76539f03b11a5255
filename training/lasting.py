"""How many fish, windows or trees a stream shows chunk by chunk, or in how many frames a sun that stands still, beside
renders: who loses them, and when.

    python training/lasting.py reef --chunks 6

Of every variant, in its first wording: renders that no training has seen, as they are drawn, the teacher in 16 Euler steps,
guided as the student's (refine.py), and the student in its four, in PyTorch. What a stream's first chunk shows says nothing
of the next ones: the tenth demo's student drew as many fish there as its teacher, and had lost a quarter a second later.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor

from distill import Teacher, guided
from guidance import guidance_of
from judge import FIRST_SEED, rendered_clips
from latents import load_texts
from measures import Frames
from prompts import PROMPTS
from reconstruct import to_bytes
from rollout import CHUNK, Tables, generate
from things import things_of
from weights import trained_autoencoder, trained_transformer

FRAMES = 4 * CHUNK  # of a chunk
EVERY = 4  # of them is looked at
COUNTED = ("sea", "city", "snow", "reef")


def by_chunk(scene: str, clips: list[Frames]) -> list[float]:
    """What is counted first of the scene's things, chunk by chunk, mean over the clips."""
    chunks = range(0, len(clips[0]), FRAMES)
    counted = [[next(iter(things_of(scene, c[at : at + FRAMES], EVERY).values())) for at in chunks] for c in clips]
    return np.mean(counted, 0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scene", choices=COUNTED)
    parser.add_argument("--chunks", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    if min(args.chunks, args.seeds) < 1:
        parser.error("--chunks, --seeds: at least 1 of each")
    texts, tables, ae = load_texts(), Tables("cpu"), trained_autoencoder()
    models = [trained_transformer(name).eval() for name in ("transformer", "young", "distill")]

    def show(name: str, clips: list[Frames]) -> None:
        print(f"{name:20}" + " ".join(f"{n:6.2f}" for n in by_chunk(args.scene, clips)), flush=True)

    def pictures(latents: Tensor) -> list[Frames]:
        return [to_bytes(ae.decode(row[None])[0].clamp(0, 1)) for row in latents]

    seeds = range(FIRST_SEED, FIRST_SEED + args.seeds)
    for variant, wordings in PROMPTS[args.scene].items():
        text = texts[wordings[0]].expand(args.seeds, -1, -1)
        stands, moves = guidance_of((args.scene, variant), torch.empty([2 * tokens for tokens in tables.size]))
        teacher = Teacher(*models[:2], guidance=stands, moving=moves)
        show(f"{variant}, renders", rendered_clips(args.scene, variant, seeds, length=FRAMES * args.chunks))
        with torch.no_grad():
            torch.manual_seed(1)
            show("  teacher", pictures(guided(teacher, tables, text, args.chunks)))
            torch.manual_seed(1)
            show("  student", pictures(generate(models[2], tables, text, args.chunks)))


if __name__ == "__main__":
    main()
