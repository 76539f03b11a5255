"""Quantising for real: ranges against NumPy, the graph against a slow quantiser, whole bundles through the gate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.torch import load_file
from typer.testing import CliRunner

from everframe.calibration.calibrate import Settings, calibrate, finish, quantised_graphs
from everframe.calibration.linears import PARTS, Linear, find_convolutions, find_linears, tensor_values, weight_of
from everframe.calibration.observe import observe
from everframe.calibration.quantize import METHODS, PRECISIONS, Range, peaks_of_weights, quantise, ranges
from everframe.calibration.sensitivity import Sensitivity, exclusions, measure, references
from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle, write_manifest
from everframe.engines.datafile import SHARED
from everframe.engines.errors import UserError
from everframe.engines.graphfile import describe_graph
from everframe.export.wan import fold
from everframe.export.wanexport import export_wan
from everframe.runtime import DEMO_BUNDLE, Stream
from everframe.runtime.cli.app import app
from everframe.runtime.measure.compare import compare

from helpers import PROMPTS, TRANSFORMER, with_prompts
from wanfiles import source

QUICK = Settings(prompts=tuple(PROMPTS[:1]), chunks=5, gate_chunks=3, gate_minutes=0.05, sensitivity=False)


@pytest.fixture(scope="module")
def step(bundle_path: Path) -> onnx.ModelProto:
    return onnx.load(Bundle.open(bundle_path).graph_path("step"))


def changed(settings: Settings, **changes) -> Settings:
    return Settings(**{**settings.__dict__, **changes})


def test_every_linear_layer_of_the_blocks_is_found(step: onnx.ModelProto, bundle_path: Path) -> None:
    linears = find_linears(step, 2)
    assert [linear.name for linear in linears] == [f"block {i} {part}" for i in range(2) for part in PARTS]
    shapes = [weight_of(step.graph, linear, bundle_path)[0].shape for linear in linears[:8]]
    d, wide = TRANSFORMER.dim, TRANSFORMER.ffn_dim
    assert shapes == [(d, d)] * 6 + [(d, wide), (wide, d)]
    assert linears[0].activation == linears[1].activation == linears[2].activation  # q, k and v read the same
    with pytest.raises(UserError, match="linear layers, expected 8 in each of 3 blocks"):
        find_linears(step, 3)


def test_every_layer_has_its_own_name(step: onnx.ModelProto, bundle_path: Path, checkpoint: Path) -> None:
    """By its weights, which are the checkpoint's of that name: q, k and v have one shape. --exclude goes by these names."""
    public = fold(load_file(checkpoint / "transformer.safetensors"), TRANSFORMER)
    for linear in find_linears(step, 2):
        _, block, part = linear.name.split()
        theirs = part.replace("self.", "self_attn.").replace("cross.", "cross_attn.")
        weight = weight_of(step.graph, linear, bundle_path)[0]
        assert np.array_equal(weight, public[f"blocks.{block}.{theirs}.weight"].float().numpy().T), linear.name


def test_peaks_are_those_of_the_tensors(bundle: Bundle, step: onnx.ModelProto, tmp_path: Path) -> None:
    """The observed magnitudes against the tensors themselves, taken out of ONNX Runtime on the same inputs."""
    import onnxruntime as ort

    linears = find_linears(step, 2)[:1]
    found = observe(bundle, linears, PROMPTS[:1], [7], 2, "minmax", tmp_path, lambda *_: None)
    name = linears[0].activation
    assert found.peaks[name].shape[1] == TRANSFORMER.dim
    model = onnx.ModelProto()
    model.CopyFrom(step)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString())
    peak = np.zeros(TRANSFORMER.dim)
    with Stream(bundle, prompt=PROMPTS[0], seed=7, overlap=False) as stream:
        loop = stream._loop
        for _ in range(2):
            before = {k: b.read() for k, b in loop.ring.items()}
            stream.next_chunk()
            place = {**loop.tables, "slot": loop.slot, "kv_len": loop.valid}
            feed = {k: b.read() for k, b in (place | loop.prompt_kv).items()} | before  # type: ignore[operator]
            feed |= {"latent": loop.noise[0].read(), "noise": loop.noise[1].read(), "step": np.array([0], np.int64)}
            peak = np.maximum(
                peak, np.abs(np.asarray(session.run([name], feed)[0])).reshape(-1, TRANSFORMER.dim).max(0)
            )
    assert found.peaks[name][0] == pytest.approx(peak, rel=1e-5)  # pass 0: pure noise goes in


