"""Sinks that move, against a list of raw keys that is rolled, folded and turned as Reward Forcing's own cache is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle, Geometry
from everframe.engines.errors import UserError
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.export.recipes import check_options, find
from everframe.export.wanexport import WanSource
from everframe.runtime import Stream, Transition
from everframe.runtime.noise import chunk_noise
from everframe.runtime.state import load_state, save_state

from helpers import PROMPTS, TRANSFORMER, with_int8_ring
from reference import Reference, flow_sigmas
from simulated_cuda import SimulatedBackend, SimulatedRuntime

ALPHA = 0.8  # far from 1, so that every fold shows
SIGMAS = flow_sigmas([1000, 750, 500, 250], 5.0)
Form = Literal["in-place", "portable"]


def exported(checkpoint: Path, path: Path, form: Form, window: int, by: str = "head") -> Path:
    changes = Overrides(form=form, window=window, sink_ema=ALPHA, rope="relative", jitter_by=by)
    export_checkpoint(checkpoint, path, changes, chunks=8, force=False)
    return path


class Paths(dict[str, Path]):
    """Reward Forcing's own window of three chunks, in both forms, and a longer one; exported when they are asked for."""

    def __init__(self, checkpoint: Path, home: Path):
        self.checkpoint, self.home = checkpoint, home

    def __missing__(self, name: str) -> Path:
        form, window = {"in-place": ("in-place", 9), "portable": ("portable", 9), "longer": ("portable", 12)}[name]
        self[name] = exported(self.checkpoint, self.home / f"{name}.everframe", form, window)  # type: ignore[arg-type]
        return self[name]


