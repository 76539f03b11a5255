"""What an autoencoder makes of clips it has never seen, run chunk by chunk as a stream runs it, by scene.

python training/reconstruct.py                       the autoencoder that ships, in training/demo
python training/reconstruct.py --run [decoder]       that of training/runs, with the decoder of that run

Shares of the render's: energy in the two finest octaves, Laplacian variance, motion. Renders 24 clips of instances far
beyond the training pool.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from everframe.export.taehv import Taehv
from everframe.runtime.measure.statistics import psnr, ssim

from clips import HEIGHT, WIDTH, instance
from measures import geometric, laplacian, motion, octaves
from scenes import render
from weights import shipped_autoencoder, trained_autoencoder

FIRST, CLIPS, FRAMES, WARM, CHUNK = 5000, 24, 36, 12, 12
COLUMNS = ("finest", "next", "Laplacian", "motion", "PSNR", "SSIM")


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


def compare(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The columns' figures of one clip."""
    share = octaves(made, 2) / octaves(true, 2)
    return np.array(
        [*share, laplacian(made) / laplacian(true), motion(made) / motion(true), psnr(made, true), ssim(made, true)]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", nargs="?", const="autoencoder", help="autoencoder (default) or decoder")
    args = parser.parse_args()
    ae = trained_autoencoder(args.run) if args.run else shipped_autoencoder()
    found: dict[str, list[np.ndarray]] = {}
    for i in range(FIRST, FIRST + CLIPS):
        it = instance(i)
        true = render(it.scene, it.variant, it.seed, torch.arange(FRAMES), HEIGHT, WIDTH).permute(0, 3, 1, 2)[None]
        made, kept = (to_bytes(v)[WARM:] for v in (stream(ae, true), true))
        found.setdefault(it.scene, []).append(compare(made, kept))
    print(f"{'':8} " + " ".join(f"{c:>9}" for c in COLUMNS))
    means = {scene: np.mean(values, 0) for scene, values in found.items()}
    for scene, mean in means.items():
        print(f"{scene:8} " + " ".join(f"{v:9.3f}" for v in mean))
    print(f"{'together':8} " + " ".join(f"{geometric(column):9.3f}" for column in np.array(list(means.values())).T))


if __name__ == "__main__":
    main()