@pytest.mark.parametrize(
    "method", [m if m == "smoothquant" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_ranges_and_graph(method: str, bundle: Bundle, step: onnx.ModelProto, tmp_path: Path) -> None:
    """One layer by hand: the quantised graph's stored numbers are what the definitions say."""
    linears = find_linears(step, 2)
    found = observe(bundle, linears, PROMPTS[:1], [0], 3, method, tmp_path, lambda *_: None)
    weights = peaks_of_weights(step, linears, bundle.path)
    spans = ranges(found, weights, method, 0.5)
    one = linears[6]
    peak = found.peaks[one.activation].max(0)
    weight = weight_of(step.graph, one, bundle.path)[0]
    span = spans[one.activation]
    if method == "smoothquant":
        assert span.smooth is not None
        ratio = span.smooth / np.sqrt(peak / np.abs(weight).max(1))
        assert ratio == pytest.approx(ratio[0] * np.ones_like(ratio), rel=1e-4)  # the formula, up to one common factor
        assert span.threshold == pytest.approx((peak / span.smooth).max(), rel=1e-5)
    elif method == "minmax":
        assert span.smooth is None
        assert span.threshold == pytest.approx(float(peak.max()))
    else:
        assert 0 < span.threshold <= peak.max() * 1.001
    model = onnx.ModelProto()
    model.CopyFrom(step)
    quantise(model, linears, bundle.path, "int8", spans)
    onnx.checker.check_model(model)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert not set(constants) & {linear.path[0] for linear in linears}  # the float weights are gone
    stored, scale = constants[f"{one.node}.stored"], constants[f"{one.node}.scale"]
    assert stored.dtype == np.int8
    assert np.abs(stored).max() == 127
    smooth = np.ones(len(weight)) if span.smooth is None else span.smooth
    assert (stored * scale) == pytest.approx(weight * smooth[:, None], abs=float(scale.max()) * 0.501)
    assert constants[f"{one.activation}.scale"] == pytest.approx(span.threshold / 127, rel=1e-6)


@pytest.mark.parametrize("precision", ["int8", "fp8", "int8-weights", "int4-weights"])
def test_quantised_bundles(precision: str, bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.everframe"
    quality = calibrate(bundle_path, out, changed(QUICK, precision=precision), False)
    quantised = Bundle.open(out)
    assert quantised.manifest.precision == precision
    assert quantised.manifest.quality == quality
    assert quality["psnr"] < 90  # something was quantised
    assert quality["psnr"] > {"int8": 30, "fp8": 25, "int8-weights": 35, "int4-weights": 18}[precision]
    record = json.loads((out / "calibration.json").read_text())
    assert record["quality"]["summary"] == quality
    assert not set(record["held_out"]) & set(record["prompts"])
    operators = {node.op_type for node in onnx.load(quantised.graph_path("step")).graph.node}
    assert ("QuantizeLinear" in operators) == (not precision.endswith("weights"))
    again = compare(Bundle.open(bundle_path), quantised, record["held_out"], [1000], 3, 0)
    assert again.lockstep[0].psnr == record["quality"]["lockstep"][0]["psnr"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("precision", "opset"), [("int8", 18), ("fp8", 19), ("int8-weights", 18), ("int4-weights", 21)]
)
def test_every_precision_in_the_portable_form(precision: str, opset: int, portable_path: Path, tmp_path: Path) -> None:
    """Its opset is 18, which knows neither fp8 nor blocks of int4: raised where it has to be, and no further."""
    import onnxruntime as ort

    source, settings = Bundle.open(portable_path), changed(QUICK, precision=precision)
    step = onnx.load(source.graph_path("step"))
    linears = find_linears(step, 2)
    spans = {linear.key: Range(8.0, None) for linear in linears}
    made = quantised_graphs(source, tmp_path, {"step": step}, linears, [], spans, settings)  # onnx.checker's, too
    for name in ("step", "recache"):
        model = onnx.load(tmp_path / f"{name}.onnx")
        assert [o.version for o in model.opset_import if o.domain == ""] == [opset]
        assert model.ir_version >= {21: 10, 19: 9}.get(opset, 0)  # the first that have these types
    rng = np.random.default_rng(0)
    feed = {
        spec.name: np.zeros(spec.shape, spec.dtype)
        if spec.dtype == "int64"
        else rng.standard_normal(spec.shape).astype(spec.dtype)
        for spec in made["step"].inputs
    }
    files = source.graph_path("step"), tmp_path / "step.onnx"
    plain, quantised = (np.asarray(ort.InferenceSession(file).run(["x0"], feed)[0]) for file in files)
    assert 0 < np.abs(plain - quantised).mean() < 0.15 * np.abs(plain).mean()


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_levels_are_counted_in_the_scale_that_is_stored(precision: str, kind: type, tmp_path: Path) -> None:
    """A layer by itself, one channel of it zeros: what the graph multiplies out is as near to W as its levels allow."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((256, 40)).astype(kind)
    weight[:, 7] = 0
    value, number = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")],
        "step",
        [value("x", number, [4, 256])],
        [value("y", number, [4, 40])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    smooth = rng.uniform(0.5, 2, 256).astype(np.float32)
    spans = {"x": Range(1e-6, smooth)}
    quantise(model, [Linear("block 0 ffn.0", "layer", "x", ("w",))], tmp_path, precision, spans)
    onnx.checker.check_model(model, full_check=True)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    if not precision.endswith("weights"):
        assert held["x.scale"] > 0
    smoothing = held.get("x.smoothing", np.ones(256)).astype(np.float64)[:, None]
    scale = (
        held["layer.scale"].astype(np.float64).reshape(-1, 40).repeat(256 // max(1, held["layer.scale"].size // 40), 0)
    )
    assert (scale > 0).all()
    assert held["layer.scale"].dtype == kind
    levels = held["layer.stored"].astype(np.float64)
    exact = weight.astype(np.float64) / smoothing / scale
    if precision == "fp8":  # half of the last of three mantissa bits; below 2^-6, half of the smallest step
        assert (np.abs(levels - exact) <= np.maximum(np.abs(exact) / 16, 2.0**-10) * (1 + 1e-5)).all()
    else:
        assert np.abs(levels - exact).max() <= 0.5 + 1e-4
    assert (levels[:, 7] == 0).all()


@pytest.mark.slow
def test_bad_ranges_fail_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped demo with data that are nothing like a stream's: the manifest says so, and the exit code is 1."""
    from everframe.calibration import calibrate as calibrating

    def tiny(*arguments):
        return {name: Range(0.02 * r.threshold, r.smooth) for name, r in ranges(*arguments).items()}

    monkeypatch.setattr(calibrating, "ranges", tiny)
    out = tmp_path / "bad.everframe"
    words = ["calibrate", str(DEMO_BUNDLE), "-o", str(out), "--prompts", "blue gas flames dancing in the dark"]
    short = ["--chunks", "2", "--no-sensitivity", "--gate-chunks", "2", "--gate-minutes", "0"]
    result = CliRunner().invoke(app, [*words, *short], catch_exceptions=False)
    assert result.exit_code == 1
    quality = Bundle.open(out).manifest.quality
    assert quality is not None
    assert not quality["passed"]


def test_int8_ring(portable_path: Path, tmp_path: Path) -> None:
    """A quarter of the float ring, and close to it over 200 chunks."""
    out = tmp_path / "ring.everframe"
    calibrate(portable_path, out, changed(QUICK, precision="int8-weights", ring="int8"), False)
    floats, small = Bundle.open(portable_path), Bundle.open(out)
    with Stream(floats, seed=3) as a, Stream(small, seed=3) as b:
        bytes_of = [sum(x.read().nbytes for x in s._loop.ring.values()) for s in (a, b)]
        assert bytes_of[1] < 0.3 * bytes_of[0]  # a byte for four, and a scale for every token
        for _ in range(6):
            a.next_chunk()
            b.next_chunk()
        keys = {n: (a._loop.ring[n].read(), b._loop.ring[n].read()) for n in ("k_0", "v_0")}
        for name, (true, stored) in keys.items():
            assert stored.dtype == np.int8
            back = stored * b._loop.ring[f"{name}_scale"].read()
            assert back[:, :, :24] == pytest.approx(true[:, :, :24], abs=float(0.35 * np.abs(true).max()))
    found = compare(floats, small, PROMPTS[1:2], [1], 200, 0)
    assert len(found.lockstep[0].psnr) == 200
    assert min(found.lockstep[0].psnr) > 25
    early, late = np.mean(found.lockstep[0].psnr[10:60]), np.mean(found.lockstep[0].psnr[-50:])
    assert abs(early - late) < 2  # no error builds up


def test_int8_ring_of_sinks_that_follow(following_paths: dict[str, Path], tmp_path: Path) -> None:
    """Their keys stand in float beside it."""
    out = tmp_path / "ring.everframe"
    source = Bundle.open(following_paths["portable"])
    calibrate(source.path, out, changed(QUICK, precision="int8-weights", ring="int8"), False)
    with Stream(Bundle.open(out), seed=3) as small, Stream(source, seed=3) as floats:
        a = b = np.zeros(1)
        for _ in range(8):
            a, b = small.next_chunk().latent, floats.next_chunk().latent
        assert small.rope_mode == "relative"
        kept = small._loop.ring["sink_k_0"].read()
        true = floats._loop.ring["k_0"].read()[:, :, : small.layout.sink_tokens]
    assert kept.dtype == np.float32
    assert np.abs(kept - true).max() < 0.1 * np.abs(true).max()  # the linears before it are INT8
    assert np.abs(a - b).max() < 0.5 * np.abs(b).max()


def test_ring_quantisation_is_exact_to_half_a_step(portable_path: Path) -> None:
    """The graph's own rounding against NumPy."""
    import onnxruntime as ort

    from everframe.calibration.ring import int8_ring

    bundle = Bundle.open(portable_path)
    plain = onnx.load(bundle.graph_path("step"))
    small = onnx.load(bundle.graph_path("step"))
    int8_ring(small)
    rng = np.random.default_rng(0)
    feed = {}
    for spec in bundle.manifest.graphs["step"].inputs:
        kind = np.dtype(spec.dtype)
        feed[spec.name] = (
            np.zeros(spec.shape, kind) if kind.kind == "i" else rng.standard_normal(spec.shape).astype(kind) * 0.5
        )
    rings = [n for n in feed if n[:2] in ("k_", "v_")]
    stored = {n: np.maximum(np.abs(feed[n]).max(3, keepdims=True), 1e-8) / 127 for n in rings}
    levels = {n: np.rint(feed[n] / stored[n]).astype(np.int8) for n in rings}
    read = {n: (levels[n] * stored[n]).astype(np.float32) for n in rings}
    a, b = (ort.InferenceSession(m.SerializeToString()) for m in (plain, small))
    names = [o.name for o in b.get_outputs()]
    true = dict(zip([o.name for o in a.get_outputs()], map(np.asarray, a.run(None, feed | read)), strict=True))
    scales = {f"{n}_scale": s for n, s in stored.items()}
    got = dict(zip(names, map(np.asarray, b.run(None, feed | levels | scales)), strict=True))
    assert got["x0"] == pytest.approx(true["x0"], abs=2e-4)
    for n in rings:
        scale = np.abs(true[f"{n}_new"]).max(3, keepdims=True) / 127
        assert got[f"{n}_scale_new"] == pytest.approx(scale, rel=1e-3)
        assert (np.abs(got[f"{n}_new"] * got[f"{n}_scale_new"] - true[f"{n}_new"]) <= 0.51 * scale + 1e-4).all()


def test_sensitivity_decides_what_stays_in_float(bundle_path: Path, tmp_path: Path) -> None:
    made = [Sensitivity("a", 0.1, 5.0), Sensitivity("b", 0.1, 50.0), Sensitivity("c", 0.1, 4.0)]
    assert exclusions(made, goal=38) == ["b"]  # 38 dB are 10.3 grey levels squared: 9 are left
    assert exclusions(made, goal=10) == []
    out = tmp_path / "s.everframe"
    calibrate(bundle_path, out, changed(QUICK, sensitivity=True, exclude=("ffn.2",)), False)
    record = json.loads((out / "calibration.json").read_text())
    assert len(record["sensitivity"]) == 2 * len(PARTS)
    assert {"block 0 ffn.2", "block 1 ffn.2"} <= set(record["excluded"])
    constants = {t.name for t in onnx.load(Bundle.open(out).graph_path("step")).graph.initializer}
    stored = [name for name in constants if name.endswith(".stored")]
    assert len(stored) == 2 * len(PARTS) - len(record["excluded"])


def with_weights_beside(bundle: Bundle, folder: Path, scale: float = 1.0) -> Bundle:
    """The same bundle with the step graph's weights in a file of their own, as large ones have them, all times `scale`."""
    shutil.copytree(bundle.path, folder)
    model = onnx.load(folder / "step.onnx")
    for tensor in model.graph.initializer:
        if (values := numpy_helper.to_array(tensor)).dtype.kind == "f" and values.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array((scale * values).astype(values.dtype), tensor.name))
    onnx.save(model, folder / "step.onnx", save_as_external_data=True, location=SHARED, size_threshold=1024)
    graphs = bundle.manifest.graphs | {"step": describe_graph(folder / "step.onnx", [SHARED])}
    write_manifest(folder, bundle.manifest.model_copy(update={"graphs": graphs}))
    return Bundle.open(folder)


def test_a_probe_brings_no_float_weights_along(bundle: Bundle, tmp_path: Path) -> None:
    """It shares the step graph's large weights, which nothing of the quantised bundle reads any more."""
    beside = with_weights_beside(bundle, tmp_path / "beside.everframe")
    shutil.copy(beside.path / "step.onnx", beside.path / "probe.onnx")
    graphs = {
        name: graph for name, graph in beside.manifest.graphs.items() if name != "recache"
    }  # it has weights of its own
    graphs |= {"probe": describe_graph(beside.path / "probe.onnx", [SHARED])}
    write_manifest(beside.path, beside.manifest.model_copy(update={"graphs": graphs, "recache": "chunks"}))
    source, settings = Bundle.open(beside.path), changed(QUICK, precision="int8-weights")
    step = onnx.load(source.graph_path("step"), load_external_data=False)
    linears = find_linears(step, 2)
    (part := tmp_path / "part").mkdir()
    made = quantised_graphs(source, part, {"step": step}, linears, [], {}, settings)
    finish(source, part, made, settings)
    assert not (part / "probe.onnx").exists()
    float_step = onnx.load(source.graph_path("step"), load_external_data=False)
    matrices = sum(weight_of(float_step.graph, one, source.path)[0].size for one in linears)
    assert matrices <= (part / SHARED).stat().st_size < 2 * matrices  # a byte each, and what stays in float


def test_sensitivity_leaves_large_weights_where_they_are(bundle: Bundle, tmp_path: Path) -> None:
    """A protobuf ends at 2 GiB: the graph of each layer holds that layer's weights alone. The numbers are the same."""
    beside = with_weights_beside(bundle, tmp_path / "beside.everframe")
    whole = (beside.path / SHARED).stat().st_size
    linears = find_linears(onnx.load(bundle.graph_path("step")), 2)[:3]
    one = EngineOptions(threads=1)
    known = references(bundle, PROMPTS[:1], 0, 2, one)
    results = []
    for made, work in ((bundle, tmp_path / "a"), (beside, tmp_path / "b")):
        step = onnx.load(made.graph_path("step"), load_external_data=False)
        own = find_linears(step, 2)[:3]
        assert [linear.name for linear in own] == [linear.name for linear in linears]
        results.append(measure(made, own, {}, "int4-weights", known, work, lambda *_: None, one))
    assert all(result.latent > 0 for result in results[0])
    for a, b in zip(*results, strict=True):
        assert b.latent == pytest.approx(a.latent, rel=1e-3)
    sizes = [(tmp_path / work / "step.changed.onnx").stat().st_size for work in ("a", "b")]
    assert sizes[1] < sizes[0] - 0.8 * whole


def test_other_weights_are_other_statistics(bundle: Bundle, tmp_path: Path) -> None:
    """Two large bundles may have the same graph and other weights beside it: nothing that was kept of one is the other's."""
    found = []
    for scale, work in ((1.0, "w"), (2.0, "w"), (2.0, "fresh")):
        made = with_weights_beside(bundle, tmp_path / f"{scale}-{work}.everframe", scale)
        step = onnx.load(made.graph_path("step"), load_external_data=False)
        linears = find_linears(step, 2)
        found.append(observe(made, linears, PROMPTS[:1], [0], 2, "minmax", tmp_path / work, lambda *_: None).peaks)
    assert found[0].keys() == found[1].keys() == found[2].keys()
    assert all((found[1][name] == found[2][name]).all() for name in found[1])
    assert any((found[0][name] != found[1][name]).any() for name in found[0])


def test_convolutions_of_clips(tmp_path: Path) -> None:
    """The Wan VAE's have an axis of time: every output channel has one scale."""
    import onnxruntime as ort

    rng = np.random.default_rng(0)
    weight = (rng.standard_normal((6, 4, 3, 3, 3)) * np.logspace(-2, 1, 6).reshape(6, 1, 1, 1, 1)).astype(np.float32)
    x = rng.standard_normal((1, 4, 3, 8, 8)).astype(np.float32)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "decode",
        [value("x", onnx.TensorProto.FLOAT, x.shape)],
        [value("y", onnx.TensorProto.FLOAT, [1, 6, 1, 6, 6])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    expected = np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])
    quantise(model, [Linear("decode 1", "conv", "x", ("w",), conv=True)], tmp_path, "int8-weights", {})
    onnx.checker.check_model(model, full_check=True)
    got = np.asarray(ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0])
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert constants["conv.scale"] == pytest.approx(np.abs(weight).reshape(6, -1).max(1) / 127, rel=1e-6)
    for channel in range(6):  # the small ones as exactly as the large ones
        assert np.abs(got[0, channel] - expected[0, channel]).max() < 0.02 * np.abs(expected[0, channel]).max()


