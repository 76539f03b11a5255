"""What the acceptance of test_tensorrt.py would say of wrong engines: each fault is far above its bound, half precision far
below, on the shipped demo and by the very engines and loop that a card would run (a stand-in in its place)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import CARD, Card, error_of  # type: ignore[attr-defined]
from onnx import helper, numpy_helper

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.runtime import Stream, open_bundle

CLOSE = 0.01  # as beside a card

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CARD, reason="about the bounds, not about a card")]


def constant(model: onnx.ModelProto, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    return name


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def tokens(model: onnx.ModelProto, name: str) -> int:
    return next(v for v in model.graph.input if v.name == name).type.tensor_type.shape.dim[2].dim_value


def lengths_ignored(model: onnx.ModelProto) -> None:
    rename(model, "kv_len", constant(model, "all", [tokens(model, "k_0")]))


def lengths_short(model: onnx.ModelProto) -> None:
    """By a chunk, but never none."""
    chunk = constant(model, "a_chunk", [tokens(model, "k_0") // 4])
    rename(model, "kv_len", "short")
    added = [helper.make_node("Sub", ["kv_len", chunk], ["less"]), helper.make_node("Max", ["less", chunk], ["short"])]
    nodes = [*added, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def slot_stuck(model: onnx.ModelProto) -> None:
    rename(model, "slot", constant(model, "stuck", [0]))


def no_rope(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "RotaryEmbedding":
            node.op_type, node.domain = "Identity", ""
            del node.input[1:], node.attribute[:]


def mask_ignored(model: onnx.ModelProto) -> None:
    """The portable form's word for lengths."""
    fixed(model, "mask", 0)


def rope_unturned(model: onnx.ModelProto) -> None:
    """Where the rotation is written out."""
    fixed(model, "rope_cos", 1)
    fixed(model, "rope_sin", 0)


def fixed(model: onnx.ModelProto, name: str, value: float) -> None:
    shape = [d.dim_value for d in next(v for v in model.graph.input if v.name == name).type.tensor_type.shape.dim]
    model.graph.initializer.append(numpy_helper.from_array(np.full(shape, value, np.float32), f"{name}_fixed"))
    rename(model, name, f"{name}_fixed")


Fault = Callable[[onnx.ModelProto], None]
FAULTS: dict[str, list[Fault]] = {
    "in-place": [lengths_ignored, lengths_short, slot_stuck, no_rope],
    "portable": [mask_ignored, rope_unturned],
}


@pytest.fixture
def demo(card: Card, tmp_path: Path) -> Bundle:
    if card.portable_only or card.name != "rtx-1.7":
        pytest.skip("the demo is in the in-place form; one backend is enough")
    return card.built(open_bundle().path, tmp_path)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in the form that TensorRT 10 runs."""
    pytest.importorskip("torch")
    from everframe.export.checkpointexport import Overrides, export_checkpoint

    path = tmp_path_factory.mktemp("demo") / "portable.everframe"
    export_checkpoint(
        Path(__file__).parents[2] / "training" / "demo", path, Overrides(form="portable"), chunks=8, force=False
    )
    return path


def errors(bundle: Bundle, card: Card, chunks: int = 6) -> list[float]:
    with Stream(bundle, seed=1) as cpu, Stream(bundle, seed=1, backend=card.open(), verify=False) as gpu:
        return [error_of(cpu.next_chunk().latent, gpu.next_chunk().latent) for _ in range(chunks)]


def test_half_precision_is_far_below(demo: Bundle, card: Card) -> None:
    """Computed in FP16 by the lowered graphs themselves, not only rounded where something is kept."""
    card.stand.half = True
    found = errors(demo, card)
    assert 1e-5 < max(found) < CLOSE / 3


def refused(bundle: Bundle, card: Card, fault: Fault) -> None:
    card.stand.change = lambda name, model: fault(model) if name == "step" else None
    assert max(errors(bundle, card)) > 5 * CLOSE
    with pytest.raises(UserError, match="do not compute what the bundle means"):
        Stream(bundle, backend=card.open())


@pytest.mark.parametrize("fault", FAULTS["in-place"])
def test_each_fault_is_far_above(demo: Bundle, card: Card, fault: Fault) -> None:
    refused(demo, card, fault)


def test_the_portable_form_s_too(portable: Path, card: Card, tmp_path: Path) -> None:
    if card.name != "classic-10.7":
        pytest.skip("one backend is enough")
    bundle = card.built(portable, tmp_path)
    card.stand.half = True
    assert 1e-5 < max(errors(bundle, card)) < CLOSE / 3
    card.stand.half = False
    for fault in FAULTS["portable"]:
        refused(bundle, card, fault)
