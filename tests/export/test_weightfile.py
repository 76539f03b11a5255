"""Weights that go to their file as they are made, and are shared by the graphs of a bundle."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from everframe.calibration.calibrate import Settings, finish, quantised_graphs
from everframe.calibration.linears import find_linears, find_matching
from everframe.calibration.quantisedfile import QuantisedFile
from everframe.calibration.quantize import Range, quantise
from everframe.engines.bundle import Bundle, verify
from everframe.export import onnxfile, weightfile
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.export.lazy import Lazy, changed, release, renamed, shape_of
from everframe.export.sources import fit
from everframe.export.texts import original_names
from everframe.export.wanexport import export_wan
from everframe.export.weightfile import WeightFile
from everframe.runtime import Stream

from wanfiles import source


def test_a_matrix_lives_in_the_file_as_a_graph_wants_it(tmp_path: Path) -> None:
    weights = WeightFile(tmp_path / "w")
    given = torch.randn(1024, 512).half()
    view = weights.put(given)
    assert torch.equal(view, given)
    assert view.data_ptr() != given.data_ptr()
    stored = np.fromfile(tmp_path / "w", np.float16).reshape(512, 1024)
    assert (stored == given.t().numpy()).all()
    small = torch.randn(8, 8)
    assert weights.put(small) is small
    again = weights.put(torch.ones(700, 1024))
    assert torch.equal(again, torch.ones(700, 1024))
    assert torch.equal(view, given)  # what came first is not written over


@pytest.fixture(scope="module")
def large(wan_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model, exported as a large one is."""
    out = tmp_path_factory.mktemp("large") / "large.everframe"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxfile, "EMBED_UP_TO", 0)
        patch.setattr(weightfile, "LARGE", 1024)
        export_wan(source(wan_home, vae=wan_home / "taew2_1.pth"), out, chunks=8, force=False)
    assert list(out.parent.iterdir()) == [out]
    return out