def test_an_interrupted_calibration_goes_on(bundle: Bundle, step: onnx.ModelProto, tmp_path: Path) -> None:
    linears = find_linears(step, 2)
    whole = observe(bundle, linears, PROMPTS[:2], [0, 1], 2, "percentile", tmp_path / "a", lambda *_: None)

    class StopError(Exception): ...

    def stop(done: int, total: int) -> None:
        assert total == 8
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        observe(bundle, linears, PROMPTS[:2], [0, 1], 2, "percentile", tmp_path / "b", stop)
    seen: list[int] = []
    again = observe(
        bundle, linears, PROMPTS[:2], [0, 1], 2, "percentile", tmp_path / "b", lambda done, _: seen.append(done)
    )
    assert seen == [5, 6, 7, 8]  # two streams were kept
    assert again.thresholds() == whole.thresholds()
    for name, peaks in whole.peaks.items():
        assert (again.peaks[name] == peaks).all()


def test_one_that_was_interrupted_knows_positions_that_are_others_now(
    bundle: Bundle, step: onnx.ModelProto, tmp_path: Path
) -> None:
    """They stand in the manifest alone: the graphs are the same."""
    linears = find_linears(step, 2)[:1]
    wanted = (linears, PROMPTS[:2], [0], 1, "minmax", tmp_path / "w")

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        observe(bundle, *wanted, stop)
    rope = bundle.manifest.rope.model_copy(update={"jitter_sigma": 0.1})
    other = Bundle(bundle.path, bundle.manifest.model_copy(update={"rope": rope}))
    observe(other, *wanted, lambda done, _: seen.append(done))
    assert seen == [1, 2]


