"""Engines really compiled with TensorRT-RTX on this machine without a GPU, and how they are stored.

What no test here can show is that an engine runs: that is tests/gpu.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from everframe.engines import build, store
from everframe.engines.build import build_engines
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.inspection import installed_backends
from everframe.engines.lower import lower
from everframe.engines.tensorrt import error_recorder
from everframe.engines.trtbuild import (
    BuildOptions,
    build_graph,
    first_error_logger,
    options_record,
    started,
    takes_lengths,
)
from everframe.export.wanexport import export_wan
from everframe.runtime import open_bundle

from wanfiles import source

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this machine")
TARGETS = ("sm_86", "sm_89", "sm_120")
COMMAND = [sys.executable, "-c", "from everframe.runtime.cli import main; main()"]


@pytest.fixture
def wan_bundle(whole_wan_path: Path) -> Bundle:
    return Bundle.open(whole_wan_path)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("graph", ["step", "prompt", "decode"])
def test_every_graph_builds(bundle: Bundle, graph: str, precision: str) -> None:
    built = build_graph(bundle, graph, BuildOptions(precision=precision, targets=TARGETS))
    assert len(built.engine) > 10_000
    assert built.attentions == (4 if graph == "step" else 0)
    assert built.memory["activation_bytes"] > 0


@pytest.mark.parametrize("graph", ["step", "prompt", "decode", "decode_first", "encode"])
@pytest.mark.slow
def test_every_graph_of_a_wan_bundle_builds(wan_bundle: Bundle, graph: str) -> None:
    built = build_graph(wan_bundle, graph, BuildOptions(targets=("sm_89",)))
    assert built.attentions == (4 if graph == "step" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["step", "prompt", "decode", "decode_first", "encode"])
@pytest.mark.slow
def test_every_graph_of_the_5b_builds(wan22_paths: dict[str, Path], graph: str) -> None:
    """With the sampler's flows and a picture as the first frame; either decoder."""
    for form, path in wan22_paths.items():
        built = build_graph(Bundle.open(path), graph, BuildOptions(targets=("sm_89",)))
        assert built.attentions == (4 if graph == "step" and form == "in-place" else 0)


@pytest.mark.parametrize("graph", ["step", "prompt", "decode"])
def test_the_portable_form_builds(portable_path: Path, graph: str) -> None:
    assert build_graph(Bundle.open(portable_path), graph, BuildOptions(targets=("sm_86",))).attentions == 0


@pytest.mark.parametrize(("form", "attentions"), [("in-place", 4), ("portable", 0)])
@pytest.mark.slow
def test_sinks_that_follow_build(following_paths: dict[str, Path], form: str, attentions: int) -> None:
    """Turned in the graph, before attention: which stays one kernel in the in-place form."""
    bundle = Bundle.open(following_paths[form])
    assert build_graph(bundle, "step", BuildOptions(targets=("sm_89",))).attentions == attentions


@pytest.mark.parametrize("name", ["smooth", "upscale"])
@pytest.mark.slow
def test_the_graphs_behind_the_demo_s_decoder_build(name: str) -> None:
    assert build_graph(open_bundle(), name, BuildOptions(targets=("sm_89",))).layers > 0


@pytest.mark.slow
def test_a_small_decoder_for_first_chunks_builds(wan_home: Path, tmp_path: Path) -> None:
    """The public TAEHV shows the last frame only of a stream's first latent frame: what no shown frame reads is no input."""
    out = tmp_path / "taehv.everframe"
    given = source(wan_home, vae=wan_home / "taew2_1.pth", precision="fp16")
    export_wan(given, out, chunks=0, force=False)
    bundle = Bundle.open(out)
    for name in ("decode", "decode_first"):
        assert build_graph(bundle, name, BuildOptions(targets=("sm_89",))).layers > 0
    first, later = (bundle.manifest.graphs[name].inputs for name in ("decode_first", "decode"))
    assert {s.name for s in first} < {s.name for s in later}


def test_progress_and_interrupt(bundle: Bundle) -> None:
    phases = set()

    def tell(phase: str, step: int, steps: int) -> bool:
        phases.add(phase)
        return len(phases) < 2

    with pytest.raises(KeyboardInterrupt):
        build_graph(bundle, "decode", BuildOptions(targets=("sm_89",)), tell)
    assert phases


