"""What TensorRT-RTX's builder asks for the Wan VAEs' decoders, by size and chunk: what `plan` counts with.

    python benchmarks/decoder_memory.py [--sizes 320x192,832x480] [--chunks 1,3] [--vae wan2.1]

Random FP16 weights of the public widths; the decoder alone is exported and compiled for sm_89, without a GPU. Writes its
rows in docs/measured/decoder_memory.json. The Wan 2.2 VAE at 1280×704 in chunks of 8 takes eight minutes and 11 GB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from everframe.engines.bundle import Bundle
from everframe.engines.trtbuild import BuildOptions, build_graph
from everframe.export.onnxfile import save_graph
from everframe.export.wanvae import WanDecodeGraph, WanVae, WanVaeConfig
from everframe.export.wanvae22 import WAN_22_VAE, Wan22Vae

RESULT = Path(__file__).parent.parent / "docs" / "measured" / "decoder_memory.json"
PLACE = ("vae", "width", "height", "chunk")  # what tells one row from another
VAES = {"wan2.1": (WanVae, WanVaeConfig(), 8), "wan2.2": (Wan22Vae, WAN_22_VAE, 16)}


def measured(vae: str, width: int, height: int, chunk: int) -> dict[str, Any]:
    kind, config, scale = VAES[vae]
    torch.manual_seed(0)
    graph = WanDecodeGraph(kind(config).half(), first=False)
    latent = torch.zeros(1, config.latent_channels, chunk, height // scale, width // scale)
    states = graph.zero_states(latent)
    names = [f"state_{i}" for i in range(len(states))]
    with tempfile.TemporaryDirectory() as home, torch.no_grad():
        file, began = Path(home) / "decode.onnx", time.perf_counter()
        described = save_graph(
            graph, (latent, *states), ["latent", *names], ["frames", *(f"{n}_next" for n in names)], file
        )
        exported = time.perf_counter()
        alone = SimpleNamespace(graphs={"decode": described})  # nothing else of a bundle is asked for
        bundle = SimpleNamespace(path=Path(home), graph_path=lambda _: file, manifest=alone)
        built = build_graph(cast(Bundle, bundle), "decode", BuildOptions(targets=("sm_89",)))
    return {
        "export_seconds": round(exported - began, 1),
        "build_seconds": round(time.perf_counter() - exported, 1),
        "layers": built.layers,
        **built.memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", choices=VAES, default="wan2.1")
    parser.add_argument("--sizes", default="320x192,832x480")
    parser.add_argument("--chunks", default="1,3")
    args = parser.parse_args()
    for size in args.sizes.split(","):
        for chunk in map(int, args.chunks.split(",")):
            width, height = map(int, size.split("x"))
            place = dict(zip(PLACE, (args.vae, width, height, chunk), strict=True))
            row = place | measured(args.vae, width, height, chunk)
            print(row, flush=True)
            kept = json.loads(RESULT.read_text()) if RESULT.exists() else []
            others = [r for r in kept if not place.items() <= r.items()]
            RESULT.write_text(json.dumps([*others, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
