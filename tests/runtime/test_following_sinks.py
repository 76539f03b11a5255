"""Sinks that follow the window, turned in the step graph, against attention over explicit positions in float64."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle, write_manifest
from everframe.engines.errors import UserError
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.runtime import Stream, Transition, reference
from everframe.runtime.noise import chunk_noise
from everframe.runtime.sinks import check_distance, sink_turn

from helpers import PROMPTS, TRANSFORMER, resumes_with_a_smooth_change, with_int8_ring
from reference import Reference, flow_sigmas

SIGMAS = flow_sigmas([1000, 750, 500, 250], 5.0)
FORMS = ("in-place", "portable")


@pytest.fixture(params=FORMS)
def bundle(request: pytest.FixtureRequest, following_paths: dict[str, Path]) -> Bundle:
    return Bundle.open(following_paths[request.param])


def thetas_of(bundle: Bundle) -> list:
    """θ of every head, or of all heads of every layer."""
    return (10000.0 * (1 + 0.8 * np.array(bundle.manifest.rope.epsilon))).tolist()


class Following(Reference):
    """The list of all keys and values, the sinks' keys turned by the distance that a direct formula gives: the first sink
    frame stands `distance` before the chunk that is made, and never before where it was made."""

    def __init__(self, bundle: Bundle, checkpoint: Path, distance: int, start: int = 0, sink: int = 3):
        thetas = thetas_of(bundle)
        state = load_file(checkpoint / "transformer.safetensors")
        super().__init__(state, TRANSFORMER, chunk=3, sink=sink, window=12, thetas=thetas)
        self.distance, self.made, self.now = distance, start, start
        self.texts = {k: v.double() for k, v in load_file(checkpoint / "prompts.safetensors").items()}
        self.shape = bundle.manifest.geometry.latent_shape

    def forward(self, latent: Tensor, timestep: float, text: Tensor, start: int) -> tuple[Tensor, list]:
        self.now = start
        return super().forward(latent, timestep, text, start)

    def visible(self) -> list[list[tuple[Tensor, Tensor]]]:
        sinks = self.sink // self.chunk
        turn = max(self.made, self.now - self.distance) - self.made
        chunks = super().visible()
        following = [[(self.turned(k, turn, i), v) for i, (k, v) in enumerate(chunk)] for chunk in chunks[:sinks]]
        return following + chunks[sinks:]

    def turned(self, keys: Tensor, frames: int, layer: int) -> Tensor:
        """keys [tokens, heads, D], their pairs as complex numbers, the temporal ones first."""
        channels = keys.shape[2] - 4 * (keys.shape[2] // 6)
        angles = torch.zeros(keys.shape[1], keys.shape[2] // 2, dtype=torch.float64)
        for h, theta in enumerate(self.thetas_of(layer)):
            for j in range(channels // 2):
                angles[h, j] = frames * theta ** (-2 * j / channels)
        pairs = torch.view_as_complex(keys.reshape(*keys.shape[:2], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).reshape(keys.shape)

    def next(self, seed: int, chunk: int, position: int, prompt: str = PROMPTS[0]) -> Tensor:
        noise = torch.from_numpy(chunk_noise(seed, chunk, 4, self.shape))[:, 0].double()
        return self.next_chunk(noise, SIGMAS, self.texts[prompt], position)


def error(latent: np.ndarray, expected: Tensor) -> float:
    return float((torch.from_numpy(latent) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("distance", "start"), [(None, 0), (18, 1_000_002)])
def test_they_stand_where_they_are_to(bundle: Bundle, checkpoint: Path, distance: int | None, start: int) -> None:
    """Right behind the window; at the end of a trained horizon of 21 latent frames, far out."""
    reference = Following(bundle, checkpoint, 9 if distance is None else distance, start)
    with Stream(bundle, seed=2, start=start, sink_distance=distance) as stream:
        assert stream.rope_mode == "relative"
        for c in range(9):
            expected = reference.next(2, c, start + 3 * c)
            assert error(stream.next_chunk().latent, expected) < 2e-5, c


def test_the_distance_matters(following_paths: dict[str, Path], checkpoint: Path) -> None:
    """Another one gives other numbers: the test above would notice."""
    bundle = Bundle.open(following_paths["portable"])
    near, far = Following(bundle, checkpoint, 9), Following(bundle, checkpoint, 18)
    a = b = torch.zeros(())
    for c in range(6):
        a, b = (one.next(2, c, 3 * c) for one in (near, far))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_an_anchor_of_two_chunks_in_a_bundle_with_a_distance_of_its_own(
    checkpoint: Path, tmp_path: Path, form: Literal["in-place", "portable"]
) -> None:
    path = tmp_path / "a.everframe"
    changes = Overrides(sink=6, form=form, rope="relative", sink_distance=15, encoder=True)
    export_checkpoint(checkpoint, path, changes, chunks=8, force=False)
    bundle = Bundle.open(path)
    assert bundle.manifest.rope.sink_distance == 15
    reference = Following(bundle, checkpoint, 15, sink=6)
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    with Stream(bundle, seed=5, anchor=picture) as stream:
        for c in range(8):
            chunk = stream.next_chunk()
            if c < 2:
                reference.commit(torch.from_numpy(chunk.latent).double(), reference.texts[PROMPTS[0]], 3 * c)
            else:
                assert error(chunk.latent, reference.next(5, c, 3 * c)) < 2e-5, c


@pytest.mark.parametrize("transition", ["flush", "cut"])
@pytest.mark.parametrize(("distance", "start"), [(None, 0), (10, 10**8)])
def test_prompt_changes(
    bundle: Bundle, checkpoint: Path, transition: Transition, distance: int | None, start: int
) -> None:
    """`smooth` has a test of its own beside that of the pass it runs. Also far out, at no whole chunks' distance."""
    reference = Following(bundle, checkpoint, distance or 9, start)
    with Stream(bundle, seed=5, start=start, overlap=False, sink_distance=distance) as stream:
        for c in range(10):
            if c == 5:
                stream.set_prompt(PROMPTS[2], transition)
                if transition == "flush":
                    reference.past = [reference.past[0], reference.past[-1]]
                elif transition == "cut":
                    reference.past, reference.made = [], start + 3 * c
            expected = reference.next(5, c, start + 3 * c, PROMPTS[0 if c < 5 else 2])
            assert error(stream.next_chunk().latent, expected) < 2e-5, c