def parsed(model: onnx.ModelProto):
    """The network that TensorRT's parser makes of a model."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parser.parse(model.SerializeToString())
    return network, (parser, builder)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_layer_by_layer(bundle: Bundle, precision: str) -> None:
    """Compute in the low type, the ring in the low type and straight from input to update, every input used."""
    low = {"fp16": trt.float16, "bf16": trt.bfloat16}[precision]
    model = lower(onnx.load(bundle.graph_path("step")), precision)  # type: ignore[arg-type]
    network, _keep = parsed(model)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    for layer in layers:
        if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION, trt.LayerType.ATTENTION_INPUT):
            assert layer.get_input(0).dtype == low, layer.name
        if layer.type == trt.LayerType.NORMALIZATION:
            assert layer.get_input(0).dtype == trt.float32, layer.name
        if layer.type == trt.LayerType.KV_CACHE_UPDATE:
            assert layer.get_input(0).is_network_input
            assert layer.get_output(0).is_network_output
            assert layer.get_output(0).dtype == low
    used = {layer.get_input(j).name for layer in layers for j in range(layer.num_inputs) if layer.get_input(j)}
    assert {network.get_input(i).name for i in range(network.num_inputs)} <= used
    assert "kv_len.int32" in used
    kinds = {network.get_input(i).name: network.get_input(i).dtype for i in range(network.num_inputs)}
    assert (kinds["k_0"], kinds["prompt_v_1"], kinds["latent"]) == (low, low, trt.float32)


def test_lowered_graph_computes_the_same(bundle: Bundle) -> None:
    """The precision pass alone, in ONNX Runtime, within half precision of the original."""
    import numpy as np
    import onnxruntime as ort

    from everframe.engines.lower import _Lowering

    rng = np.random.default_rng(0)
    model = onnx.load(bundle.graph_path("decode"))
    inputs = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    values = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in inputs.items()}
    before: list[Any] = ort.InferenceSession(model.SerializeToString()).run(None, values)  # type: ignore[assignment]
    _Lowering(model, TensorProto.FLOAT16).run()
    onnx.checker.check_model(model, full_check=True)
    halves = {k: v.astype(np.float16) if k.startswith("state_") else v for k, v in values.items()}
    after: list[Any] = ort.InferenceSession(model.SerializeToString()).run(None, halves)  # type: ignore[assignment]
    assert np.abs(before[0].astype(int) - after[0].astype(int)).max() <= 3
    for a, b in zip(before[1:], after[1:], strict=True):
        assert b.dtype == np.float16
        assert np.abs(a - b.astype(np.float32)).max() < 1e-2 * np.abs(a).max()


def test_rope_written_out_is_rope(bundle: Bundle) -> None:
    """The step graph with RotaryEmbedding and with products in its place give the same chunk, in ONNX Runtime."""
    import numpy as np
    import onnxruntime as ort

    from everframe.engines.lower import write_out_rope

    rng = np.random.default_rng(0)
    model = onnx.load(bundle.graph_path("step"))
    values: dict[str, Any] = {
        v.name: rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim]).astype(np.float32)
        for v in model.graph.input
    }
    tokens = values["k_0"].shape[2]
    values |= {name: np.array([n], np.int64) for name, n in (("step", 1), ("slot", 0), ("kv_len", tokens))}
    outputs = []
    for written_out in (False, True):
        if written_out:
            write_out_rope(model)
        assert any(n.op_type == "RotaryEmbedding" for n in model.graph.node) != written_out
        onnx.checker.check_model(model, full_check=True)
        outputs.append(ort.InferenceSession(model.SerializeToString()).run(None, values))
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def altered(bundle: Bundle, folder: Path, change) -> Bundle:
    """A copy of the bundle whose step graph was changed behind the manifest's back."""
    copy = Path(shutil.copytree(bundle.path, folder / "altered.everframe"))
    model = onnx.load(copy / "step.onnx")
    change(model.graph)
    onnx.save(model, copy / "step.onnx")
    return Bundle(copy, bundle.manifest)


def test_lengths_that_are_dropped_are_an_error(bundle: Bundle, tmp_path: Path) -> None:
    def forget(graph) -> None:
        for node in graph.node:
            if node.op_type == "Attention":
                del node.input[3:]

    with pytest.raises(UserError, match=r"step.onnx: the parser left graph inputs unused: kv_len"):
        build_graph(altered(bundle, tmp_path, forget), "step", BuildOptions(targets=("sm_89",)))


def test_an_attention_that_is_not_ours_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    def scale(graph) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Attention" and attribute.name == "scale":
                    attribute.f = 0.5

    with pytest.raises(UserError, match=r"Attention with scale 0.5"):
        build_graph(altered(bundle, tmp_path, scale), "step", BuildOptions(targets=("sm_89",)))


