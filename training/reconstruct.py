"""What an autoencoder makes of clips it has never seen, run chunk by chunk as a stream runs it, by scene.

python training/reconstruct.py                 the autoencoder that ships, in training/demo
python training/reconstruct.py --run [plain]   that of training/runs, or as it was before decoder.py tuned its decoder

Shares of the render's: energy in the two finest octaves, Laplacian variance, motion, judder. Renders 24 clips of instances
far beyond the training pool.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from everframe.export.taehv import Taehv
from everframe.runtime.measure.statistics import psnr, ssim

from clips import HEIGHT, WIDTH, instance
from measures import geometric, judder, laplacian, motion, octaves, total
from scenes import render
from weights import shipped_autoencoder, trained_autoencoder

FIRST, CLIPS, FRAMES, WARM, CHUNK = 5000, 24, 36, 12, 12
COLUMNS = ("finest", "next", "Laplacian", "motion", "judder", "PSNR", "SSIM")


def stream(ae: Taehv, frames: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Encode and decode [1, T, 3, H, W] chunk by chunk with the memory handed on, as a stream does."""
    before, after, out = None, None, []
    with torch.no_grad():
        for part in frames.split(chunk, 1):
            latents, before = ae.encode(part, before)
            made, after = ae.decode(latents, after)
            out.append(made)
    return torch.cat(out, 1).clamp(0, 1)


def to_bytes(frames: torch.Tensor) -> np.ndarray:
    """[1, T, 3, H, W] in [0, 1] -> uint8 [T, H, W, 3]"""
    return (frames[0] * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def compare(made: list[np.ndarray], true: list[np.ndarray]) -> np.ndarray:
    """The columns' figures of one scene."""
    sums = [total(lambda c: [*octaves(c, 2), laplacian(c), motion(c)], clips) for clips in (made, true)]
    jumps = judder(made) / judder(true)
    pairs = list(zip(made, true, strict=True))
    return np.array(
        [*(sums[0] / sums[1]), jumps, np.mean([psnr(*p) for p in pairs]), np.mean([ssim(*p) for p in pairs])]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", nargs="?", const="trained", choices=("trained", "plain"))
    args = parser.parse_args()
    ae = trained_autoencoder(args.run == "plain") if args.run else shipped_autoencoder()
    made: dict[str, list[np.ndarray]] = {}
    true: dict[str, list[np.ndarray]] = {}
    for i in range(FIRST, FIRST + CLIPS):
        it = instance(i)
        clip = render(it.scene, it.variant, it.seed, torch.arange(FRAMES), HEIGHT, WIDTH).permute(0, 3, 1, 2)[None]
        made.setdefault(it.scene, []).append(to_bytes(stream(ae, clip))[WARM:])
        true.setdefault(it.scene, []).append(to_bytes(clip)[WARM:])
    rows = {scene: compare(made[scene], true[scene]) for scene in made}
    print(f"{'':8} " + " ".join(f"{c:>9}" for c in COLUMNS))
    for scene, row in rows.items():
        print(f"{scene:8} " + " ".join(f"{v:9.3f}" for v in row))
    print(f"{'together':8} " + " ".join(f"{geometric(column):9.3f}" for column in np.array(list(rows.values())).T))


if __name__ == "__main__":
    main()
