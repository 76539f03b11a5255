"""Train the demo's networks behind its decoder, on renders of twice its size and rate.

    python training/post.py pool                    # 4608 frames of 512×288, two minutes
    python training/post.py upscale --minutes 20
    python training/post.py smooth --minutes 20
    python training/postjudge.py                    # against renders that no training saw

Low frames are the renders, two by two pixels averaged. From frames that went through the demo's autoencoder `upscale`
learned nothing but to blur: their fine structure stands elsewhere than the render's, and no network can tell where. What is
left lies in training/post as ONNX, for `everframe post add`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from losses import texture_loss
from postnets import Between, Upscale
from prompts import PROMPTS
from scenes import render

HERE = Path(__file__).parent
WORK, KEPT = HERE / "work", HERE / "post"
HEIGHT, WIDTH, LENGTH = 288, 512, 24  # of a clip at 32 frames a second
CLASSES = [(scene, variant) for scene, variants in PROMPTS.items() for variant in variants]
SEEDS, FIRST_SEED = 8, 20_000
CROP, BATCH = 128, 8  # of low frames
TEXTURE = 0.001  # of `upscale`, in white: the energy of fine structure, which a mean error would leave out
NETS = {"upscale": Upscale, "smooth": Between}


def clip(scene: str, variant: str, seed: int) -> np.ndarray:
    """[LENGTH, HEIGHT, WIDTH, 3] uint8, two frames to one of the demo's."""
    frames = render(scene, variant, seed, torch.arange(LENGTH) / 2 + 37 * (seed % 100), HEIGHT, WIDTH)
    return (frames * 255).round().byte().numpy()


def halved(frames: np.ndarray) -> np.ndarray:
    """[T, H, W, 3] uint8 -> [T, H/2, W/2, 3]: means of two by two pixels."""
    wide = frames.astype(np.uint16)
    rows = wide[:, ::2] + wide[:, 1::2]
    return ((rows[:, :, ::2] + rows[:, :, 1::2] + 2) // 4).astype(np.uint8)


def pool() -> np.ndarray:
    """[clips, LENGTH, HEIGHT, WIDTH, 3] uint8, memory-mapped; rendered where it is missing."""
    file = WORK / "post-clips.npy"
    if not file.exists():
        WORK.mkdir(exist_ok=True)
        part = WORK / "post-clips.part.npy"
        clips = np.lib.format.open_memmap(part, "w+", np.uint8, (len(CLASSES) * SEEDS, LENGTH, HEIGHT, WIDTH, 3))
        for i in range(len(clips)):
            clips[i] = clip(*CLASSES[i % len(CLASSES)], FIRST_SEED + i)
        clips.flush()
        part.rename(file)
    return np.load(file, mmap_mode="r")


def tensor(frames: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255


def batch(kind: str, rng: np.random.Generator, clips: np.ndarray) -> tuple[list[Tensor], Tensor]:
    """(inputs, target): crops, mirrored half of the time."""
    taken, targets = [], []
    for _ in range(BATCH):
        i, t = rng.integers(len(clips)), 2 * rng.integers(LENGTH // 2 - 1)
        y, x = 2 * rng.integers((HEIGHT // 2 - CROP) // 2 + 1), 2 * rng.integers((WIDTH // 2 - CROP) // 2 + 1)
        high = np.s_[2 * y : 2 * (y + CROP), 2 * x : 2 * (x + CROP)]
        if kind == "upscale":
            target = clips[i, t][high]
            row = [halved(target[None])[0], target]
        else:
            row = list(halved(np.stack([clips[i, t + j][high] for j in (0, 2, 1)])))
            if rng.random() < 0.5:  # backwards
                row[:2] = row[1::-1]
        flip = np.s_[:, ::-1] if rng.random() < 0.5 else np.s_[:, :]
        taken.append([np.ascontiguousarray(one[flip]) for one in row[:-1]])
        targets.append(np.ascontiguousarray(row[-1][flip]))
    return [tensor(list(one)) for one in zip(*taken, strict=True)], tensor(targets)


def train(kind: str, minutes: float) -> nn.Module:
    """Root of squares plus a little (Charbonnier), for `upscale` the energy of its texture too, Adam, the rate falling along
    a half cosine of time."""
    clips = pool()
    torch.manual_seed(0)
    rng, net = np.random.default_rng(0), NETS[kind]()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    began, step, mean = time.time(), 0, 0.0
    while (spent := (time.time() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * max(0.01, 0.5 + 0.5 * float(np.cos(np.pi * spent)))
        inputs, target = batch(kind, rng, clips)
        made = net(*inputs)
        loss = ((made - target) ** 2 + 1e-6).sqrt().mean()
        if kind == "upscale":
            loss = loss + TEXTURE * texture_loss(made[:, None], target[:, None])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step, mean = step + 1, 0.98 * mean + 0.02 * float(loss.detach())
        if step % 100 == 0:
            print(f"{kind} {step} steps, {spent:.0%}: {255 * mean / (1 - 0.98**step):.3f} grey levels", flush=True)
    return net


def keep(kind: str, net: nn.Module) -> None:
    """As ONNX of the demo's size: images [1, 3, H, W] in, one image out."""
    KEPT.mkdir(exist_ok=True)
    names = ["image"] if kind == "upscale" else ["before", "after"]
    example = tuple(torch.rand(1, 3, HEIGHT // 2, WIDTH // 2) for _ in names)
    half = net.half().float().eval()  # stored so: what runs is what was judged
    torch.onnx.export(
        half, example, str(KEPT / f"{kind}.onnx"), dynamo=True, opset_version=18, input_names=names,
        output_names=["frame"], external_data=False, verbose=False,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["pool", *NETS])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.what == "pool":
        pool()
    else:
        keep(given.what, train(given.what, given.minutes))


if __name__ == "__main__":
    main()