@pytest.mark.parametrize(
    ("said", "why"), [("CUDA initialization failure with error: 35", "error: 35"), ("", "nullptr")]
)
def test_tensorrt_that_cannot_start_is_one_line(said: str, why: str) -> None:
    """Without a driver, or with an old one: a TypeError of its bindings, and the reason as a warning in the log."""
    log = first_error_logger(trt)

    def refuses(logger: object) -> None:
        assert logger is log
        log.log(trt.ILogger.WARNING, "something else")
        log.log(trt.ILogger.WARNING, said)
        raise TypeError("pybind11::init(): factory function returned nullptr")

    with pytest.raises(UserError, match=f"cannot start: .*{why}.*everframe doctor"):
        started(trt, refuses, log)


@pytest.mark.parametrize(
    ("version", "takes"), [("10.16.2.10", False), ("11.0.1", False), ("11.1", True), ("11.4.1", True)]
)
def test_in_place_needs_a_tensorrt_that_takes_it(
    bundle: Bundle, version: str, takes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert takes_lengths("tensorrt", version) == takes
    assert takes_lengths("tensorrt-rtx", "1.7")
    if not takes:
        monkeypatch.setattr(build, "check_options", lambda options: SimpleNamespace(__version__=version))
        with pytest.raises(
            UserError, match=f"takes from 11.1 on, and this is {version}: export it with --form portable"
        ):
            build_engines(bundle.path, BuildOptions(backend="tensorrt"))


def test_what_cannot_be_parsed_or_built_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    def strange(graph) -> None:
        graph.node.append(helper.make_node("Unheard", [graph.node[0].output[0]], ["nowhere"], name="odd"))

    with pytest.raises(UserError, match=r"step.onnx: .* cannot parse it: .*Unheard") as caught:
        build_graph(altered(bundle, tmp_path, strange), "step", BuildOptions(targets=("sm_89",)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions(precision="fp32"), ["fp32", "fp16 or bf16"]),
        (BuildOptions(backend="cuda"), ["cuda", "tensorrt-rtx"]),
        (BuildOptions(targets=("sm_87",)), ["sm_87", "sm_86"]),
        (BuildOptions(optimization_level=9), ["--optimization-level 9"]),
        (BuildOptions(version_compatible=True), ["--version-compatible", "tensorrt-rtx", "lean runtime"]),
        (BuildOptions(weight_streaming=True), ["--weight-streaming", "tensorrt-rtx"]),
        (BuildOptions(hardware_compatible=True), ["--hardware-compatible", "--target"]),
        (BuildOptions(strip_weights=True), ["--strip-weights", "needs a GPU"]),
    ],
)
def test_wrong_options(bundle: Bundle, options: BuildOptions, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_graph(bundle, "prompt", options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("spelling", ["SM89", "sm89", "sm_89", "SM_89"])
def test_targets_are_stored_in_one_spelling(spelling: str) -> None:
    """That of the card, which they are compared with."""
    record = options_record(BuildOptions(targets=(spelling,)))
    assert record["targets"] == ["sm_89"]
    of: Any = SimpleNamespace(options=record)
    assert store.wrong_card(of, "sm_89", "RTX 4090") is None
    assert store.wrong_card(of, "sm_86", "RTX 3090") == "built for sm_89, this card is sm_86"


def test_classic_engines_are_of_one_card(monkeypatch: pytest.MonkeyPatch) -> None:
    card = SimpleNamespace(name="RTX 4090", compute_capability="sm_89")
    monkeypatch.setattr(build, "find_gpu", lambda: (card, ""))
    of: Any = SimpleNamespace(options=build.built_for(BuildOptions(backend="tensorrt")))
    assert store.wrong_card(of, "sm_89", "RTX 4090") is None
    assert store.wrong_card(of, "sm_89", "RTX 4080") == "built on RTX 4090, this card is RTX 4080"
    of = SimpleNamespace(options=build.built_for(BuildOptions(backend="tensorrt", hardware_compatible=True)))
    assert store.wrong_card(of, "sm_89", "RTX 4080") is None


def test_tensorrt_s_own_side_finds_the_recorder_s_errors() -> None:
    """The bindings call `get_num_errors`: through the base class it answers −1 where that is missing."""
    trt = pytest.importorskip("tensorrt_rtx")
    recorder = error_recorder(trt)
    asked = trt.IErrorRecorder.num_errors  # goes through TensorRT's own side, as TensorRT does
    assert asked(recorder) == 0
    recorder.report_error(trt.ErrorCodeTRT.INVALID_ARGUMENT, "two\nlines")
    assert asked(recorder) == recorder.num_errors() == 1
    assert recorder.take() == "INVALID_ARGUMENT: two lines"
    assert recorder.num_errors() == 0


@pytest.mark.slow
def test_bf16_of_a_half_precision_bundle(wan_bundle: Bundle) -> None:
    with pytest.raises(UserError, match="exported in fp16"):
        build_graph(wan_bundle, "step", BuildOptions(precision="bf16", targets=("sm_89",)))


@pytest.fixture
def built(bundle: Bundle, tmp_path: Path) -> Bundle:
    copy = Path(shutil.copytree(bundle.path, tmp_path / "b.everframe"))
    done = subprocess.run([*COMMAND, "build", str(copy), "--target", "sm_89"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Bundle.open(copy)


def only(bundle: Bundle) -> store.Stored:
    (found,) = store.stored(bundle, installed_backends())
    return found


def test_stored_engines_and_what_invalidates_them(built: Bundle) -> None:
    found = only(built)
    assert found.problem is None
    assert found.record is not None
    assert set(found.record.graphs) == {"step", "prompt", "decode", "recache"}
    assert found.record.options["targets"] == ["sm_89"]
    versions = installed_backends()
    (other,) = store.stored(built, {"tensorrt-rtx": "9.9"})
    assert other.problem == f"built with tensorrt-rtx {versions['tensorrt-rtx']}, installed is 9.9"
    (absent,) = store.stored(built, {})
    assert absent.problem == "tensorrt-rtx is not installed"

    engine = found.folder / "step.engine"
    whole = engine.read_bytes()
    engine.write_bytes(whole[:-1])
    assert "step.engine" in (only(built).problem or "")
    engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "SHA-256" in (only(built).problem or "")
    engine.write_bytes(whole)
    assert only(built).problem is None

    record = found.folder / store.RECORD
    text = record.read_text()
    record.write_text(text.replace('"sm_89"', '"sm_90"'))
    assert "are others than when they were built" in (only(built).problem or "")
    record.write_text(text[:40])
    assert store.RECORD in (only(built).problem or "")
    record.unlink()
    assert only(built).problem == f"{store.RECORD} is missing"
    record.write_text(text)

    changed = built.manifest.graphs["step"].model.model_copy(update={"sha256": "0" * 64})
    graphs = built.manifest.graphs | {"step": built.manifest.graphs["step"].model_copy(update={"model": changed})}
    later = Bundle(built.path, built.manifest.model_copy(update={"graphs": graphs}))
    assert only(later).problem == "step: the graph has changed since"


@pytest.mark.parametrize("options", [{"optimization_level": 1}, {"workspace_mib": 64}], ids=str)
def test_other_options_build(bundle: Bundle, options: dict) -> None:
    assert len(build_graph(bundle, "prompt", BuildOptions(targets=("sm_89",), **options)).engine) > 1000


def test_fingerprints_tell_everything_apart(bundle: Bundle) -> None:
    base = BuildOptions(targets=("sm_89",))
    others = [
        base,
        replace(base, precision="bf16"),
        replace(base, targets=("sm_86",)),
        replace(base, strip_weights=True),
        replace(base, backend="tensorrt"),
        replace(base, workspace_mib=64),
    ]
    keys = {store.fingerprint(bundle, "1.7", options_record(o)) for o in others}
    keys.add(store.fingerprint(bundle, "1.8", options_record(base)))
    assert len(keys) == len(others) + 1
    assert store.fingerprint(bundle, "1.7", options_record(base)) in keys


def test_nothing_half_written(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle.open(shutil.copytree(bundle.path, tmp_path / "b.everframe"))

    def broken() -> Iterator[tuple[str, bytes, dict]]:
        yield "step", b"x", {"layers": 1, "attentions": 0, "seconds": 0.0, "memory": {}}
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        store.write(copy, "1", {"backend": "tensorrt-rtx"}, broken)
    assert [file for file in (copy.path / store.FOLDER).iterdir() if file.name != "verified.json"] == []


def test_running_an_engine_without_a_gpu_is_one_line(built: Bundle, tmp_path: Path) -> None:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a GPU: tests/gpu runs the engines")
    pytest.importorskip("cuda.bindings")
    run = [*COMMAND, "generate", "-b", str(built.path), "-o", "x.mp4", "--backend", "tensorrt-rtx"]
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--backend onnxruntime runs on the CPU" in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["b.everframe"]


def test_inspect(built: Bundle) -> None:
    done = subprocess.run([*COMMAND, "inspect", str(built.path)], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("step", "decode", "3 prompts", only(built).fingerprint, "valid"):
        assert word in done.stdout
    done = subprocess.run([*COMMAND, "inspect", str(built.path), "--json"], capture_output=True, text=True)
    said = json.loads(done.stdout)
    assert said["engines"][0]["problem"] is None
    assert set(said["graphs"]) == {"step", "prompt", "decode", "recache"}


QUANTISED = {
    "int8": ("sm_86", "sm_89", "sm_120"),
    "fp8": ("sm_89", "sm_120"),
    "int8-weights": ("sm_86",),
    "int4-weights": ("sm_86",),
}


@pytest.fixture(scope="module")
def quantised(bundle_path: Path, portable_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    from everframe.calibration.calibrate import Settings, calibrate

    home, made = tmp_path_factory.mktemp("quantised"), {}
    for precision, ring in (*((p, "float") for p in QUANTISED), ("int8", "int8")):
        settings = Settings(precision, chunks=2, ring=ring, sensitivity=False, gate_chunks=1, gate_minutes=0)
        out = home / f"{precision}-{ring}.everframe"
        calibrate(portable_path if ring == "int8" else bundle_path, out, settings, False)
        made[f"{precision} {ring}"] = Bundle.open(out)
    return made


@pytest.mark.parametrize("precision", list(QUANTISED))
def test_quantised_graphs_build_and_stay_quantised(precision: str, quantised: dict[str, Bundle]) -> None:
    """Sixteen linear layers: a DequantizeLinear for every weight, and a pair for every tensor they read (q, k and v share
    theirs). The parsed network must have kept them all."""
    built = build_graph(quantised[f"{precision} float"], "step", BuildOptions(targets=QUANTISED[precision]))
    assert built.quantised == (16 if precision.endswith("weights") else 16 + 2 * 2 * 6)
    assert built.attentions == 4


def test_an_int8_ring_builds(quantised: dict[str, Bundle]) -> None:
    assert build_graph(quantised["int8 int8"], "step", BuildOptions(targets=("sm_86",))).quantised == 40


def test_fp8_for_a_card_without_it_is_refused(quantised: dict[str, Bundle]) -> None:
    with pytest.raises(UserError, match="cannot build it"):
        build_graph(quantised["fp8 float"], "step", BuildOptions(targets=("sm_86",)))


@pytest.mark.slow
def test_int8_weights_take_a_byte_each(tmp_path: Path) -> None:
    """The demo's step graph, by the builder's own figure: nothing was silently dequantised."""
    from everframe.calibration.calibrate import Settings, calibrate
    from everframe.runtime import DEMO_BUNDLE

    settings = Settings("int8", "minmax", chunks=1, prompts=("blue gas flames dancing in the dark",), sensitivity=False)
    settings = replace(settings, gate_chunks=1, gate_minutes=0)
    calibrate(DEMO_BUNDLE, tmp_path / "q.everframe", settings, False)
    half, small = (
        build_graph(Bundle.open(path), "step", BuildOptions(targets=("sm_89",))).memory["weights_bytes"]
        for path in (DEMO_BUNDLE, tmp_path / "q.everframe")
    )
    network = Bundle.open(DEMO_BUNDLE).manifest.network
    weights = network.layers * (6 * network.dim**2 + 2 * network.dim * network.ffn_dim)
    assert half - small == pytest.approx(weights, rel=0.02)  # two bytes each became one


def kernels(engine: memoryview) -> Counter[str]:
    """Kernels that TensorRT-RTX has put into an engine, by the operations that they fuse."""
    return Counter(name.decode() for name in re.findall(rb"__myl_([A-Za-z]+)(?![A-Za-z_0-9])", engine))


def test_whole_rings_are_copied_by_every_pass() -> None:
    """What TensorRT-RTX 1.7 does by itself, in the form that is called in-place too: two kernels an attention that only
    reshape, keys and values of the whole ring. When this fails it has stopped: docs/tensorrt.md and the plan can say so."""
    demo = open_bundle()
    built = build_graph(demo, "step", BuildOptions(targets=("sm_89",)))
    assert (
        kernels(built.engine)["Resh"] == 3 * demo.manifest.network.layers
    )  # the third is of what cross-attention reads
