"""The contact sheet in the README: a minute of every scene, a frame every ten seconds -> docs/demo.png."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from everframe.runtime import Stream, open_bundle
from everframe.runtime.measure.statistics import clip_stats

from prompts import PROMPTS
from run import HERE
from scenes import FPS


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "demo.png")
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    times = [0.5, *range(10, args.seconds, 10), args.seconds - 1 / FPS]
    rows = []
    for i, variants in enumerate(PROMPTS.values()):
        prompt = variants[list(variants)[i % 3]][0]
        with Stream(bundle, prompt=prompt, seed=args.seed) as stream:
            chunks = [
                stream.next_chunk().frames for _ in range(round(args.seconds / bundle.manifest.geometry.chunk_seconds))
            ]
        frames = np.concatenate(chunks)
        rows.append(np.concatenate([frames[min(int(t * FPS), len(frames) - 1)] for t in times], 1))
        first, last = (clip_stats(np.concatenate(part)) for part in (chunks[2:10], chunks[-8:]))
        sharpness = f"sharpness {first.sharpness:.0f} to {last.sharpness:.0f}"
        print(f"{prompt}: motion {first.motion:.2f} to {last.motion:.2f}, {sharpness}")
    sheet = Image.fromarray(np.concatenate(rows, 0))
    sheet.resize((sheet.width * 3 // 4, sheet.height * 3 // 4), Image.Resampling.LANCZOS).save(
        args.output, optimize=True
    )


if __name__ == "__main__":
    main()
