"""Memory of exporting and quantising 14B shapes (dim 5120, ffn 13824, 40 heads), by the number of layers.

    python benchmarks/large_export.py --layers 2,8,20 [--work DIR]      1.1 GB of disk a layer, removed after each

A checkpoint of random fp8 weights is exported to FP16 at 832×480 without comparison, and its graphs quantised to INT8
weights. Every stage is a process of its own; its anonymous memory (what no file backs) and its whole resident memory are
read from /proc twice a second. Writes docs/measured/large_export.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from full_size import make_texts_and_decoder

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "docs" / "measured" / "large_export.json"
POOL = 1 << 26  # random numbers; tensors are pieces of it


def make(folder: Path, layers: int) -> None:
    from everframe.export.wan import WanConfig

    make_generator(folder, WanConfig(5120, 13824, 40, layers, latent_channels=16, text_dim=4096, text_len=512))


def make_generator(folder: Path, config: Any) -> None:
    """Public names, plain fp8 for matrices, a safetensors file for every block."""
    from safetensors.torch import save_file

    from everframe.export.wan import Wan

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Wan(config).state_dict().items()}
    pool = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.float8_e4m3fn)
    (folder / "generator").mkdir(parents=True, exist_ok=True)
    places = {}
    for part, names in enumerate(by_block(list(shapes))):
        file, state = f"diffusion_pytorch_model-{part:05d}.safetensors", {}
        for i, name in enumerate(names):
            count = shapes[name].numel()
            piece = pool[(7919 * i + 104729 * part) % 65536 :][: min(count, POOL - 65536)]
            whole = piece.repeat(-(-count // piece.numel()))[:count].reshape(shapes[name])
            state[name] = whole.clone() if len(shapes[name]) == 2 else whole.to(torch.bfloat16)
        save_file(state, folder / "generator" / file)
        places |= dict.fromkeys(names, file)
    index = folder / "generator" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))


def by_block(names: list[str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:2]) if name.startswith("blocks.") else "", []).append(name)
    return list(groups.values())


def export(folder: Path) -> None:
    from everframe.export.wanexport import WanSource, export_wan

    source = WanSource(folder / "generator", folder / "taew2_1.pth", str(folder / "text"), folder / "prompts.txt")
    export_wan(source, folder / "b.everframe", chunks=0, force=True)


def lower(folder: Path) -> None:
    """The rewriting of everframe build, which leaves weights where they are."""
    import onnx

    from everframe.engines.lower import lower as rewrite

    rewrite(onnx.load(folder / "b.everframe" / "step.onnx", load_external_data=False), "fp16")


def quantise(folder: Path) -> None:
    """The graphs as everframe calibrate --precision int8-weights writes them; its streams would need the model in memory."""
    import onnx

    from everframe.calibration.calibrate import Settings, quantised_graphs
    from everframe.calibration.linears import find_linears
    from everframe.engines.bundle import Bundle

    bundle = Bundle.open(folder / "b.everframe")
    (folder / "int8").mkdir()
    models = {"step": onnx.load(bundle.graph_path("step"), load_external_data=False)}
    linears = find_linears(models["step"], bundle.manifest.network.layers)
    quantised_graphs(bundle, folder / "int8", models, linears, [], {}, Settings(precision="int8-weights"))


def peaks(process: subprocess.Popen) -> dict[str, float]:
    """Seconds until it ends, and GB at its peak."""
    began, peak = time.perf_counter(), {"RssAnon": 0, "VmRSS": 0}
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in peak:
                peak[key] = max(peak[key], int(value.split()[0]))
        time.sleep(0.5)
    figures = {"anonymous_gb": peak["RssAnon"] / 1e6, "resident_gb": peak["VmRSS"] / 1e6}
    return {"seconds": round(time.perf_counter() - began, 1), **{k: round(v, 2) for k, v in figures.items()}}


def stage(folder: Path, name: str, layers: int) -> dict[str, float]:
    """Run this script again for one stage: seconds, and GB at its peak."""
    words = [sys.executable, __file__, "--work", str(folder), "--layers", str(layers), "--stage", name]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    found = peaks(process)
    if process.returncode:
        raise SystemExit(f"stage {name} failed")
    print(layers, "layers:", name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "large")
    parser.add_argument("--layers", default="2,8,20")
    parser.add_argument("--stage")
    args = parser.parse_args()
    stages: dict[str, Any] = {"export": export, "lower": lower, "quantise": quantise}
    if args.stage:
        make(args.work, int(args.layers)) if args.stage == "make" else stages[args.stage](args.work)
        return
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}  # other layers' figures stay
    result |= {"date": time.strftime("%Y-%m-%d"), "cores": os.cpu_count(), "torch": torch.__version__}
    for layers in map(int, args.layers.split(",")):
        args.work.mkdir(parents=True, exist_ok=True)
        make_texts_and_decoder(args.work)
        found = {name: stage(args.work, name, layers) for name in ("make", "export", "lower", "quantise")}
        sizes = {
            name: round(sum(f.stat().st_size for f in (args.work / folder).iterdir()) / 1e9, 2)
            for name, folder in (("bundle_gb", "b.everframe"), ("int8_graphs_gb", "int8"))
        }
        result[f"{layers} layers"] = found | sizes
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
