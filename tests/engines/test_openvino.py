"""OpenVINO beside ONNX Runtime: the same frames from both forms, while the ring fills and long after."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from everframe.engines import openvino as module
from everframe.engines.base import EngineOptions
from everframe.engines.bundle import MANIFEST, Bundle, read_manifest, write_manifest
from everframe.engines.choose import open_backend
from everframe.engines.errors import UserError
from everframe.engines.openvino import OvBackend
from everframe.runtime import Chunk, Stream, Transition

from helpers import PROMPTS

pytest.importorskip("openvino")

DEVICE = os.environ.get("EVERFRAME_OPENVINO_DEVICE", "cpu")  # make test-openvino-gpu sets it
CLOSE = 1e-4 if DEVICE == "cpu" else 2e-3  # of x0's largest value, in float32

CHANGES: dict[int, tuple[str, Transition]] = {
    2: (PROMPTS[1], "swap"),
    5: (PROMPTS[2], "smooth"),
    7: (PROMPTS[0], "flush"),
    9: (PROMPTS[1], "cut"),
}


def options(threads: int = 1, backend: str = "openvino") -> EngineOptions:
    own = {"device": DEVICE, "precision": "f32"} if backend == "openvino" else {}
    return EngineOptions(threads=threads, **own)


def chunks(bundle: Bundle, backend: str, overlap: bool, threads: int = 1) -> list[Chunk]:
    made = []
    with Stream(bundle, seed=5, overlap=overlap, backend=open_backend(backend, options(threads, backend))) as stream:
        for i in range(14):
            if i in CHANGES:
                stream.set_prompt(*CHANGES[i])
            made.append(stream.next_chunk())
    return made


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("form", ["in-place", "portable"])
def test_the_same_frames_as_onnx_runtime(bundle_path: Path, portable_path: Path, form: str, overlap: bool) -> None:
    bundle = Bundle.open(bundle_path if form == "in-place" else portable_path)
    threads = 2 if overlap else 1
    ours, theirs = (chunks(bundle, name, overlap, threads) for name in ("openvino", "onnxruntime"))
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.prompt == b.prompt
        assert np.abs(a.latent - b.latent).max() <= CLOSE * np.abs(b.latent).max(), i
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1, i


def test_streams_share_engines(bundle_path: Path) -> None:
    bundle, backend = Bundle.open(bundle_path), OvBackend(options())
    with Stream(bundle, seed=1, backend=backend) as a, Stream(bundle, seed=2, backend=backend) as b:
        assert len(backend._engines) == 4  # step, prompt, decode, recache: once for both
        mixed = [(a.next_chunk().frames, b.next_chunk().frames) for _ in range(6)]
    for seed in (1, 2):
        with Stream(bundle, seed=seed, backend=open_backend("openvino", options())) as alone:
            for frames in mixed:
                assert (alone.next_chunk().frames == frames[seed - 1]).all()


def test_large_weights_stand_in_memory_once_again_after_a_cut(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the ring fills, the step graph has a second compilation, with a mask."""
    monkeypatch.setattr(module, "KEPT", 0)
    bundle, backend = Bundle.open(bundle_path), OvBackend(options())
    with Stream(bundle, seed=1, backend=backend) as stream:
        for change in (None, "cut", "flush"):
            if change is not None:
                stream.set_prompt(PROMPTS[1], change)
            for _ in range(8):
                stream.next_chunk()
            gone(backend, change)


def gone(backend: OvBackend, change: str | None) -> None:
    for engine in backend._engines._loaded.values():
        assert engine._filling is None, change
        assert not any(True in one.requests for one in engine.passes)


def test_a_change_chunk_by_chunk_leaves_no_second_compilation(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed again stands in a ring that counts fewer slots for a while, though nothing is read of them later."""
    monkeypatch.setattr(module, "KEPT", 0)
    path = shutil.copytree(bundle_path, tmp_path / "film.everframe", ignore=shutil.ignore_patterns("engines"))
    manifest = read_manifest(path / MANIFEST)
    graphs = {name: graph for name, graph in manifest.graphs.items() if name != "recache"}
    write_manifest(path, manifest.model_copy(update={"recache": "chunks", "graphs": graphs}))
    backend = OvBackend(options())
    with Stream(Bundle.open(path), seed=1, backend=backend) as stream:
        for change in (None, "smooth"):
            if change is not None:
                stream.set_prompt(PROMPTS[1], change)
            for _ in range(8):
                stream.next_chunk()
            gone(backend, change)


@pytest.fixture
def fresh(bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle that OpenVINO has not compiled yet."""
    return shutil.copytree(bundle_path, tmp_path / "film.everframe", ignore=shutil.ignore_patterns("engines"))


def first_frames(path: Path) -> np.ndarray:
    """Of a stream past its full ring."""
    with Stream(Bundle.open(path), seed=2, backend=open_backend("openvino", options())) as stream:
        return np.concatenate([stream.next_chunk().frames for _ in range(6)])


def test_compiled_models_are_kept(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = first_frames(fresh)
    kept = {file: file.stat().st_mtime_ns for file in (fresh / "engines").glob("openvino-*.blob")}
    names = sorted(file.name.split("-")[1] for file in kept)
    assert [name for name in names if name != "recache"] == ["decode", "prompt", "step", "step"]  # in the background
    from everframe.engines import openvino

    with monkeypatch.context() as without:
        without.setattr(openvino, "read_graph", None)  # whoever reads the graph again falls over it
        again = first_frames(fresh)
    assert (again == made).all()
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_a_kept_model_that_is_damaged_is_made_anew(fresh: Path) -> None:
    made = first_frames(fresh)
    files = sorted((fresh / "engines").glob("openvino-*.blob"))
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert (first_frames(fresh) == made).all()
    for file in (file for file in files if "recache" not in file.name):  # whole again; those are made in the background
        assert hashlib.sha256(file.read_bytes()[:-32]).digest() == file.read_bytes()[-32:]
    files[0].write_bytes(b"")
    assert (first_frames(fresh) == made).all()


def test_of_other_versions_only_the_newest_is_kept(fresh: Path) -> None:
    first_frames(fresh)
    one = next((fresh / "engines").glob("openvino-decode-*.blob"))
    old = one.with_name(f"{one.stem.rpartition('-')[0]}-0123456789abcdef.blob")
    one.rename(old)
    first_frames(fresh)
    assert one.exists()
    assert not old.exists()


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (EngineOptions(device="gpu7"), ["--device", "gpu7", "CPU"]),
        (EngineOptions(precision="int3"), ["--precision", "int3", "bf16"]),
        (EngineOptions(threads=10**6), ["threads"]),
    ],
)
def test_what_is_not_there(wanted: EngineOptions, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        open_backend("openvino", wanted)
    for word in words:
        assert word in str(caught.value)