@pytest.mark.slow
def test_a_smooth_change_chunk_by_chunk(checkpoint: Path, tmp_path: Path) -> None:
    """Each chunk of the window sees the sinks where they stood when it was made."""
    path = tmp_path / "b.everframe"
    export_checkpoint(checkpoint, path, Overrides(rope="relative", recache="chunks"), chunks=8, force=False)
    bundle, made = Bundle.open(path), []
    reference = Following(bundle, checkpoint, 9)
    with Stream(bundle, seed=5, overlap=False) as stream:
        for c in range(9):
            prompt = PROMPTS[0 if c < 7 else 1]
            if c == 7:
                stream.set_prompt(prompt, "smooth")
                reference.past = reference.past[:1]
                for back in (2, 1):
                    reference.commit(made[-back], reference.texts[prompt], 3 * (c - back))
            made.append(reference.next(5, c, 3 * c, prompt))
            assert error(stream.next_chunk().latent, made[-1]) < 2e-5, c


def test_told_to_stay_they_stay(following_paths: dict[str, Path], bundle_path: Path, portable_path: Path) -> None:
    """Turned by nothing: every bit as in a bundle whose graph cannot turn them."""
    for form, plain in zip(FORMS, (bundle_path, portable_path), strict=True):
        with (
            Stream(Bundle.open(following_paths[form]), seed=3, rope_mode="absolute", overlap=False) as one,
            Stream(Bundle.open(plain), seed=3, overlap=False) as other,
        ):
            for _ in range(8):
                assert (one.next_chunk().latent == other.next_chunk().latent).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_bases_of_every_layer(checkpoint: Path, tmp_path: Path, form: Literal["in-place", "portable"]) -> None:
    """Tables [L, H, F, K] for the chunk, for the sinks that follow, and for the pass of a smooth change."""
    path = tmp_path / "b.everframe"
    changes = Overrides(form=form, rope="relative", jitter_by="layer")
    export_checkpoint(checkpoint, path, changes, chunks=8, force=False)
    bundle = Bundle.open(path)
    shapes = {s.name: s.shape for s in bundle.manifest.graphs["step"].inputs}
    layers, heads = np.shape(bundle.manifest.rope.epsilon)
    assert (layers, heads) == (TRANSFORMER.layers, TRANSFORMER.heads)
    assert shapes["rope_cos"][:3] == [layers, heads, 3]
    assert shapes["sink_sin"][:3] == [layers, heads, 1]
    for name in ("step", "recache"):  # the tables of places, which no jitter touches, once and not for every layer
        arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(path / f"{name}.onnx").graph.initializer]
        constants = [a.tobytes() for a in arrays if a.ndim == 5]
        assert len(set(constants)) == len(constants) > 0
    reference, made = Following(bundle, checkpoint, 9), []
    with Stream(bundle, seed=2, overlap=False) as stream:
        for c in range(8):
            if c == 6:
                stream.set_prompt(PROMPTS[1], "smooth")
                reference.now = 3 * (c - 1)
                recached(reference, torch.cat(made[-3:], 1), reference.texts[PROMPTS[1]], 3 * (c - 3))
            made.append(reference.next(2, c, 3 * c, PROMPTS[0 if c < 6 else 1]))
            assert error(stream.next_chunk().latent, made[-1]) < 2e-5, c


