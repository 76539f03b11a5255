"""A bundle's reference against the slow loop in float64, and engines held against it: right ones, wrong ones, and what is
on record."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import save_file
from safetensors.torch import load_file
from test_stream import SIGMAS, reference_of, texts_of

from everframe.engines.base import Computing, EngineOptions
from everframe.engines.bundle import MANIFEST, Bundle, describe, write_manifest
from everframe.engines.choose import open_backend
from everframe.engines.errors import UserError
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.runtime import Stream, proof
from everframe.runtime.noise import chunk_noise
from everframe.runtime.passes import Passes
from everframe.runtime.prompts import PromptBank
from everframe.runtime.reference import FILE, Deviation, Reference, deviation, observe, sampled

from helpers import AUTOENCODER, PROMPTS

LATE = 4  # chunks of the window of 12


@pytest.fixture(params=["in-place", "portable"])
def source(request: pytest.FixtureRequest, bundle_path: Path, portable_path: Path) -> Path:
    return portable_path if request.param == "portable" else bundle_path


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A bundle of its own, that met no backend yet."""
    return shutil.copytree(source, tmp_path / source.name, ignore=shutil.ignore_patterns("engines"))


def noise(chunk: int, bundle: Bundle) -> torch.Tensor:
    return torch.from_numpy(chunk_noise(0, chunk, 4, bundle.manifest.geometry.latent_shape))[:, 0].double()


def some(values: np.ndarray) -> np.ndarray:
    """The values that a reference keeps."""
    flat = values.reshape(-1)
    return flat if flat.size <= 32_768 else np.array([flat[i * 2_654_435_761 % flat.size] for i in range(32_768)])