@pytest.mark.slow
def test_a_large_export_is_the_same_model(large: Path, wan_home: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.everframe"
    export_wan(source(wan_home, vae=wan_home / "taew2_1.pth"), small, chunks=0, force=False)
    bundle = Bundle.open(large)
    for name in ("step", "recache", "prompt"):
        assert [ref.file for ref in bundle.manifest.graphs[name].data] == [weightfile.SHARED], name
    state = onnx.load(small / "step.onnx").graph.initializer
    matrices = sum(len(t.raw_data) for t in state if len(t.dims) == 2 and t.dims[0] >= 64)
    assert (large / weightfile.SHARED).stat().st_size < 2.2 * matrices  # each once, though three graphs have them
    with Stream(bundle, seed=3) as a, Stream(Bundle.open(small), seed=3) as b:
        for _ in range(6):
            assert np.abs(a.next_chunk().latent - b.next_chunk().latent).max() < 1e-4


@pytest.mark.slow
def test_quantised_tensor_by_tensor(large: Path, tmp_path: Path) -> None:
    """The same graph, whether its weights are kept in memory or written as they are made."""
    kept, written = (onnx.load(large / "step.onnx", load_external_data=False) for _ in range(2))
    linears = find_linears(kept, 2)
    found = {linear.key: Range(4.0, None) for linear in linears}
    quantise(kept, linears, large, "int8", found)
    data = QuantisedFile(tmp_path / "step.onnx.data")
    quantise(written, linears, large, "int8", found, data)
    onnx.save(written, tmp_path / "step.onnx")
    assert (tmp_path / "step.onnx").stat().st_size < 0.5 * data.file.stat().st_size
    whole = onnx.load(tmp_path / "step.onnx")
    assert [n.op_type for n in kept.graph.node] == [n.op_type for n in whole.graph.node]
    for a, b in zip(kept.graph.initializer, whole.graph.initializer, strict=True):
        assert a.name == b.name
        assert (numpy_helper.to_array(a) == numpy_helper.to_array(b)).all(), a.name


@pytest.mark.slow
def test_a_quantised_bundle_carries_its_weights_once(large: Path, tmp_path: Path) -> None:
    """The prompt graph keeps its own in half precision, and none of those that are quantised."""
    source = Bundle.open(large)
    models = {"step": onnx.load(source.graph_path("step"), load_external_data=False)}
    linears = find_linears(models["step"], 2)
    settings = Settings(precision="int8-weights")
    graphs = quantised_graphs(source, tmp_path, models, linears, [], {}, settings)
    made = finish(source, tmp_path, graphs, settings)
    opened = Bundle.open(made.path)
    for ref in opened.manifest.files():
        verify(opened.path / ref.file, ref)
    names = {"step", "recache", "prompt"}
    assert {ref.file for name in names for ref in opened.manifest.graphs[name].data} == {weightfile.SHARED}
    whole = {name: onnx.load(opened.graph_path(name)) for name in names}
    places = {
        (place["offset"], place["length"])
        for name in names
        for t in onnx.load(opened.graph_path(name), load_external_data=False).graph.initializer
        for place in [{entry.key: entry.value for entry in t.external_data}]
        if place
    }
    before = {t.name: numpy_helper.to_array(t) for t in onnx.load(source.graph_path("prompt")).graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in whole["prompt"].graph.initializer}
    assert all((after[name] == values).all() for name, values in before.items())
    assert len(after) == len(before)
    held = sum(int(length) for _, length in places)
    assert (made.path / weightfile.SHARED).stat().st_size < held + 4096 * len(places)  # nothing that no graph reads
    matrices = {t.name: t for t in whole["step"].graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert len(matrices) == 16
    twins = [t for t in whole["recache"].graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(twins) == 10  # of its last block, keys and values only
    assert held < 1.1 * sum(len(t.raw_data) for m in (whole["step"], whole["prompt"]) for t in m.graph.initializer)


def test_lazy_states_make_a_tensor_when_it_is_asked_for() -> None:
    asked = []

    def twice(value: torch.Tensor) -> torch.Tensor:
        asked.append(len(value))
        return 2 * value

    state = changed({"a": torch.ones(3), "b": torch.ones(4)}, {"a": twice})
    state = renamed(state, str.upper)
    assert isinstance(state, Lazy)
    assert (list(state), len(state)) == (["A", "B"], 2)
    assert shape_of(state, "A") == (3,)
    assert asked == []
    assert state["A"].tolist() == [2, 2, 2]
    assert asked == [3]
    more = changed(state, {"A": twice})
    assert more["A"].tolist() == [4, 4, 4]
    asked.clear()
    named = original_names(changed({"token_embedding.weight": torch.ones(5, 2)}, {"token_embedding.weight": twice}))
    assert ("A" in more, "a" in more, "shared.weight" in named) == (True, False, True)
    assert (shape_of(named, "shared.weight"), asked) == ((5, 2), [])


def test_a_model_is_filled_with_tensors_that_are_made_once(tmp_path: Path) -> None:
    """Each costs its fp8 being widened, and all LoRAs being merged in."""
    asked: list[int] = []

    def twice(value: torch.Tensor) -> torch.Tensor:
        asked.append(value.ndim)
        return 2 * value

    given = torch.nn.Linear(3, 2).state_dict()
    with torch.device("meta"):
        model = torch.nn.Linear(3, 2)
    fit(model, changed(given, dict.fromkeys(given, twice)), tmp_path)
    assert sorted(asked) == [1, 2]
    assert all(torch.equal(value, 2 * given[name]) for name, value in model.state_dict().items())


def test_graphs_of_one_model_keep_their_weights_in_one_way(checkpoint: Path, bundle_path: Path, tmp_path: Path) -> None:
    """A step graph that is just large, and a recache graph, which has less of the last block, that is not by itself:
    calibrate has to find the layers of one in the other."""
    limit = (bundle_path / "step.onnx").stat().st_size * 19 // 20
    assert (bundle_path / "recache.onnx").stat().st_size < limit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxfile, "EMBED_UP_TO", limit)
        export_checkpoint(checkpoint, tmp_path / "x.everframe", Overrides(), chunks=0, force=False)
    bundle = Bundle.open(tmp_path / "x.everframe")
    assert [bool(bundle.manifest.graphs[name].data) for name in ("step", "recache")] == [True, True]
    step, recache = (onnx.load(bundle.graph_path(n), load_external_data=False) for n in ("step", "recache"))
    assert len(find_matching(recache, find_linears(step, 2), step)) == 10


def resident(file: Path) -> int:
    """Bytes of a mapped file that stand in this process' memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(file)))
    return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1]) << 10


def test_released_pages_come_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
    with open(tmp_path / "f", "wb") as f:
        values.tofile(f)
        os.fsync(f.fileno())  # a page that is not yet on the disk cannot go
    mapped = torch.from_file(str(tmp_path / "f"), size=1 << 16)
    anonymous = torch.from_numpy(values.copy())
    for tensor in (mapped, anonymous):
        assert (tensor.numpy() == values).all()
        release(tensor)
        if tensor is mapped:
            assert resident(tmp_path / "f") == 0
        assert (tensor.numpy() == values).all()
    assert resident(tmp_path / "f") >= 4 << 16
