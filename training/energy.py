"""How much there is to see in what each stage makes, as shares of renders that it was not trained on: whose fault a blur is.

    python training/energy.py --guidance 0 1 1.5 2

The autoencoder on the clips held out, the teacher in 16 Euler steps (unguided, and guided by its young self), the student in
its four; every prompt in its first wording, the second to the fourth chunk of a stream, in PyTorch. Minutes, where judge.py
takes ten, once the clips are encoded.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from clips import instance, load_pool
from common import autocast
from distill import GUIDANCE, Teacher, guided
from latents import encode_pool, load_texts
from measures import Frames, geometric, motion, octaves, total
from reconstruct import to_bytes
from rollout import CHUNK, Tables, generate
from team import Team
from transformer import Batches
from weights import trained_autoencoder, trained_transformer

CHUNKS, WARM = 4, 12  # of a stream; pixel frames at its beginning that are not looked at
COLUMNS = ("finest", "next", "third", "motion")


def figures(clips: list[Frames], scenes: list[str]) -> np.ndarray:
    """The columns of every scene that is among the clips' [scenes, columns]."""
    rows = [[clip for clip, s in zip(clips, scenes, strict=True) if s == scene] for scene in dict.fromkeys(scenes)]
    return np.array([total(lambda clip: [*octaves(clip, 3), motion(clip)], row) for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--use", type=int, default=1600, help="of fewer, those held out have been trained on since")
    parser.add_argument("--guidance", type=float, nargs="*", default=[0.0, GUIDANCE])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plain", action="store_true", help="with the decoder as it was before decoder.py tuned it")
    args = parser.parse_args()
    frames = slice(WARM, 4 * CHUNK * CHUNKS)
    device = args.device
    latents, pool = encode_pool(args.instances, args.use, device, Team(1)), load_pool(args.instances)
    batches = Batches(latents, load_texts(), device)
    truth, texts, _ = batches.held_out()
    text, scenes = texts[:, 0], [instance(i).scene for i in batches.unseen]
    true = figures([pool[i][frames] for i in batches.unseen], scenes)
    ae, tables = trained_autoencoder(args.plain).to(device), Tables(device)

    def show(name: str, make: Callable[[], Tensor]) -> None:
        torch.manual_seed(1)
        with torch.no_grad(), autocast(device):
            clips = [to_bytes(ae.decode(row[None].float())[0].clamp(0, 1))[WARM:] for row in make()]
        shares = figures(clips, scenes) / true
        print(f"{name:20}" + " ".join(f"{geometric(c):7.2f}" for c in shares.T), flush=True)
        rows = zip(dict.fromkeys(scenes), shares, strict=True)
        print(" " * 20 + ", ".join(f"{scene} {row[0]:.2f} {row[-1]:.2f}" for scene, row in rows))

    print(" " * 20 + " ".join(f"{c:>7}" for c in COLUMNS) + "; of every scene the first and the last")
    show("autoencoder", lambda: truth[:, :CHUNKS].transpose(2, 3).flatten(1, 2))
    for guidance in args.guidance:
        both = (trained_transformer(name).to(device) for name in ("transformer", "young"))
        teacher = Teacher(*both, guidance=guidance)
        show(f"teacher, {guidance:g}", lambda t=teacher: guided(t, tables, text, CHUNKS))
    show("student", lambda: generate(trained_transformer("distill").to(device).eval(), tables, text, CHUNKS))


if __name__ == "__main__":
    main()
