"""What TensorRT is given, on graphs of a few nodes: no TensorRT, no export."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper

from everframe.calibration.ring import int8_ring
from everframe.engines.bundle import FileRef, Graph, TensorSpec
from everframe.engines.lower import LOWERING, lower, stored_low
from everframe.engines.tensorrt import stored_types


def ring_graph() -> ModelProto:
    """x·W + the ring's last key, and that as the new one: what a step graph does, as small as can be."""
    value = helper.make_tensor_value_info
    shape = [1, 2, 3, 4]
    weight = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
            helper.make_node("Add", ["y", "k_0"], ["k_0_new"], name="sum"),
        ],
        "step",
        [value("x", TensorProto.FLOAT, shape), value("k_0", TensorProto.FLOAT, shape)],
        [value("k_0_new", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: ModelProto, names: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    made = ort.InferenceSession(model.SerializeToString()).run(None, feed)
    return dict(zip(names, map(np.asarray, made), strict=True))


def test_scales_of_an_int8_ring_stay_float32() -> None:
    """As the documents say, and as the runtime that is handed the lowered types allocates them; in half precision a scale
    below 6e-8 would be nothing, and its key infinite."""
    model = ring_graph()
    int8_ring(model)
    rng = np.random.default_rng(0)
    feed = {
        "x": rng.standard_normal((1, 2, 3, 4)).astype(np.float32),
        "k_0": rng.integers(-127, 128, (1, 2, 3, 4)).astype(np.int8),
        "k_0_scale": np.full((1, 2, 3, 1), 3e-8, np.float32),
    }
    names = [value.name for value in model.graph.output]
    before = run(model, names, feed)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    lower(model, "fp16")
    onnx.checker.check_model(model, full_check=True)
    lowered = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert lowered == kinds
    assert lowered["k_0_scale"] == lowered["k_0_scale_new"] == TensorProto.FLOAT
    after = run(model, names, feed)
    np.testing.assert_allclose(after["k_0_scale_new"], before["k_0_scale_new"], rtol=2e-3)
    specs = [TensorSpec(name=name, shape=[1, 2, 3, 1], dtype="float32") for name in ("k_0_scale", "sink_k_0", "k_0")]
    held = stored_types(Graph(model=FileRef(file="a", bytes=1, sha256="a" * 64), inputs=specs, outputs=[]), "float16")
    assert [spec.dtype for spec in held.inputs] == ["float32", "float16", "float16"]


def test_what_is_stored_low() -> None:
    low = ["k_0", "v_11_next", "k_0_new", "sink_k_3", "prompt_v_2", "state_0", "state_0_next"]
    other = ["k_0_scale", "v_3_scale_new", "k_1_scale_next", "kv_len", "x0", "latent", "rope_cos", "frames", "sink_cos"]
    assert [name for name in (*low, *other) if stored_low(name)] == low


def test_a_graph_that_comes_out_otherwise_has_another_number() -> None:
    """Engines that an earlier version compiled are told apart by it. Whoever changes the lowering sees this fail: count
    LOWERING up, and write down what this graph becomes then."""
    model = ring_graph()
    int8_ring(model)
    lower(model, "fp16")
    nodes = [[node.op_type, list(node.input), list(node.output)] for node in model.graph.node]
    kinds = [[v.name, v.type.tensor_type.elem_type] for v in (*model.graph.input, *model.graph.output)]
    digest = hashlib.sha256(json.dumps([nodes, kinds]).encode()).hexdigest()[:12]
    assert {2: "2030d8481ded"}[LOWERING] == digest
