"""What the shipped autoencoder makes of clips it has never seen: PSNR and SSIM by scene.

python training/reconstruct.py       renders 24 clips of instances far beyond the training pool
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file

from everframe.export.taehv import DEMO, Taehv
from everframe.runtime.measure.statistics import psnr, ssim

from clips import HEIGHT, WIDTH, instance
from common import HERE
from scenes import FPS, painter

FIRST, CLIPS, FRAMES, WARM = 5000, 24, 32, 4


def main() -> None:
    model = Taehv(DEMO).eval()
    weights = load_file(HERE / "demo" / "autoencoder.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    found: dict[str, list[tuple[float, float]]] = {}
    for i in range(FIRST, FIRST + CLIPS):
        it = instance(i)
        frames = painter(it.scene, it.variant, it.seed, HEIGHT, WIDTH)(torch.arange(FRAMES).double() / FPS).clamp(0, 1)
        with torch.no_grad():
            clip = frames.permute(0, 3, 1, 2)[None].float()
            latents, _ = model.encode(clip)
            back = model.decode(latents)[0][0].permute(0, 2, 3, 1)
        a, b = ((255 * v.clamp(0, 1)).round().byte().numpy()[WARM:] for v in (frames, back))
        found.setdefault(it.scene, []).append((psnr(a, b), ssim(a, b)))
    for scene, values in found.items():
        mean = np.mean(values, 0)
        print(f"{scene:8} PSNR {mean[0]:5.2f} dB  SSIM {mean[1]:.3f}")


if __name__ == "__main__":
    main()
