"""What the demo's post graphs give, against renders of twice the size and rate that no training saw.

    python training/postjudge.py -o docs/measured/post.json

Upscaled: low frames (renders halved; and those again, coded and decoded by the demo's autoencoder) by bicubic and bilinear
scaling, which a browser does, and by the network. Between: every second low frame repeated, blended from its neighbours, and
by the network. Both: 512×288 at 32 fps of low frames at 16. PSNR in dB over all pixels of a clip, mean over clips; the
energy of luma by octave of spatial frequency, finest first, as a share of the render's (measures.octaves), geometric mean.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from everframe.engines.base import EngineOptions
from everframe.engines.ort import OrtBackend
from everframe.runtime import open_bundle

from measures import Frames, geometric, octaves
from post import CLASSES, KEPT, WIDTH, clip, halved
from post import HEIGHT as HIGH

FIRST_SEED = 31_000


class Coder:
    """The demo's encoder and decoder, warm."""

    def __init__(self) -> None:
        backend, bundle = OrtBackend(EngineOptions()), open_bundle()
        encode, decode = (backend.load(bundle, name) for name in ("encode", "decode"))
        zeros = encode.device.zeros
        self.clip, self.latent, self.out = (
            zeros(s.shape, s.dtype) for s in (encode.graph.inputs[0], encode.graph.outputs[0], decode.graph.outputs[0])
        )
        self.old, self.new = (
            {s.name: zeros(s.shape, s.dtype) for s in decode.graph.inputs if s.name != "latent"} for _ in range(2)
        )
        self.encode = encode.bind({"frames": self.clip}, {"latent": self.latent})
        after = {f"{name}_next": buffer for name, buffer in self.new.items()}
        self.decode = decode.bind({"latent": self.latent, **self.old}, {"frames": self.out, **after})

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """[12, H, W, 3] uint8, coded and decoded by a decoder that knows them."""
        self.clip.write(frames)
        self.encode()
        for buffer in self.old.values():
            buffer.clear()
        self.decode()
        for name, buffer in self.old.items():
            buffer.copy(self.new[name])
        self.decode()
        return self.out.read()


def psnr(a: Frames, b: Frames) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(np.float64) - b) ** 2))))


def scaled(frames: Frames, how: Image.Resampling) -> Frames:
    return np.stack([np.asarray(Image.fromarray(f).resize((WIDTH, HIGH), how)) for f in frames])


def network(name: str) -> Callable[..., Frames]:
    """Frame by frame (or pair by pair), as the post graph does."""
    session = ort.InferenceSession(KEPT / f"{name}.onnx")
    names = [value.name for value in session.get_inputs()]

    def run(*groups: Frames) -> Frames:
        made = []
        for row in zip(*groups, strict=True):
            images = (np.ascontiguousarray(f.transpose(2, 0, 1)[None].astype(np.float32) / 255) for f in row)
            made.append(np.asarray(session.run(None, dict(zip(names, images, strict=True)))[0])[0])
        return (np.stack(made).clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)

    return run


def woven(frames: Frames, between: Frames) -> Frames:
    """frames[0], between[0], frames[1], …, between[-1]"""
    return np.stack([one for pair in zip(frames, between, strict=False) for one in pair])


class Table:
    """Figures by what was measured and by which way, of all clips."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[tuple[float, np.ndarray]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, what: str, true: Frames, ways: dict[str, Frames]) -> None:
        for way, frames in ways.items():
            self.rows[what][way].append((psnr(frames, true), octaves(frames) / np.maximum(octaves(true), 1e-6)))

    def record(self) -> dict[str, dict[str, dict[str, float | list[float]]]]:
        def told(found: Sequence[tuple[float, np.ndarray]]) -> dict[str, float | list[float]]:
            shares = np.stack([one for _, one in found])
            return {
                "psnr": round(float(np.mean([p for p, _ in found])), 2),
                "octaves": [round(geometric(shares[:, k]), 3) for k in range(shares.shape[1])],
            }

        return {what: {way: told(found) for way, found in ways.items()} for what, ways in self.rows.items()}


def judge(seeds: int) -> dict[str, dict[str, dict[str, float | list[float]]]]:
    upscale, smooth, coder, table = network("upscale"), network("smooth"), Coder(), Table()
    bicubic, bilinear = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
    for i in range(len(CLASSES) * seeds):
        high = clip(*CLASSES[i % len(CLASSES)], FIRST_SEED + i)
        low = halved(high)
        even = low[::2]
        for what, frames in (("upscaled", even), ("upscaled, of decoded frames", coder(even))):
            ways = {
                "bicubic": scaled(frames, bicubic),
                "bilinear": scaled(frames, bilinear),
                "network": upscale(frames),
            }
            table.add(what, high[::2], ways)
        one, other = even[:-1], even[1:]
        blend = ((one.astype(np.uint16) + other + 1) // 2).astype(np.uint8)
        between = smooth(one, other)
        table.add("between", low[1:-1:2], {"repeated": one, "blended": blend, "network": between})
        ways = {
            "bicubic, repeated": scaled(woven(one, one), bicubic),
            "bicubic, blended": scaled(woven(one, blend), bicubic),
            "networks": upscale(woven(one, between)),
        }
        table.add("512x288 at 32 fps", high[: 2 * len(one)], ways)
    return table.record()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    found = judge(given.seeds)
    for what, ways in found.items():
        print(what)
        for way, row in ways.items():
            print(f"  {way:20} {row['psnr']:6} dB, of the render's energy by octave {row['octaves']}")
    if given.output:
        given.output.write_text(
            json.dumps({"seeds": given.seeds, "clips": len(CLASSES) * given.seeds, **found}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
