"""Planned memory against what TensorRT-RTX's builder said when full-size engines were compiled (docs/measured)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everframe.runtime.plan.decoders import decode_cost
from everframe.runtime.plan.operations import memory, step_weights
from everframe.runtime.plan.request import of_model

MEASURED = Path(__file__).parents[3] / "docs" / "measured"


def test_engines_take_what_the_builder_says() -> None:
    """TensorRT-RTX's own figures for engines of the full size; scratch memory is that of whichever engine wants more."""
    small, large = (json.loads((MEASURED / f"full_size{name}.json").read_text()) for name in ("", "_5b"))
    eight = {"int8": "build 832x480 int8", "fp16": "build 832x480"}
    runs = [("wan2.1-1.3b", "832x480", kind, small[name]) for kind, name in eight.items()]
    runs += [("wan2.1-1.3b", "320x192", "fp16", small["build 320x192"])]
    runs += [
        ("wan2.2-5b", size, "fp16", large[f"build {size}, 30 layers, taew2_2.pth"]) for size in ("640x352", "1280x704")
    ]
    runs += [("wan2.2-5b", "640x352", "int8", large["build 640x352, 30 layers, INT8"])]
    for model, size, precision, run in runs:
        width, height = map(int, size.split("x"))
        request = of_model(model, {"width": width, "height": height}, 4, precision, False, "taehv")
        graphs, what = run["graphs"], (model, size, precision)
        scratch = max(graphs[name]["activation_bytes"] for name in ("step", "prompt") if name in graphs)
        assert step_weights(request) == pytest.approx(graphs["step"]["weights_bytes"], rel=0.02), what
        assert memory(request).activations == pytest.approx(scratch, rel=0.13), what
        if "prompt" in graphs:
            held = memory(request).weights - step_weights(request)
            assert held == pytest.approx(graphs["prompt"]["weights_bytes"], rel=0.02)
            live = 2 * decode_cost("taehv", request.geometry).live
            assert 0.99 < live / graphs["decode"]["activation_bytes"] < 1.4, what


def test_decoders_take_what_the_builder_says() -> None:
    """The Wan VAEs at sizes and chunks that they were compiled at: activations, and the weights of one engine of two."""
    for row in json.loads((MEASURED / "decoder_memory.json").read_text()):
        model = {"wan2.1": "wan2.1-1.3b", "wan2.2": "wan2.2-5b"}[row["vae"]]
        at = {k: row[k] for k in ("width", "height", "chunk")} | {"window": 4 * row["chunk"], "sink": row["chunk"]}
        cost = decode_cost("wan", of_model(model, at, 4, "fp16", False, "wan").geometry)
        assert 2 * cost.live == pytest.approx(row["activation_bytes"], rel=0.01), row
        assert cost.weights == pytest.approx(row["weights_bytes"], rel=0.02), row