def test_one_that_was_interrupted_knows_prompts_that_came_meanwhile(
    bundle_path: Path, step: onnx.ModelProto, tmp_path: Path
) -> None:
    """The bank is linked beside what was gathered: another bank is another calibration."""
    linears, other = find_linears(step, 2), with_prompts(bundle_path, tmp_path / "other", [*PROMPTS, "a new one"])

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    wanted = (linears, PROMPTS[:2], [0], 2, "percentile", tmp_path / "w")
    with pytest.raises(KeyboardInterrupt):
        observe(Bundle.open(bundle_path), *wanted, stop)
    observe(Bundle.open(other), *wanted, lambda *_: None)


def test_damaged_statistics_are_gathered_anew(bundle: Bundle, step: onnx.ModelProto, tmp_path: Path) -> None:
    """As a machine leaves them that lost its power: half of the file, noise, nothing."""
    linears, work = find_linears(step, 2)[:1], tmp_path / "w"
    whole = observe(bundle, linears, PROMPTS[:1], [0], 1, "minmax", work, lambda *_: None)
    kept = (work / "statistics.npz").read_bytes()
    assert [file.name for file in work.iterdir() if "part" in file.name] == []
    middle, seen = len(kept) // 2, []
    for damaged in (kept[:middle], b"", b"PK noise", kept[:middle] + b"\0" * 40 + kept[middle + 40 :]):
        (work / "statistics.npz").write_bytes(damaged)
        again = observe(bundle, linears, PROMPTS[:1], [0], 1, "minmax", work, lambda done, _: seen.append(done))
        assert seen.pop() == 1
        assert not seen
        for name, peaks in whole.peaks.items():
            assert (again.peaks[name] == peaks).all()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--precision", "int8-weights", "--method", "minmax"], "--method: expected --precision int8 or fp8 with it"),
        (["--precision", "int4-weights", "--alpha", "0.5"], "--alpha: expected --precision int8 or fp8 with it"),
        (["--precision", "int8-weights", "--chunks", "8"], "--chunks: expected --precision int8 or fp8 with it"),
        (
            ["--method", "percentile", "--alpha", "0.5"],
            "--alpha: expected --method smoothquant with it, not percentile",
        ),
    ],
)
def test_options_that_would_do_nothing(tmp_path: Path, more: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["calibrate", str(DEMO_BUNDLE), "-o", str(tmp_path / "x.everframe"), *more])
    assert isinstance(result.exception, UserError)
    assert words in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--held-out", "SEA", "--prompts", "sea"], ["--prompts", "ALL"]])
