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


def attention_graph() -> ModelProto:
    """Rotated queries over a ring that is written in place, and a convolution: whatever else is rewritten."""
    value, shape = helper.make_tensor_value_info, [1, 2, 4, 8]
    heads, flat = np.array([1, 4, 16], np.int64), np.ones((2, 2, 3, 3), np.float32)
    nodes = [
        helper.make_node("RotaryEmbedding", ["q", "cos", "sin"], ["turned"], name="rope"),
        helper.make_node("TensorScatter", ["k_0", "k", "slot"], ["k_0_next"], name="keys", axis=2),
        helper.make_node("TensorScatter", ["v_0", "v", "slot"], ["v_0_next"], name="values", axis=2),
        helper.make_node(
            "Attention",
            ["turned", "k_0_next", "v_0_next", "", "", "", "kv_len"],
            ["seen"],
            name="attention",
            scale=1.0,
        ),
        helper.make_node("Conv", ["seen", "filter"], ["picture"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["picture", "shape"], ["x0"], name="flat"),
    ]
    floats = {"q": shape, "cos": [1, 4, 4], "sin": [1, 4, 4], "k": shape, "v": shape}
    rings = {name: [1, 2, 12, 8] for name in ("k_0", "v_0")}
    graph = helper.make_graph(
        nodes,
        "step",
        [
            *(value(name, TensorProto.FLOAT, size) for name, size in {**floats, **rings}.items()),
            *(value(name, TensorProto.INT64, [1]) for name in ("slot", "kv_len")),
        ],
        [
            value("x0", TensorProto.FLOAT, [1, 4, 16]),
            *(value(f"{n}_next", TensorProto.FLOAT, size) for n, size in rings.items()),
        ],
        [numpy_helper.from_array(heads, "shape"), numpy_helper.from_array(flat, "filter")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


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
    LOWERING up, and write down what these graphs become then."""
    quantised = ring_graph()
    int8_ring(quantised)
    found = []
    for model in (quantised, attention_graph()):
        lower(model, "fp16")
        nodes = [[node.op_type, list(node.input), list(node.output)] for node in model.graph.node]
        kinds = [[v.name, v.type.tensor_type.elem_type] for v in (*model.graph.input, *model.graph.output)]
        found.append(hashlib.sha256(json.dumps([nodes, kinds]).encode()).hexdigest()[:12])
    assert {2: ["2030d8481ded", "b7d369037cc1"]}[LOWERING] == found