@pytest.fixture(scope="module")
def paths(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return Paths(checkpoint, tmp_path_factory.mktemp("moving"))


class Rolled(Reference):
    """Keys before RoPE in the order of time, the oldest that is no sink rolled out when a chunk begins and folded into the
    first. Positions count within the window (relative), or the sinks keep their own (absolute)."""

    def __init__(self, bundle: Bundle, checkpoint: Path, mode: str = "relative"):
        thetas = (10000.0 * (1 + 0.8 * np.array(bundle.manifest.rope.epsilon))).tolist()
        state = load_file(checkpoint / "transformer.safetensors")
        super().__init__(state, TRANSFORMER, chunk=3, sink=3, window=bundle.manifest.geometry.window, thetas=thetas)
        self.mode, self.made = mode, 0
        self.texts = {k: v.double() for k, v in load_file(checkpoint / "prompts.safetensors").items()}
        self.shape = bundle.manifest.geometry.latent_shape

    def turn(self, keys: Tensor, frames: int, layer: int = 0) -> Tensor:
        """keys [tokens, heads, D] turned on by so many latent frames; the temporal pairs come first."""
        _, heads, dim = keys.shape
        channels = dim - 4 * (dim // 6)
        angles = torch.zeros(heads, dim // 2, dtype=torch.float64)
        for h in range(heads):
            for j in range(channels // 2):
                angles[h, j] = frames * self.thetas_of(layer)[h] ** (-2 * j / channels)
        pairs = torch.view_as_complex(keys.reshape(*keys.shape[:2], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).reshape(keys.shape)

    def places(self) -> list[int]:
        """Latent frame at which each chunk of the cache stands, the one to come last."""
        if self.mode == "relative":
            return [3 * i for i in range(len(self.past) + 1)]
        newest = [3 * (self.made - i) for i in range(len(self.past), -1, -1)]
        return [0, *newest[1:]]

    def visible(self) -> list[list[tuple[Tensor, Tensor]]]:
        return [
            [(self.turn(k, place, i), v) for i, (k, v) in enumerate(chunk)]
            for chunk, place in zip(self.past, self.places(), strict=False)
        ]

    def commit(self, x0: Tensor, text: Tensor, start: int) -> None:
        _, own = self.forward(x0, 0.0, text, start)
        self.past.append([(self.turn(k, -start, i), v) for i, (k, v) in enumerate(own)])

    def next(self, seed: int, prompt: str = PROMPTS[0]) -> Tensor:
        if len(self.past) == self.window // 3:
            left = self.past.pop(1)
            self.past[0] = [
                (ALPHA * k + (1 - ALPHA) * gone_k, ALPHA * v + (1 - ALPHA) * gone_v)
                for (k, v), (gone_k, gone_v) in zip(self.past[0], left, strict=True)
            ]
        noise = torch.from_numpy(chunk_noise(seed, self.made, 4, self.shape))[:, 0].double()
        x0 = self.next_chunk(noise, SIGMAS, self.texts[prompt], self.places()[-1])
        self.made += 1
        return x0


def error(latent: np.ndarray, expected: Tensor) -> float:
    return float((torch.from_numpy(latent) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "name", ["portable", *(pytest.param(n, marks=pytest.mark.slow) for n in ("in-place", "longer"))]
)
@pytest.mark.parametrize("mode", ["relative", pytest.param("absolute", marks=pytest.mark.slow)])
def test_folded_as_the_original_does(paths: dict, checkpoint: Path, name: str, mode: Literal["relative"]) -> None:
    bundle = Bundle.open(paths[name])
    reference = Rolled(bundle, checkpoint, mode)
    assert bundle.manifest.geometry.sink_ema == ALPHA
    with Stream(bundle, seed=4, rope_mode=mode) as stream:
        for c in range(10):
            assert error(stream.next_chunk().latent, reference.next(4)) < 2e-5, c


@pytest.mark.slow
def test_folded_with_bases_of_every_layer(checkpoint: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(exported(checkpoint, tmp_path / "b.everframe", "portable", 9, "layer"))
    reference = Rolled(bundle, checkpoint)
    with Stream(bundle, seed=4) as stream:
        for c in range(6):
            assert error(stream.next_chunk().latent, reference.next(4)) < 2e-5, c


@pytest.mark.slow
def test_the_fold_matters(paths: dict, checkpoint: Path) -> None:
    """Sinks that stay give other numbers: the test above would notice."""
    bundle = Bundle.open(paths["in-place"])
    moving, still = Rolled(bundle, checkpoint), Rolled(bundle, checkpoint)
    a = b = torch.zeros(())
    for _ in range(6):
        a = moving.next(4)
        if len(still.past) == 3:
            still.past.pop(1)
        b = still.next(4)
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


@pytest.mark.parametrize("transition", ["swap", "smooth", "flush", "cut"])
def test_prompt_changes_are_the_same_in_both_forms(paths: dict, transition: Transition) -> None:
    """At moments when the ring fills, is full for the first time, and has wrapped."""
    for at in (2, 3, 4, 6):
        chunks = []
        for form in ("in-place", "portable"):
            with Stream(Bundle.open(paths[form]), seed=4, overlap=False) as stream:
                for c in range(9):
                    if c == at:
                        stream.set_prompt(PROMPTS[1], transition)
                    chunks.append(stream.next_chunk().latent)
        for one, other in zip(chunks[:9], chunks[9:], strict=True):
            assert np.abs(one - other).max() < 1e-4 * np.abs(one).max(), at


def test_a_cut_begins_a_new_mean(paths: dict, checkpoint: Path) -> None:
    for name in ("in-place", "portable"):
        bundle = Bundle.open(paths[name])
        reference = Rolled(bundle, checkpoint)
        with Stream(bundle, seed=4, overlap=False) as stream:
            for c in range(11):
                if c == 5:
                    stream.set_prompt(PROMPTS[1], "cut")
                    reference.past = []
                latent = stream.next_chunk().latent
                assert error(latent, reference.next(4, PROMPTS[c >= 5])) < 2e-5, c


def test_a_smooth_change_leaves_the_mean(paths: dict, checkpoint: Path) -> None:
    """The ring's two chunks run again, seeing each other both ways and the sinks, which already hold what left before: also
    where the stream is just as long as its window, and one chunk has flowed into them."""
    for name, at in itertools.product(("in-place", "portable"), (3, 6)):
        bundle, made = Bundle.open(paths[name]), []
        reference = Rolled(bundle, checkpoint)
        with Stream(bundle, seed=4, overlap=False) as stream:
            for c in range(9):
                if c == at:
                    stream.set_prompt(PROMPTS[1], "smooth")
                    recached(reference, made)
                latent = stream.next_chunk().latent
                expected = reference.next(4, PROMPTS[c >= at])
                made.append(expected)
                assert error(latent, expected) < 2e-5, c


def recached(reference: Rolled, made: list[Tensor]) -> None:
    """A chunk flows into the sinks as soon as none to come will see it: before the frames of the window run again, which are
    the one that goes and the one that stays."""
    left = reference.past.pop(1)
    sink = [
        (ALPHA * k + (1 - ALPHA) * gone_k, ALPHA * v + (1 - ALPHA) * gone_v)
        for (k, v), (gone_k, gone_v) in zip(reference.past[0], left, strict=True)
    ]
    reference.past = [sink]
    _, own = reference.forward(torch.cat(made[-2:], 1), 0.0, reference.texts[PROMPTS[1]], 3)
    half = len(own[0][0]) // 2
    reference.past.append([(reference.turn(k[half:], -6), v[half:]) for k, v in own])


@pytest.mark.parametrize("overlap", [False, True])
def test_resumed_bit_for_bit(paths: dict, tmp_path: Path, overlap: bool) -> None:
    for name in ("in-place", "portable"):
        bundle = Bundle.open(paths[name])
        for at, transition in ((2, None), (5, None), (5, "smooth")):
            with Stream(bundle, seed=4, overlap=overlap) as whole, Stream(bundle, seed=4, overlap=overlap) as resumed:
                for _ in range(at):
                    whole.next_chunk()
                save_state(whole, tmp_path / "s")
                load_state(resumed, tmp_path / "s")
                for _ in range(5):
                    if transition:
                        for stream in (whole, resumed):
                            stream.set_prompt(PROMPTS[1], "smooth")
                    assert (whole.next_chunk().frames == resumed.next_chunk().frames).all()


def test_overlap_changes_nothing(paths: dict) -> None:
    for name in ("in-place", "portable"):
        bundle = Bundle.open(paths[name])
        with Stream(bundle, seed=4, overlap=False) as plain, Stream(bundle, seed=4, overlap=True) as overlapped:
            for _ in range(7):
                a, b = plain.next_chunk().latent, overlapped.next_chunk().latent
                assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_an_int8_ring(paths: dict, tmp_path: Path) -> None:
    """The mean in float32 of what the INT8 ring lets go, turned on the device; as near to the float ring as INT8 is."""
    sinks = 3 * Bundle.open(paths["portable"]).manifest.geometry.frame_tokens
    path = with_int8_ring(paths["portable"], tmp_path / "b.everframe", sinks)
    with Stream(Bundle.open(path), seed=4, overlap=False) as stream:
        ring, mean = stream._loop.ring, stream._loop.moving.mean  # type: ignore[union-attr]
        assert ring["v_0"].dtype == np.int8
        tokens = stream.layout.chunk_tokens
        for c in range(8):
            before = {n: b.read() for n, b in mean.items()}
            leaving = ring["v_1"].read()[:, :, tokens:] * ring["v_1_scale"].read()[:, :, tokens:]
            stream.next_chunk()
            got = mean["mean_v_1"].read()
            if c == 0:
                expected = ring["v_1"].read()[:, :, :tokens] * ring["v_1_scale"].read()[:, :, :tokens]
            elif c < 2:
                expected = before["mean_v_1"]
            else:  # the ring has one chunk beside the sinks: it goes when the next one is stored
                expected = ALPHA * before["mean_v_1"] + (1 - ALPHA) * leaving
            assert np.abs(got - expected).max() < 1e-6 * np.abs(expected).max(), c
            assert (ring["sink_k_1"].read() == mean["mean_k_1"].read()).all()  # in float beside the ring
            rounded = ring["k_1"].read()[:, :, :tokens] * ring["k_1_scale"].read()[:, :, :tokens]
            assert (
                0
                < np.abs(rounded - mean["mean_k_1"].read()).max()
                <= 0.51 * ring["k_1_scale"].read()[:, :, :tokens].max()
            )
            stands = ring["v_1"].read()[:, :, :tokens] * ring["v_1_scale"].read()[:, :, :tokens]
            assert np.abs(stands - got).max() <= 0.51 * ring["v_1_scale"].read()[:, :, :tokens].max()


@pytest.mark.parametrize("name", ["in-place", "portable"])
def test_on_openvino(paths: dict, name: str) -> None:
    """Folds, turns and the pass of a smooth change, as ONNX Runtime makes them."""
    pytest.importorskip("openvino")
    from everframe.engines.openvino import OvBackend

    bundle = Bundle.open(paths[name])
    with (
        Stream(bundle, seed=4, overlap=False) as one,
        Stream(bundle, seed=4, overlap=False, backend=OvBackend(EngineOptions())) as other,
    ):
        for c in range(8):
            if c == 5:
                for stream in (one, other):
                    stream.set_prompt(PROMPTS[1], "smooth")
            a, b = one.next_chunk().latent, other.next_chunk().latent
            assert np.abs(a - b).max() < 1e-4 * np.abs(a).max(), c


@pytest.mark.parametrize("name", ["in-place", "portable"])
def test_on_a_card(paths: dict, name: str) -> None:
    """With CUDA's rules of order: what moving sinks take in is folded before the portable form's store writes over it."""
    bundle = Bundle.open(paths[name])
    with (
        Stream(bundle, seed=4) as cpu,
        Stream(bundle, seed=4, backend=SimulatedBackend(SimulatedRuntime())) as gpu,  # type: ignore[arg-type]
    ):
        for c in range(9):
            if c == 6:
                for stream in (cpu, gpu):
                    stream.set_prompt(PROMPTS[1], "smooth")
            a, b = cpu.next_chunk(), gpu.next_chunk()
            assert (a.latent == b.latent).all(), c
            assert (a.frames == b.frames).all(), c


@pytest.mark.parametrize("name", ["in-place", "portable"])
def test_tensorrt_builds_it(paths: dict, name: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    from everframe.engines.trtbuild import BuildOptions, build_graph

    for graph in ("sinks", "recache"):
        built = build_graph(Bundle.open(paths[name]), graph, BuildOptions(targets=("sm_89",)))
        assert len(built.engine) > 1000


@pytest.mark.parametrize(("sink", "window"), [(6, 12), (0, 9), (3, 6)])
def test_windows_it_does_not_fit(sink: int, window: int) -> None:
    sizes = {"width": 64, "height": 32, "fps": 16, "latent_channels": 8, "chunk": 3}
    with pytest.raises(ValueError, match=r"sink_ema 0\.9 with sink"):
        Geometry(**sizes, sink=sink, window=window, sink_ema=0.9)


def test_the_recipe_exports(checkpoint: Path, tmp_path: Path) -> None:
    recipe = find("reward-forcing")
    check_options(recipe, set(WanSource.__dataclass_fields__))
    assert recipe.options["sink_ema"] == 0.999
    with pytest.raises(UserError, match="sink_ema"):
        export_checkpoint(checkpoint, tmp_path / "x", Overrides(sink=6, sink_ema=0.9), chunks=0, force=False)