def test_who_judges_has_not_calibrated(tmp_path: Path, words: list[str]) -> None:
    every = Bundle.open(DEMO_BUNDLE).manifest.prompts
    named = {"sea": [every[0]], "SEA": [every[0].upper()], "ALL": every}
    groups = [[flag, prompt] for flag, key in zip(words[::2], words[1::2], strict=True) for prompt in named[key]]
    options = [word for group in groups for word in group]
    result = CliRunner().invoke(app, ["calibrate", str(DEMO_BUNDLE), "-o", str(tmp_path / "x.everframe"), *options])
    assert isinstance(result.exception, UserError)
    assert ("calibrated with too" in str(result.exception)) == ("SEA" in words)
    assert ("no prompt to judge with" in str(result.exception)) == ("ALL" in words)
    assert not list(tmp_path.iterdir())


def test_weights_beside_a_graph_are_read_even_from_a_linked_file(tmp_path: Path) -> None:
    """The weights of a bundle are hard links while another bundle is made of it; onnx refuses to read those."""
    arrays = [np.arange(12, dtype=np.float16).reshape(3, 4), np.arange(5, dtype=np.float32)]
    tensors = [onnx.numpy_helper.from_array(a, f"t{i}") for i, a in enumerate(arrays)]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    onnx.save(model, tmp_path / "g.onnx", save_as_external_data=True, location="g.data", size_threshold=0)
    (tmp_path / "again").hardlink_to(tmp_path / "g.data")
    found = onnx.load(tmp_path / "g.onnx", load_external_data=False).graph.initializer
    assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in found)
    for tensor, array in zip(found, arrays, strict=True):
        assert (tensor_values(tensor, tmp_path) == array).all()
    with pytest.raises(onnx.checker.ValidationError):
        onnx.numpy_helper.to_array(found[0], str(tmp_path))