@pytest.mark.parametrize(
    "shape", [(12, 480, 832, 3), (9, 480, 832, 3), (12, 272, 480, 3), (12, 576, 1024, 3), (4, 480, 832, 3)]
)
def test_what_is_kept_of_frames_covers_everything(shape: tuple[int, ...]) -> None:
    """A fault of one channel, of every other row or column, of one corner or of one frame is seen."""
    blank = np.zeros(shape, np.uint8)
    faults: list[Any] = [(..., c) for c in range(3)]
    faults += [(slice(None), slice(i, None, 2)) for i in (0, 1)]
    faults += [(slice(None), slice(None), slice(i, None, 2)) for i in (0, 1)]
    faults += [(slice(None), slice(0, shape[1] // 4), slice(0, shape[2] // 4)), (shape[0] - 1,)]
    for fault in faults:
        wrong = blank.copy()
        wrong[fault] = 255
        share = float((sampled(wrong) == 255).mean())
        assert share == pytest.approx(float((wrong == 255).mean()), rel=0.1), fault


def test_the_reference_is_the_slow_loop_s(source: Path, checkpoint: Path) -> None:
    bundle = Bundle.open(source)
    kept = Reference.read(bundle)
    assert kept is not None
    assert (bundle.path / FILE).stat().st_size < 300_000
    text = texts_of(checkpoint)[PROMPTS[0]]
    slow = reference_of(bundle, checkpoint, bundle.manifest.rope.jitter_sigma)
    first = slow.next_chunk(noise(0, bundle), SIGMAS, text, 0)
    assert np.abs(kept.first - first.numpy()).max() < 2e-3 * first.abs().max()  # it is kept in half precision
    slow.past.clear()
    committed = torch.from_numpy(kept.first.astype(np.float64))
    for chunk in range(LATE):
        slow.commit(committed, text, 3 * chunk)
    late = some(slow.next_chunk(noise(LATE, bundle), SIGMAS, text, 3 * LATE).numpy())
    assert np.abs(kept.late - late).max() < 2e-5 * np.abs(late).max()


def test_its_frames_are_the_autoencoder_s(source: Path, checkpoint: Path) -> None:
    from everframe.export.taehv import Taehv

    kept = Reference.read(Bundle.open(source))
    assert kept is not None
    autoencoder = Taehv(AUTOENCODER).double()
    autoencoder.load_state_dict({k: v.double() for k, v in load_file(checkpoint / "autoencoder.safetensors").items()})
    latents = torch.from_numpy(np.concatenate([kept.first, kept.first], 1)).double()
    with torch.no_grad():
        clip, _ = autoencoder.decode(latents.transpose(0, 1)[None])
    frames = (clip[0].clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    for part, expected in ((kept.first_frames, frames[:12]), (kept.late_frames, frames[12:])):
        assert np.abs(part - some(expected)).max() < 0.51


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_right_engines_hold(copied: Path, backend: str, threads: int) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    bundle = Bundle.open(copied)
    with Stream(bundle, seed=3, backend=open_backend(backend, EngineOptions(threads=threads))) as stream:
        made = [stream.next_chunk().frames for _ in range(3)]
    (record,) = json.loads((copied / "engines" / proof.FILE).read_text()).values()
    shown = record["deviation"]
    assert record["computing"]["precision"] == "f32"
    assert 0 < shown["first"] + shown["late"] < 1e-3
    assert shown["first_frames"] < 0.1
    with Stream(bundle, seed=3, verify=False) as alone:  # nothing of the proof is left in the ring or the decoder
        for frames in made:
            assert np.abs(alone.next_chunk().frames.astype(int) - frames).max() <= 1


def alter(folder: Path, name: str, change: Any) -> Bundle:
    """Another graph in the bundle, as honest as the first by its checksums."""
    manifest = Bundle.open(folder).manifest
    graph = manifest.graphs[name]
    file = folder / graph.model.file
    model = onnx.load(file)
    change(model)
    onnx.save(model, file)
    changed = graph.model_copy(update={"model": describe(file)})
    write_manifest(folder, manifest.model_copy(update={"graphs": {**manifest.graphs, name: changed}}))
    return Bundle.open(folder)


def ignore_the_mask(model: onnx.ModelProto) -> None:
    """What bfloat16 with an additive mask does to attention: every slot is seen, filled or not."""
    inputs = {value.name for value in model.graph.input}
    if "mask" in inputs:
        zero = numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "no_mask")
        model.graph.initializer.append(zero)
        for node in model.graph.node:
            node.input[:] = ["no_mask" if name == "mask" else name for name in node.input]
    else:
        tokens = next(v for v in model.graph.input if v.name == "k_0").type.tensor_type.shape.dim[2].dim_value
        model.graph.initializer.append(numpy_helper.from_array(np.array([tokens], np.int64), "all"))
        for node in model.graph.node:
            node.input[:] = ["all" if name == "kv_len" else name for name in node.input]


def scale_a_weight(model: onnx.ModelProto) -> None:
    """A matrix product that comes out a little too large."""
    weights = [w for w in model.graph.initializer if len(w.dims) >= 2 and np.prod(w.dims) > 500]
    chosen = weights[len(weights) // 2]
    chosen.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(chosen) * np.float16(1.5), chosen.name))


def scale_every_weight(model: onnx.ModelProto) -> None:
    for weight in model.graph.initializer:
        if len(weight.dims) >= 2 and np.prod(weight.dims) > 500:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.5), weight.name))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("graph", "fault", "what"),
    [
        ("step", ignore_the_mask, "latents"),
        ("step", scale_a_weight, "latents"),
        ("decode", scale_every_weight, "frames"),
    ],
)
def test_wrong_engines_never_stream(copied: Path, backend: str, graph: str, fault: Any, what: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    bundle = alter(copied, graph, fault)
    engines = open_backend(backend, EngineOptions(threads=1))
    with pytest.raises(UserError) as caught:
        Stream(bundle, backend=engines)
    line = str(caught.value)
    for word in (str(copied), backend, "at most", "--unverified"):
        assert word in line
    off = {"latents": r"latents off by ([\d.e+-]+)", "frames": r"frames by ([\d.e+-]+)"}
    found = {name: float(re.findall(words, line)[0]) for name, words in off.items()}
    bound = proof.BOUNDS["float"]
    assert found["latents"] > bound.latents if what == "latents" else found["frames"] > bound.frames
    assert what == "latents" or found["latents"] <= bound.latents
    assert "\n" not in line
    assert not (copied / "engines" / proof.FILE).exists()
    with Stream(bundle, backend=engines, verify=False) as stream:
        assert stream.next_chunk().frames.size


def bfloat16() -> EngineOptions:
    """Options for OpenVINO in bfloat16, where this machine has it."""
    pytest.importorskip("openvino")
    from everframe.engines.openvino import precisions

    found = EngineOptions(threads=1, precision="bf16")
    if not precisions(found):
        pytest.skip("no CPU with bfloat16")
    return found


def test_bfloat16_holds(copied: Path) -> None:
    bundle = Bundle.open(copied)
    with Stream(bundle, seed=3, backend=open_backend("openvino", bfloat16())) as stream:
        stream.next_chunk()
    (record,) = json.loads((copied / "engines" / proof.FILE).read_text()).values()
    assert record["computing"]["precision"] == "bf16"
    # Rounded to eight bits at every layer: neither float32's exactness, nor a tenth of what is allowed.
    assert 1e-4 < max(record["deviation"]["first"], record["deviation"]["late"]) < 0.05


def test_the_mask_that_bfloat16_ignores_never_streams(
    portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's own fault, while the installed one has it: an additive mask [1, 1, 1, S], not spread over the queries."""
    engines = open_backend("openvino", bfloat16())
    copied = shutil.copytree(portable_path, tmp_path / portable_path.name, ignore=shutil.ignore_patterns("engines"))
    from everframe.engines import openvino as ours

    monkeypatch.setattr(ours, "spread_mask", lambda model, masked: None)
    bundle = Bundle.open(copied)
    with Stream(bundle, backend=engines, verify=False) as stream:
        shown = proof.prove(stream._loop, bundle, stream.bank, engines.computes(bundle))
    if shown.holds:
        pytest.skip(f"{shown.computing.backend} has this fault no more")
    assert shown.deviation.latents > proof.BOUNDS["half"].latents
    with pytest.raises(UserError, match="do not compute what the bundle means"):
        Stream(bundle, backend=engines)


def test_what_is_not_finite_is_wrong(copied: Path) -> None:
    def fault(model: onnx.ModelProto) -> None:
        weights = [w for w in model.graph.initializer if len(w.dims) >= 2 and np.prod(w.dims) > 500]
        broken = numpy_helper.to_array(weights[0]).copy()
        broken.reshape(-1)[7] = np.nan
        weights[0].CopyFrom(numpy_helper.from_array(broken, weights[0].name))

    with pytest.raises(UserError, match="latents off by nan"):
        Stream(alter(copied, "step", fault))


def test_proven_once_for_the_same_files_and_versions(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(copied)
    Stream(bundle).close()
    asked: list[str] = []
    real = proof.prove
    monkeypatch.setattr(proof, "prove", lambda *args: (asked.append(str(args[3])), real(*args))[1])
    Stream(bundle).close()
    assert not asked
    backend = open_backend("onnxruntime", EngineOptions())
    known = backend.computes(bundle)
    monkeypatch.setattr(backend, "computes", lambda bundle: replace(known, backend="onnxruntime 99"))
    Stream(bundle, backend=backend).close()
    assert asked == [str(replace(known, backend="onnxruntime 99"))]
    record = copied / "engines" / proof.FILE
    assert len(json.loads(record.read_text())) == 2
    record.write_text("[1, 2")  # a record that nobody can read proves nothing
    Stream(bundle).close()
    assert len(asked) == 2


def test_a_bundle_that_cannot_be_written(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record goes to the user's cache folder. (A root user may write everywhere, so that is what is pretended.)"""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != copied and real(path, mode))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Stream(Bundle.open(copied)).close()
    assert not (copied / "engines").exists()
    assert len(list((tmp_path / "cache").rglob(proof.FILE))) == 1


def never_turn(model: onnx.ModelProto) -> None:
    """What an engine does that takes the sinks' tables for constants: they stay where they were committed."""
    shape = [d.dim_value for d in next(v for v in model.graph.input if v.name == "sink_cos").type.tensor_type.shape.dim]
    for name, value in (("sink_cos", 1.0), ("sink_sin", 0.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.full(shape, value, np.float32), f"no_{name}"))
        for node in model.graph.node:
            node.input[:] = [f"no_{name}" if one == name else one for one in node.input]


@pytest.mark.parametrize(
    ("form", "distance"),
    [
        ("in-place", 9),
        ("portable", 9),
        *(pytest.param(f, 15, marks=pytest.mark.slow) for f in ("in-place", "portable")),
    ],
)
def test_sinks_that_do_not_follow_are_seen(
    following_paths: dict[str, Path], checkpoint: Path, tmp_path: Path, form: Literal["in-place"], distance: int
) -> None:
    """At whatever distance they are to stand: the window of 12 alone never leaves sinks behind that stand at 15."""
    path = tmp_path / "follow.everframe"
    if distance == 9:
        shutil.copytree(following_paths[form], path, ignore=shutil.ignore_patterns("engines"))
    else:
        changes = Overrides(form=form, rope="relative", sink_distance=distance)
        export_checkpoint(checkpoint, path, changes, chunks=6, force=False)
    with Stream(Bundle.open(path)) as stream:
        assert stream.next_chunk().frames.size
    assert Reference.read(Bundle.open(path)).turn[0] > 1000
    wrong = alter(path, "step", never_turn)
    with pytest.raises(UserError, match="do not compute what the bundle means"):
        Stream(wrong)


def test_a_reference_of_before_holds_as_it_did(following_paths: dict[str, Path], tmp_path: Path) -> None:
    """Earlier versions turned sinks for the late chunk by as much as the window had left them behind."""
    path = tmp_path / "before.everframe"
    shutil.copytree(following_paths["portable"], path, ignore=shutil.ignore_patterns("engines"))
    backend, bundle = open_backend("onnxruntime", EngineOptions()), Bundle.open(path)
    loop = Passes(backend, bundle, "step", lanes=1)
    old = observe(loop, bundle, PromptBank(bundle, backend), replace(Reference.read(bundle), turn=np.array([3])))
    save_file({k: np.ascontiguousarray(v) for k, v in vars(old).items() if k != "turn"}, path / FILE)
    write_manifest(path, bundle.manifest.model_copy(update={"reference": describe(path / FILE)}))
    assert Reference.read(Bundle.open(path)).turn[0] == 3
    with Stream(Bundle.open(path)) as stream:
        assert stream.next_chunk().frames.size


def test_a_bundle_without_a_reference_streams(copied: Path) -> None:
    raw = json.loads((copied / MANIFEST).read_text())
    del raw["reference"]
    (copied / MANIFEST).write_text(json.dumps(raw))
    (copied / FILE).unlink()
    with Stream(Bundle.open(copied)) as stream:
        assert stream.next_chunk().frames.size


def test_a_reference_of_another_shape(copied: Path) -> None:
    kept = Reference.read(Bundle.open(copied))
    assert kept is not None
    replace(kept, first=kept.first[:, :1]).write(copied / FILE)
    raw = json.loads((copied / MANIFEST).read_text())
    raw["reference"] = describe(copied / FILE).model_dump()
    (copied / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(UserError, match=f"{FILE}: first"):
        Stream(Bundle.open(copied))


def test_weights_in_a_file_of_their_own_count(copied: Path) -> None:
    """The graph's own file stays the same when only they change."""
    from everframe.engines.bundle import FileRef, Graph

    ref = FileRef(file="step.onnx", bytes=1, sha256="a" * 64)
    weights = [FileRef(file="weights.data", bytes=1, sha256=letter * 64) for letter in "bc"]
    alone = Graph(model=ref, inputs=[], outputs=[])
    digests = {
        graph.digest for graph in (alone, *(Graph(model=ref, data=[one], inputs=[], outputs=[]) for one in weights))
    }
    assert len(digests) == 3
    assert alone.digest == ref.sha256


@pytest.mark.parametrize("field", ["first", "late", "first_frames", "late_frames"])
def test_one_figure_that_is_not_finite_is_enough(field: str) -> None:
    right = Deviation(0.0, 0.0, 0.0, 0.0)
    computing = Computing("any", "CPU", "f32")
    assert proof.Proof(computing, right, proof.BOUNDS["float"]).holds
    assert not proof.Proof(computing, replace(right, **{field: float("nan")}), proof.BOUNDS["float"]).holds


def test_deviation_is_relative_to_the_reference() -> None:
    rng = np.random.default_rng(0)
    first = rng.standard_normal((8, 3, 4, 8)).astype(np.float16)
    late, frames = rng.standard_normal(100).astype(np.float32), np.full(50, 100, np.uint8)
    kept = Reference(first, late, frames, frames, np.array([0]))
    found = Reference(first * np.float16(1.5), late * np.float32(1.1), frames + np.uint8(2), frames, np.array([0]))
    assert np.allclose(astuple(deviation(found, kept)), (0.5, 0.1, 2.0, 0.0), atol=1e-3)
