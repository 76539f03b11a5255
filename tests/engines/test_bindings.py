"""The TensorRT road against the names of real bindings (bindings/*.json): what each version has, and what it has not."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from everframe.engines import store
from everframe.engines.build import build_engines
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.tensorrt import TrtBackend, stream_bytes
from everframe.engines.trtbuild import BuildOptions
from everframe.export.post import add
from everframe.runtime import Stream, proof
from everframe.runtime.choice import usable
from everframe.runtime.state import load_state, save_state

from postfiles import smooth_file, upscale_file
from stand_in import BACKEND, LISTS, NAMES, StandIn, built, copied


def listed(name: str) -> dict:
    return json.loads((LISTS / f"{name}.json").read_text())["names"]


def test_the_list_is_what_the_installed_bindings_have() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    names = listed("rtx-1.7")
    if not trt.__version__.startswith("1.7."):
        pytest.skip("another version is installed")
    for name, facts in names.items():
        thing = getattr(trt, name)
        if "values" in facts:
            assert {n: int(v) for n, v in thing.__members__.items()} == facts["values"]
        elif "has" in facts:
            assert set(facts["has"]) <= set(dir(thing)), name


def test_what_sets_the_versions_apart() -> None:
    """The three facts that the code decides by."""
    has = {name: {k: set(v.get("has", v.get("values", ()))) for k, v in listed(name).items()} for name in NAMES}
    assert {n for n in NAMES if "create_runtime_config" in has[n]["ICudaEngine"]} == {"classic-11.4", "rtx-1.7"}
    assert {n for n in NAMES if "create_runtime_cache" in has[n].get("IRuntimeConfig", ())} == {"rtx-1.7"}
    assert {n for n in NAMES if "ATTENTION_INPUT" in has[n]["LayerType"]} == {"classic-11.4", "rtx-1.7"}


def test_a_name_that_the_real_one_lacks_is_an_error_here() -> None:
    old, new = (StandIn(name).module for name in ("classic-10.3", "rtx-1.7"))
    with pytest.raises(AttributeError):
        old.ICudaEngine.create_runtime_config  # noqa: B018
    with pytest.raises(AttributeError):
        old.IRuntimeConfig  # noqa: B018
    with pytest.raises(AttributeError):
        new.ICudaEngine().get_binding_index = 1
    with pytest.raises(NotImplementedError):
        new.ICudaEngine().create_engine_inspector()


@pytest.mark.parametrize("name", ["classic-10.3", "classic-10.7"])
def test_the_in_place_form_is_refused_before_11(
    name: str, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand = StandIn(name)
    stand.install(monkeypatch)
    with pytest.raises(UserError, match=r"takes from 11\.1 on, and this is .*--form portable"):
        build_engines(copied(stand, bundle_path, tmp_path), BuildOptions(backend="tensorrt"))


def test_graphs_that_do_not_run_are_not_compiled(
    portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(portable_path, tmp_path / "off.everframe"))
    add(source, upscale_file(tmp_path / "u.onnx"), smooth_file(tmp_path / "s.onnx"), off=True)
    _, folder = built("classic-11.4", source, tmp_path / "built", monkeypatch)
    bundle, versions = Bundle.open(folder), {"tensorrt": TrtBackend("tensorrt").trt.__version__}
    (plain,) = store.stored(bundle, versions)
    assert plain.problem is None
    assert plain.record is not None
    assert not {"smooth", "upscale"} & set(plain.record.graphs)
    backend = TrtBackend("tensorrt")
    assert backend._found(bundle).folder == plain.folder
    with pytest.raises(
        UserError, match="no engine for smooth, upscale"
    ):  # what was chosen is not for all choices of post
        backend._found(bundle.with_post("all"))
    (lacking,) = store.stored(bundle.with_post("all"), versions)
    assert lacking.problem == "no engine for smooth, upscale: everframe build --post builds them"
    build_engines(folder, BuildOptions(backend="tensorrt"), post="upscale")
    (large,) = store.stored(bundle.with_post("upscale"), versions)
    assert large.problem is None
    assert store.stored(bundle, versions)[0].problem is None  # what it has beyond that harms nobody


def test_weights_that_do_not_fit_are_streamed_and_not_recorded(
    portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The budget leaves room for ring, states and scratch memory, which come later: a stream starts on a card that has just
    enough for it and half of its weights."""
    stand, folder = built("classic-11.4", portable_path, tmp_path, monkeypatch, weight_streaming=True)
    bundle, free = Bundle.open(folder), stand.runtime.free
    weights = sum((folder / f"{name}.onnx").stat().st_size for name in set(bundle.manifest.graphs) - {"probe"})
    with Stream(bundle, seed=1, backend=TrtBackend("tensorrt")) as gpu:
        for _ in range(4):
            gpu.next_chunk()
        assert gpu.not_one_launch is None
        tensors = free - stand.runtime.free - weights
    del gpu
    gc.collect()
    assert tensors <= stream_bytes(bundle) + 2 * 8192 < 3 * tensors
    for memory in (stream_bytes(bundle) + weights // 2 + 4 * 8192, tensors + 8192):
        stand.runtime.free, stand.streams_all = memory, False
        backend = TrtBackend("tensorrt")
        with Stream(bundle, seed=1) as cpu, Stream(bundle, seed=1, backend=backend) as gpu:
            for _ in range(4):
                assert np.abs(cpu.next_chunk().latent - gpu.next_chunk().latent).max() < 0.1
            assert gpu.not_one_launch == "TensorRT: an engine that streams its weights cannot be recorded"
            kept = sum(engine.engine.weight_streaming_budget_v2 for engine in backend._engines._loaded.values())
        assert kept < weights
        assert (kept > weights // 8) == (memory > tensors + 8192)
        del gpu, backend
        gc.collect()


def test_a_stream_that_cannot_be_captured(portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand, folder = built("rtx-1.7", portable_path, tmp_path, monkeypatch)
    stand.capturable = False
    with Stream(Bundle.open(folder), backend=TrtBackend("tensorrt-rtx")) as stream:
        for _ in range(3):
            stream.next_chunk()
        assert "cannot be recorded" in (stream.not_one_launch or "")


def test_an_engine_that_this_card_refuses(portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX itself says why."""
    stand, folder = built("rtx-1.7", portable_path, tmp_path, monkeypatch)
    why = stand.module.EngineInvalidityDiagnostics.UNSUPPORTED_CC  # type: ignore[attr-defined]
    runtime = stand.module.Runtime  # type: ignore[attr-defined]
    monkeypatch.setattr(runtime, "deserialize_cuda_engine", lambda self, content: None)
    monkeypatch.setattr(runtime, "get_engine_validity", lambda self, content: (2, int(why)))
    with pytest.raises(UserError, match="cannot load it: UNSUPPORTED_CC"):
        Stream(Bundle.open(folder), backend=TrtBackend("tensorrt-rtx"))


def test_bfloat16_goes_on_after_a_restart(portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _stand, folder = built("rtx-1.7", portable_path, tmp_path, monkeypatch, precision="bf16")
    with Stream(Bundle.open(folder), seed=5, backend=TrtBackend("tensorrt-rtx")) as stream:
        for _ in range(4):
            stream.next_chunk()
        assert stream._loop.keys[0].dtype.name == "bfloat16"
        save_state(stream, tmp_path / "s")
        expected = [stream.next_chunk().frames for _ in range(3)]
    with Stream(Bundle.open(folder), seed=5, backend=TrtBackend("tensorrt-rtx")) as stream:
        load_state(stream, tmp_path / "s")
        assert all((stream.next_chunk().frames == frames).all() for frames in expected)


def test_a_lean_runtime_is_allowed_to_run(portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version-compatible plan carries code for the host, which TensorRT refuses unless it is told. It is told for what was
    built here, not because a bundle's own record says what the plan is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "mine"))
    stand, folder = built("classic-11.4", portable_path, tmp_path, monkeypatch, version_compatible=True)
    with Stream(Bundle.open(folder), backend=TrtBackend("tensorrt")) as stream:
        assert np.isfinite(stream.next_chunk().latent).all()
        assert stand.host_code
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "somebody else's"))
    stand.host_code = False
    backend = TrtBackend("tensorrt")
    with pytest.raises(UserError, match=r"carries code for the host .* EVERFRAME_HOST_CODE=allow"):
        Stream(Bundle.open(folder), backend=backend)
    assert not stand.host_code
    monkeypatch.setenv("EVERFRAME_HOST_CODE", "allow")
    with Stream(Bundle.open(folder), backend=backend) as stream:
        assert np.isfinite(stream.next_chunk().latent).all()
    assert not backend._runtime.engine_host_code_allowed  # not for the next engine


def test_engines_built_otherwise_are_proven_anew(
    portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same bundle, same versions, same card: another build is another program."""
    proofs: list[str] = []
    real = proof.prove
    monkeypatch.setattr(proof, "prove", lambda *args: (proofs.append(args[3].engines), real(*args))[1])
    _stand, folder = built("classic-11.4", portable_path, tmp_path, monkeypatch, optimization_level=1)
    for expected in (1, 1):
        Stream(Bundle.open(folder), backend=TrtBackend("tensorrt")).close()
        assert len(proofs) == expected
    shutil.rmtree(next((folder / store.FOLDER).glob("*/")))
    build_engines(folder, BuildOptions(backend="tensorrt", optimization_level=2))
    for expected in (2, 2):
        Stream(Bundle.open(folder), backend=TrtBackend("tensorrt")).close()
        assert len(proofs) == expected
    assert proofs[0] != proofs[1]


def test_another_bundle_in_the_same_place(portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's backend outlives the bundle that it began with: engines of the one before are not run for it."""
    _stand, folder = built("classic-11.4", portable_path, tmp_path, monkeypatch)
    bundle, backend = Bundle.open(folder), TrtBackend("tensorrt")
    before = backend.load(bundle, "prompt")
    assert backend.load(bundle, "prompt") is before
    graph = bundle.manifest.graphs["step"]
    other = graph.model_copy(update={"model": graph.model.model_copy(update={"sha256": "0" * 64})})
    later = bundle.manifest.model_copy(update={"graphs": bundle.manifest.graphs | {"step": other}})
    with pytest.raises(UserError, match="step: the graph has changed since"):
        backend.load(Bundle(folder, later), "prompt")


def test_engines_of_another_lowering(portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier version compiled may be of graphs that were rewritten in another way."""
    _stand, folder = built("classic-11.4", portable_path, tmp_path, monkeypatch)
    bundle, versions = Bundle.open(folder), {"tensorrt": TrtBackend("tensorrt").trt.__version__}
    before = store.fingerprint(bundle, "1", {})
    monkeypatch.setattr(store, "LOWERING", store.LOWERING + 1)
    assert store.fingerprint(bundle, "1", {}) != before
    (found,) = store.stored(bundle, versions)
    assert found.problem == "built by an everframe that rewrites graphs for TensorRT in another way"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_streams_leave_nothing(
    name: str, portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event, graph and piece of memory that is made is given back, and contexts before their caches."""
    stand, folder = built(name, portable_path, tmp_path, monkeypatch)
    bundle, free = Bundle.open(folder), stand.runtime.free
    Stream(bundle).close()  # ONNX Runtime's proof is not what is counted
    backend = TrtBackend(BACKEND[name])
    left = []
    for _ in range(100 if name == "rtx-1.7" else 10):
        with Stream(bundle, backend=backend) as stream:
            for _ in range(3):
                stream.next_chunk()
        del stream
        left.append((stand.runtime.free, len(stand.runtime.alive)))
    assert len(set(left[1:])) == 1
    del backend
    gc.collect()
    assert (stand.runtime.free, len(stand.runtime.alive)) == (free, 0)
    assert not stand.faults


def test_engines_of_another_card(portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classic TensorRT builds for the card that is there, which is on record; older engines of this card still count."""
    stand, folder = built("classic-11.4", portable_path, tmp_path, monkeypatch)
    stand.runtime.capability = (8, 7)
    with pytest.raises(UserError, match="built for sm_90, this card is sm_87"):
        Stream(Bundle.open(folder), backend=TrtBackend("tensorrt"))
    (record,) = (e.record for e in store.stored(Bundle.open(folder), {}) if e.record)
    for capability, fits in (((8, 7), False), ((9, 0), True)):
        stand.runtime.capability = capability
        assert bool(usable(Bundle.open(folder), {"tensorrt": record.version}, whole=True)) is fits  # for `auto` to time
    stand.runtime.capability = (8, 7)
    build_engines(folder, BuildOptions(backend="tensorrt"))
    for capability in ((8, 7), (9, 0)):
        stand.runtime.capability = capability
        with Stream(Bundle.open(folder), backend=TrtBackend("tensorrt")) as stream:
            assert np.isfinite(stream.next_chunk().latent).all()


def test_only_the_engines_that_are_used_are_read(
    portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may be gigabytes; one that is damaged is passed over for an older one that is whole."""
    stand = StandIn("classic-11.4")
    stand.install(monkeypatch)
    folder = copied(stand, portable_path, tmp_path)
    old, new = (build_engines(folder, BuildOptions(backend="tensorrt", optimization_level=level)) for level in (1, 2))
    record = old.folder / "record.json"  # a second tells builds apart, and these two may be of one
    record.write_text(json.dumps(json.loads(record.read_text()) | {"made": "2026-01-01T00:00:00Z"}))
    read: list[Path] = []
    real = store.verify
    monkeypatch.setattr(store, "verify", lambda file, ref: (read.append(file.parent), real(file, ref))[1])
    for used in (new, old):
        read.clear()
        backend = TrtBackend("tensorrt")
        Stream(Bundle.open(folder), backend=backend).close()
        assert backend._found(Bundle.open(folder)).folder == used.folder
        assert read[-1] == used.folder
        if used is new:
            assert set(read) == {new.folder}
        (new.folder / "step.engine").write_bytes(b"{}")


def test_the_decoder_s_own_kernels_and_the_prompt_s_are_awaited_once(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of compiled kernels is read at the second start, whoever made it."""
    stand, folder = built("rtx-1.7", bundle_path, tmp_path, monkeypatch)
    seen: list[bytes] = []
    real = stand.module.IRuntimeCache.deserialize  # type: ignore[attr-defined]
    monkeypatch.setattr(
        stand.module.IRuntimeCache,  # type: ignore[attr-defined]
        "deserialize",
        lambda cache, content: (seen.append(content), real(cache, content))[1],
    )
    for expected in (0, 3):
        with Stream(Bundle.open(folder), backend=TrtBackend("tensorrt-rtx")) as stream:
            stream.next_chunk()
        assert len(seen) >= expected
        assert seen == [b"kernels"] * len(seen)


@pytest.mark.slow
def test_a_wan_bundle_with_everything(whole_wan_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that is not in the bank, an anchor, and a decoder of the first chunk's own, beside compiled engines."""
    pytest.importorskip("tokenizers")
    _stand, folder = built("rtx-1.7", whole_wan_path, tmp_path, monkeypatch)
    bundle, g = Bundle.open(folder), Bundle.open(folder).manifest.geometry
    assert {"text", "encode", "decode_first"} <= set(bundle.manifest.graphs)
    picture = np.random.default_rng(0).integers(0, 256, (g.height, g.width, 3), np.uint8)
    made = []
    for backend in (None, TrtBackend("tensorrt-rtx")):
        with Stream(bundle, seed=1, anchor=picture, backend=backend) as stream:
            chunks = [stream.next_chunk() for _ in range(2)]
            stream.set_prompt("a prompt that nobody put into the bank", "cut")
            made.append([*chunks, *(stream.next_chunk() for _ in range(3))])
    for a, b in zip(*made, strict=True):
        assert a.prompt == b.prompt
        assert np.sqrt(np.mean((a.latent - b.latent) ** 2)) < 0.02 * a.latent.std()
        assert np.abs(a.frames.astype(int) - b.frames).mean() < 0.5
