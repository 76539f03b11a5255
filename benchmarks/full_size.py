"""The real size, once: a random Wan 1.3B checkpoint in the public layout, exported in FP16, checked, run, and quantised.

    python benchmarks/full_size.py [--work DIR]      20 GB of disk, under 16 GB of memory, about half an hour on 2 cores

Every stage is a process of its own, so that its peak memory is its own. Writes docs/measured/full_size.json. Calibration
streams at 160×96, which a CPU can do; the step graph of 832×480 is quantised with its ranges, to see what engine comes out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
CALIBRATED = "160x96"
RESULT = ROOT / "docs" / "measured" / "full_size.json"


def make_checkpoint(folder: Path) -> None:
    """Seeded weights under Self-Forcing's names (float32), a public-size TAEHV, and a text encoder that has the real
    one's width but not its depth: what it makes is not the point here."""
    from everframe.export.wan import WAN_1_3B, Wan, unfold

    torch.manual_seed(0)
    state = unfold(Wan(WAN_1_3B).state_dict(), WAN_1_3B)
    torch.save({"generator_ema": {f"model.{k}": v for k, v in state.items()}}, folder / "generator.pt")
    make_texts_and_decoder(folder)


def make_texts_and_decoder(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    from everframe.export.taehv import Taehv, TaehvConfig

    torch.save(Taehv(TaehvConfig()).state_dict(), folder / "taew2_1.pth")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "sea": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder / "text" / "tokenizer")
    shallow = UMT5Config(vocab_size=2, d_model=4096, d_kv=64, d_ff=64, num_layers=1, num_heads=2)
    UMT5EncoderModel(shallow).save_pretrained(folder / "text" / "text_encoder")
    (folder / "prompts.txt").write_text("sea\n")


def export(folder: Path, size: str, form: str = "in-place") -> None:

    from everframe.export.wanexport import WanSource, export_wan

    given, target = source(folder, WanSource, size, form), bundle_of(folder, size, form)
    export_wan(given, target, chunks=0, force=True)


def bundle_of(folder: Path, size: str, form: str = "in-place") -> Path:
    return folder / (f"{size}.everframe" if form == "in-place" else f"{size}-{form}.everframe")


def size_of(bundle: Path) -> dict[str, float]:
    return {"bundle_gb": round(sum(file.stat().st_size for file in bundle.iterdir()) / 1e9, 2)}


def source(folder: Path, kind: Any, size: str, form: str = "in-place") -> Any:
    return kind(
        generator=folder / "generator.pt",
        vae=folder / "taew2_1.pth",
        text_encoder=str(folder / "text"),
        prompts=folder / "prompts.txt",
        size=size,
        form=form,
    )


