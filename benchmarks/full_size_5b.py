"""The real size of Wan2.2's 5B, once: random weights exported in FP16 at two sizes, every graph checked and compiled.

    python benchmarks/full_size_5b.py [--work DIR] [--limit GB]      18 GB of disk

A checkpoint of random fp8 weights (30 layers), a random Wan 2.2 VAE and taew2_2. Every stage is a process of its own; its
anonymous memory (what no file backs) and its whole resident memory are read from /proc twice a second. TensorRT-RTX wants
twice a graph's weights while it compiles: where the FP16 step graph of all layers has no room in --limit, it is compiled
with fewer layers, and a layer's own share is the difference of two; in INT8 it is compiled whole. Writes
docs/measured/full_size_5b.json, and goes on where a run before was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from full_size import build_all, make_texts_and_decoder
from large_export import make_generator, peaks

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "docs" / "measured" / "full_size_5b.json"
SIZES = ("640x352", "1280x704")
LAYERS = 30
FEW = (4, 8)  # layers of the step graphs that are compiled


def make(folder: Path, layers: int) -> None:
    from everframe.export.taehv import Taehv, TaehvConfig
    from everframe.export.wan import WAN_5B

    make_generator(folder / str(layers), replace(WAN_5B, layers=layers))
    torch.manual_seed(0)
    torch.save(Taehv(TaehvConfig(48, patch=2)).state_dict(), folder / "taew2_2.pth")


def make_vae(folder: Path) -> None:
    from everframe.export.wanvae22 import WAN_22_VAE, Wan22Vae

    torch.manual_seed(0)
    torch.save(Wan22Vae(WAN_22_VAE).half().state_dict(), folder / "Wan2.2_VAE.pth")


def export(folder: Path, size: str, layers: int, vae: str) -> None:
    from everframe.export.wanexport import WanSource, export_wan

    source = WanSource(
        generator=folder / str(layers) / "generator",
        vae=folder / vae,
        text_encoder=str(folder / "text"),
        prompts=folder / "prompts.txt",
        size=size,
        encoder=True,
    )
    export_wan(source, folder / "b.everframe", chunks=0, force=True)


def build(folder: Path, names: list[str]) -> None:
    from everframe.engines.bundle import Bundle

    print(json.dumps(build_all(Bundle.open(folder / "b.everframe"), names)))


def quantise(folder: Path) -> None:
    """The step graph in INT8, all layers: what is compiled depends on no range, so every range is 1."""
    import onnx

    from everframe.calibration.calibrate import Settings, quantised_graphs
    from everframe.calibration.linears import find_linears
    from everframe.calibration.quantize import Range
    from everframe.engines.bundle import Bundle, write_manifest

    bundle = Bundle.open(folder / "b.everframe")
    (folder / "int8").mkdir(exist_ok=True)
    models = {"step": onnx.load(bundle.graph_path("step"), load_external_data=False)}
    linears = find_linears(models["step"], bundle.manifest.network.layers)
    ranges = {linear.key: Range(1.0, None) for linear in linears}
    graphs = quantised_graphs(bundle, folder / "int8", models, linears, [], ranges, Settings(precision="int8"))
    write_manifest(folder / "int8", bundle.manifest.model_copy(update={"graphs": graphs}))


def build_int8(folder: Path) -> None:
    from everframe.engines.bundle import MANIFEST, Bundle, read_manifest

    manifest = read_manifest(folder / "int8" / MANIFEST)
    print(json.dumps(build_all(Bundle(folder / "int8", manifest), ["step"])))


def stage(folder: Path, *words: str) -> dict[str, Any]:
    """Run this script again for one stage: seconds, GB at its peak, and what it told."""
    command = [sys.executable, __file__, "--work", str(folder), "--stage", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = dict(peaks(process))
    assert process.stdout is not None
    said = process.stdout.read().strip().splitlines()
    found |= {"failed": process.returncode} if process.returncode else {}
    print(*words, found, *said[-1:], flush=True)
    told = words[0].startswith("build") and not process.returncode
    return found | ({"graphs": json.loads(said[-1])} if told else {})


def run_stage(folder: Path, words: list[str]) -> None:
    name, *rest = words
    if name == "make":
        make(folder, int(rest[0]))
    elif name == "vae":
        make_vae(folder)
    elif name == "export":
        export(folder, rest[0], int(rest[1]), rest[2])
    elif name == "quantise":
        quantise(folder)
    elif name == "build-int8":
        build_int8(folder)
    else:
        build(folder, rest)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "full_size_5b")
    parser.add_argument("--limit", type=float, default=12.0, help="GB of memory that the step graph may be compiled in")
    parser.add_argument("--stage", nargs="+")
    args = parser.parse_args()
    work = args.work
    if args.stage:
        run_stage(work, args.stage)
        return
    work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result |= {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "torch": torch.__version__}

    def keep(name: str, figures: dict[str, Any]) -> None:  # at once: a run takes long and may be cut off
        result[name] = figures
        RESULT.write_text(json.dumps(result, indent=1) + "\n")

    def once(size: str, layers: int, vae: str, names: list[str]) -> None:
        """Export and compile, unless the record has both."""
        exported, built = f"export {size}, {layers} layers, {vae}", f"build {size}, {layers} layers, {vae}"
        if exported in result and built in result:
            return
        if not (work / "prompts.txt").exists():
            make_texts_and_decoder(work)
            stage(work, "vae")
        if not (work / str(layers)).exists():
            keep(f"make {layers} layers", stage(work, "make", str(layers)))
        found = stage(work, "export", size, str(layers), vae)
        whole = sum(file.stat().st_size for file in (work / "b.everframe").iterdir())
        keep(exported, found | {"bundle_gb": round(whole / 1e9, 2)})
        keep(built, stage(work, "build", *names))

    others = ["prompt", "decode", "decode_first", "encode"]
    once(SIZES[0], FEW[0], "Wan2.2_VAE.pth", others[1:])  # at the larger size: by hand, graph by graph
    for size in SIZES:
        once(size, FEW[0], "taew2_2.pth", ["step"])
        once(size, FEW[1], "taew2_2.pth", ["step"])
        once(size, LAYERS, "taew2_2.pth", [*(["step"] if args.limit > 20 else []), *others])
        if f"build {size}, {LAYERS} layers, INT8" not in result and (work / "b.everframe").exists():
            keep(f"quantise {size}, {LAYERS} layers", stage(work, "quantise"))
            keep(f"build {size}, {LAYERS} layers, INT8", stage(work, "build-int8"))
            shutil.rmtree(work / "int8")
    shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