@pytest.mark.slow
def test_a_portable_bundle_in_half_precision(wan_home: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "half.everframe", tmp_path / "q.everframe"
    given = source(wan_home, vae=wan_home / "taew2_1.pth", precision="fp16", form="portable")
    export_wan(given, path, chunks=0, force=False)
    calibrate(path, out, changed(QUICK, prompts=(), ring="int8"), False)
    model = onnx.load(Bundle.open(out).graph_path("step"))
    onnx.checker.check_model(model, full_check=True)  # types too
    assert max(o.version for o in model.opset_import) <= 20  # what TensorRT 10.3 reads
    with Stream(Bundle.open(path), overlap=False) as plain, Stream(Bundle.open(out), overlap=False) as quantised:
        for _ in range(2):
            one, other = plain.next_chunk(), quantised.next_chunk()
            quantised_error = np.abs(one.latent - other.latent).mean() / np.abs(one.latent).mean()
            assert 0 < quantised_error < 0.2


def test_the_outer_convolutions_of_every_frame_stay_float(bundle_path: Path) -> None:
    model = onnx.load(Bundle.open(bundle_path).graph_path("decode"))
    convolutions = [n for n in model.graph.node if n.op_type == "Conv"]
    chosen = {linear.node for linear in find_convolutions(model)}
    outer = [n for n in convolutions if n.input[1] == convolutions[0].input[1] or "ending.last" in n.input[1]]
    assert len(outer) == 3 + 12 * 4  # one for each latent frame, one for each pixel of a 2×2 block of each frame
    assert not chosen & {n.name for n in outer}
    assert chosen == {n.name for n in convolutions} - {n.name for n in outer}


def test_the_decoder_too(bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.everframe"
    calibrate(bundle_path, out, changed(QUICK, decoder=True), False)
    nodes = onnx.load(Bundle.open(out).graph_path("decode")).graph.node
    assert sum(n.op_type == "QuantizeLinear" for n in nodes) > 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "int3"}, "--precision 'int3'"),
        ({"method": "guess"}, "--method 'guess'"),
        ({"ring": "int4"}, "--ring 'int4'"),
        ({"alpha": 1.5}, "--alpha 1.5"),
        ({"prompts": ("a stone",)}, "prompt 'a stone' is not in the bundle's prompt bank"),
        ({"ring": "int8"}, "--ring int8 needs the portable form"),
        ({"decoder": True, "precision": "fp8"}, "--decoder: .* not fp8; expected --precision int8"),
        ({"decoder": True, "precision": "int4-weights"}, "--decoder: .* not int4-weights"),
        (
            {"exclude": ("ffn.2", "fnn.0")},
            "--exclude 'fnn.0': is in no layer's name; expected a part of one of block 0 self.k",
        ),
    ],
)
def test_bad_settings(
    changes: dict, words: str, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before hours of streaming."""
    monkeypatch.setattr("everframe.calibration.calibrate.observe", None)
    with pytest.raises(UserError, match=words):
        calibrate(bundle_path, tmp_path / "x.everframe", changed(QUICK, **changes), False)
    assert not list(tmp_path.iterdir())


def test_a_quantised_bundle_is_not_quantised_again(bundle_path: Path, tmp_path: Path) -> None:
    first = tmp_path / "a.everframe"
    with pytest.raises(UserError, match="is the bundle itself"):
        calibrate(bundle_path, bundle_path, changed(QUICK, precision="int8-weights"), True)
    calibrate(bundle_path, first, changed(QUICK, precision="int8-weights"), False)
    with pytest.raises(UserError, match="is quantised already"):
        calibrate(first, tmp_path / "b.everframe", QUICK, False)