def recached(reference: Following, window: Tensor, text: Tensor, start: int) -> None:
    """The window's frames run again in one pass, seeing each other both ways and the sinks as they stood last."""
    stood = reference.visible()[:1]
    committed = reference.past[:1]
    reference.past = stood
    reference.recache(window, text, start, keep=1)
    reference.past[:1] = committed


@pytest.mark.slow
def test_the_probe_sees_them_turned(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "probed.everframe"
    export_checkpoint(checkpoint, path, Overrides(rope="relative"), chunks=8, force=False, probe=True)
    bundle = Bundle.open(path)
    reference = Following(bundle, checkpoint, 9)
    with Stream(bundle, seed=11, probe=True) as stream:
        for c in range(6):
            reference.sink_mass.clear()
            reference.next(11, c, 3 * c)
            expected = torch.stack(reference.sink_mass[: -TRANSFORMER.layers])  # the commit pass left out
            mass = stream.next_chunk().sink_mass
            assert mass is not None
            assert (torch.from_numpy(mass).flatten(0, 1) - expected).abs().max() < 1e-4, c


@pytest.fixture(scope="module")
def int8_path(following_paths: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portable bundle with an INT8 ring and nothing else changed."""
    g = Bundle.open(following_paths["portable"]).manifest.geometry
    target = tmp_path_factory.mktemp("int8") / "b.everframe"
    return with_int8_ring(following_paths["portable"], target, g.sink * g.frame_tokens)


def test_beside_an_int8_ring_they_outlive_a_flush_and_a_cut_makes_new_ones(
    int8_path: Path, following_paths: dict[str, Path]
) -> None:
    """Those of the stream's first chunk until the cut, then those of the cut's: a float stream's that begins there."""
    bundle, wide = Bundle.open(int8_path), Bundle.open(following_paths["portable"])
    with Stream(bundle, seed=1, overlap=False) as stream:
        tokens = stream.layout.sink_tokens

        def sinks(one: Stream, name: str) -> list[np.ndarray]:
            return [one._loop.ring[f"{name}_{i}"].read()[:, :, :tokens] for i in range(TRANSFORMER.layers)]

        kept: list[np.ndarray] = []
        for c in range(10):
            if c in (4, 7):
                stream.set_prompt(PROMPTS[1 if c == 4 else 2], "flush" if c == 4 else "cut")
            latent = stream.next_chunk().latent
            if c in (0, 7):
                kept = sinks(stream, "sink_k")
                with Stream(wide, seed=1, start=3 * c, prompt=PROMPTS[2 if c else 0], overlap=False) as alone:
                    alone._index = c  # the same noise
                    assert np.abs(alone.next_chunk().latent - latent).max() < 1e-5
                    for a, b in zip(kept, sinks(alone, "k"), strict=True):
                        assert np.abs(a - b).max() < 1e-5
            assert all((a == b).all() for a, b in zip(kept, sinks(stream, "sink_k"), strict=True)), c


def test_beside_an_int8_ring_they_stand_in_float(int8_path: Path, following_paths: dict[str, Path]) -> None:
    """The float ring's own keys to the bit, at first, after 9 chunks, and after a smooth change that leaves them; made
    anew, the float ring's of that change to rounding, for they see each other's keys in float."""
    with (
        Stream(Bundle.open(int8_path), seed=1, overlap=False) as small,
        Stream(Bundle.open(following_paths["portable"]), seed=1, overlap=False) as wide,
    ):
        tokens, before, anew = small.layout.sink_tokens, {}, {}
        assert small._loop.ring["k_0"].dtype == np.int8
        for c in range(12):
            if c in (2, 9):
                for stream in (small, wide):
                    stream.set_prompt(PROMPTS[1 if c == 2 else 0], "smooth")
            a, b = small.next_chunk().latent, wide.next_chunk().latent
            assert np.abs(a - b).max() < (1e-5 if c == 0 else 0.1) * np.abs(b).max(), c
            if c == 1:
                before = {i: small._loop.ring[f"sink_k_{i}"].read() for i in range(TRANSFORMER.layers)}
                for i, keys in before.items():
                    assert (keys == wide._loop.ring[f"k_{i}"].read()[:, :, :tokens]).all()
            if c == 2:
                anew = {i: small._loop.ring[f"sink_k_{i}"].read() for i in range(TRANSFORMER.layers)}
                expected = wide._loop.ring["k_1"].read()[:, :, :tokens]
                assert np.abs(anew[1] - before[1]).max() > 1e-3 * np.abs(expected).max()
                assert np.abs(anew[1] - expected).max() < 0.1 * np.abs(expected).max()
            if c > 2:
                for i, keys in anew.items():
                    assert (small._loop.ring[f"sink_k_{i}"].read() == keys).all()


def test_an_int8_ring_is_resumed_bit_for_bit(int8_path: Path, tmp_path: Path) -> None:
    for at in (1, 6):
        resumes_with_a_smooth_change(Bundle.open(int8_path), at, tmp_path / "s", chunks=5)


@pytest.mark.parametrize("name", [*FORMS, "int8"])
def test_on_openvino(following_paths: dict[str, Path], int8_path: Path, name: str) -> None:
    pytest.importorskip("openvino")
    from everframe.engines.openvino import OvBackend

    bundle = Bundle.open({**following_paths, "int8": int8_path}[name])
    with (
        Stream(bundle, seed=4, overlap=False, verify=False) as one,
        Stream(bundle, seed=4, overlap=False, verify=False, backend=OvBackend(EngineOptions())) as other,
    ):
        for c in range(8):
            if c == 5:
                for stream in (one, other):
                    stream.set_prompt(PROMPTS[1], "smooth")
            a, b = one.next_chunk().latent, other.next_chunk().latent
            # a key of an INT8 ring may be rounded the other way
            assert np.abs(a - b).max() < (0.05 if name == "int8" else 1e-4) * np.abs(a).max(), c


@pytest.mark.parametrize("name", [*FORMS, "int8"])
def test_tensorrt_builds_it(following_paths: dict[str, Path], int8_path: Path, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    from everframe.engines.trtbuild import BuildOptions, build_graph

    bundle = Bundle.open({**following_paths, "int8": int8_path}[name])
    for graph in ("step", "recache"):
        assert len(build_graph(bundle, graph, BuildOptions(targets=("sm_89",))).engine) > 1000


def test_by_how_much_they_are_turned() -> None:
    """Nothing until the window has left them behind, then as much as it goes on."""
    assert [sink_turn(p, 30, 9) for p in (30, 33, 36, 39, 42, 45)] == [0, 0, 0, 0, 3, 6]


def test_distances_that_do_not_fit(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sink_distance 8: expected 9 or more"):
        Stream(bundle, sink_distance=8)
    with pytest.raises(UserError, match=r"sink_distance 9.5: expected a number of latent frames"):
        Stream(bundle, sink_distance=9.5)  # type: ignore[arg-type]
    with Stream(bundle, sink_distance=np.int64(12)) as stream:  # type: ignore[arg-type]
        assert type(stream.sink_distance) is int  # which a saved state can hold
    with pytest.raises(UserError, match="sink_distance 12: expected rope relative"):
        Stream(bundle, rope_mode="absolute", sink_distance=12)
    path = shutil.copytree(bundle.path, tmp_path / "wrong.everframe")
    rope = bundle.manifest.rope.model_copy(update={"sink_distance": 8})
    write_manifest(path, bundle.manifest.model_copy(update={"rope": rope}))
    with pytest.raises(UserError, match="sink_distance 8: expected 9 or more"):
        Bundle.open(path)


def test_the_command_s_distance_is_the_stream_s(following_paths: dict[str, Path]) -> None:
    path, words = following_paths["portable"], ["--seconds", "4.5", "--seed", "2", "--sink-distance", "15", "-o", "-"]
    command = [sys.executable, "-c", "from everframe.runtime.cli import main; main()", "generate", "-b", str(path)]
    done = subprocess.run([*command, *words], capture_output=True, timeout=120)
    made = np.frombuffer(done.stdout, np.uint8).reshape(-1, 32, 64, 3)
    with (
        Stream(Bundle.open(path), seed=2, sink_distance=15) as asked,
        Stream(Bundle.open(path), seed=2) as own,
    ):
        frames, others = (np.concatenate([one.next_chunk().frames for _ in range(6)]) for one in (asked, own))
    assert (made == frames).all()
    assert (made != others).any()


def test_without_sinks_there_is_no_distance(bundle: Bundle) -> None:
    geometry = bundle.manifest.geometry.model_copy(update={"sink": 0})
    without = Bundle(bundle.path, bundle.manifest.model_copy(update={"geometry": geometry}))
    with pytest.raises(UserError, match=r"sink_distance 20: .* has no sinks"):
        check_distance(without, "relative", 20)


def test_a_relative_bundle_of_before_streams_with_its_sinks_where_they_were(bundle_path: Path, tmp_path: Path) -> None:
    """Earlier versions turned them outside the graphs, which are those of any bundle: also the reference is of no use."""
    old = shutil.copytree(bundle_path, tmp_path / "old.everframe", ignore=shutil.ignore_patterns("engines"))
    manifest = Bundle.open(old).manifest
    assert manifest.reference is not None
    write_manifest(old, manifest.model_copy(update={"rope": manifest.rope.model_copy(update={"mode": "relative"})}))
    with Stream(Bundle.open(old), seed=2) as stream, Stream(Bundle.open(bundle_path), seed=2) as plain:
        assert [note.startswith(f"{old}: an earlier export") for note in stream.notices] == [True]
        assert stream.rope_mode == "absolute"
        for _ in range(6):
            assert (stream.next_chunk().frames == plain.next_chunk().frames).all()
    assert not (old / "engines").exists()
    with pytest.raises(UserError, match="rope relative: its step graph does not turn sinks"):
        Stream(Bundle.open(old), rope_mode="relative")
    with pytest.raises(UserError, match="has no reference for sinks that stay"):
        reference.Reference.read(Bundle.open(old))