def compare_chunk(folder: Path, size: str) -> None:
    """One whole chunk in ONNX Runtime and in eager PyTorch, every output compared; prints the errors as JSON."""
    from everframe.engines.bundle import Bundle
    from everframe.export.graphs import PromptGraph, Ring, StepGraph
    from everframe.export.graphset import GraphSet
    from everframe.export.recachegraph import RecacheGraph
    from everframe.export.schedule import Schedule
    from everframe.export.sources import half
    from everframe.export.verify import compare
    from everframe.export.wanexport import WanSource, load_transformer, load_vae

    bundle = Bundle.open(bundle_of(folder, size))
    g = bundle.manifest.geometry
    model = load_transformer(source(folder, WanSource, size), half)
    decoders, _, _ = load_vae(folder / "taew2_1.pth", half)
    ring = Ring(g.chunk, g.sink, g.window, g.height // 16, g.width // 16)
    step, recache = StepGraph(model, Schedule(), ring), RecacheGraph(model, Schedule(), ring, portable=False)
    with torch.no_grad():
        print(json.dumps(compare(bundle, GraphSet({"step": step}, PromptGraph(model), decoders, None, recache), 1)))


def build(folder: Path, size: str) -> None:
    """Every graph compiled by TensorRT-RTX in FP16 for sm_89; prints its own memory figures as JSON."""
    from everframe.engines.bundle import Bundle

    bundle = Bundle.open(bundle_of(folder, size))
    print(json.dumps(build_all(bundle, list(bundle.manifest.graphs))))


def build_all(bundle: Any, names: list[str]) -> dict[str, Any]:
    from everframe.engines.trtbuild import BuildOptions, build_graph

    told = {}
    for name in names:
        began = time.perf_counter()
        built = build_graph(bundle, name, BuildOptions(targets=("sm_89",)))
        told[name] = {
            "seconds": round(time.perf_counter() - began, 1),
            "engine_gb": round(len(built.engine) / 1e9, 3),
            "layers": built.layers,
            "attentions": built.attentions,
            "quantised": built.quantised,
            **built.memory,
        }
    return told


def calibrate(folder: Path, size: str) -> None:
    """INT8 linear layers and INT8 ring, by a real stream past the wrap of the ring; prints the gate's figures as JSON."""

    from everframe.calibration.calibrate import Settings
    from everframe.calibration.calibrate import calibrate as run

    settings = Settings(method="minmax", chunks=6, ring="int8", sensitivity=False, gate_chunks=2, gate_minutes=0)
    print(json.dumps(run(bundle_of(folder, size, "portable"), bundle_of(folder, size, "int8"), settings, True)))


def build_int8(folder: Path, size: str) -> None:
    """The step graph of another size, quantised with the ranges that were measured at CALIBRATED, and compiled."""
    import onnx

    from everframe.calibration.calibrate import write_graph
    from everframe.calibration.linears import find_linears
    from everframe.calibration.quantize import Range, quantise
    from everframe.calibration.ring import int8_ring
    from everframe.engines.bundle import Bundle
    from everframe.engines.graphfile import describe_graph

    measured = json.loads((bundle_of(folder, CALIBRATED, "int8") / "calibration.json").read_text())["ranges"]
    bundle = Bundle.open(bundle_of(folder, size, "portable"))
    model = onnx.load(bundle.graph_path("step"), load_external_data=False)
    linears = find_linears(model, bundle.manifest.network.layers)
    quantise(model, linears, bundle.path, "int8", {k: Range(r["threshold"], None) for k, r in measured.items()})
    int8_ring(model)
    target = folder / "int8-step"
    target.mkdir(exist_ok=True)
    graph = describe_graph(target / "step.onnx", write_graph(model, target / "step.onnx"))
    del model
    print(
        json.dumps(build_all(Bundle(target, bundle.manifest.model_copy(update={"graphs": {"step": graph}})), ["step"]))
    )


def stage(folder: Path, *words: str) -> dict[str, Any]:
    """Run this script again for one stage; wall time, peak memory, and what it printed last."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "--work", str(folder), "--stage", *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = process.stdout.read().strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"stage {' '.join(words)} failed")
    result = {"seconds": round(time.perf_counter() - began, 1), "peak_gb": round(usage.ru_maxrss / 1e6, 2)}
    print(" ".join(words), result, *said[-1:], flush=True)
    found = {"compare": "errors", "build": "graphs", "calibrate": "quality", "int8": "graphs"}.get(words[0])
    return result | ({found: json.loads(said[-1])} if found else {})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "out" / "full_size")
    parser.add_argument("--stage", nargs="+")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.stage:
        name, *words = args.stage
        stages = {"make": make_checkpoint, "export": export, "compare": compare_chunk, "build": build}
        (stages | {"calibrate": calibrate, "int8": build_int8})[name](args.work, *words)
        return
    result: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}  # other stages' figures stay
    result |= {
        "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "torch": torch.__version__,
    }

    def keep(name: str, figures: dict[str, Any]) -> None:  # at once: a run takes long and may be cut off
        result[name] = figures
        RESULT.write_text(json.dumps(result, indent=1) + "\n")

    if not (args.work / "prompts.txt").exists():
        keep("make", stage(args.work, "make"))
    for size in ("320x192", "832x480"):
        keep(f"export {size}", stage(args.work, "export", size) | size_of(bundle_of(args.work, size)))
        if importlib.util.find_spec("tensorrt_rtx"):
            keep(f"build {size}", stage(args.work, "build", size))
    for size in (CALIBRATED, "832x480"):
        exported = stage(args.work, "export", size, "portable")
        keep(f"export {size} portable", exported | size_of(bundle_of(args.work, size, "portable")))
    calibrated = stage(args.work, "calibrate", CALIBRATED)
    keep(f"calibrate {CALIBRATED}", calibrated | size_of(bundle_of(args.work, CALIBRATED, "int8")))
    if importlib.util.find_spec("tensorrt_rtx"):
        keep("build 832x480 int8", stage(args.work, "int8", "832x480"))
    keep("compare 320x192", stage(args.work, "compare", "320x192"))


if __name__ == "__main__":
    main()
