"""The pass of a smooth prompt change, against the slow reference: what it leaves in the ring, in both forms, and in INT8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from everframe.engines.bundle import MANIFEST, Bundle, describe
from everframe.engines.errors import UserError
from everframe.engines.ort import OrtBackend
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.runtime import EngineOptions, Stream
from everframe.runtime.noise import chunk_noise
from everframe.runtime.recache import Recache, Standing, load_recache, recache_bytes
from everframe.runtime.ring import RingLayout

from helpers import PROMPTS, TRANSFORMER, resumes_with_a_smooth_change, with_int8_ring
from reference import Reference, flow_sigmas

SIGMAS = flow_sigmas([1000, 750, 500, 250], 5.0)


@pytest.fixture(params=["in-place", "portable"])
def bundle(request: pytest.FixtureRequest, bundle_path: Path, portable_path: Path) -> Bundle:
    return Bundle.open(portable_path if request.param == "portable" else bundle_path)


def reference_of(bundle: Bundle, checkpoint: Path) -> Reference:
    thetas = (10000.0 * (1 + 0.8 * np.array(bundle.manifest.rope.epsilon))).tolist()
    state = load_file(checkpoint / "transformer.safetensors")
    return Reference(state, TRANSFORMER, chunk=3, sink=3, window=12, thetas=thetas)


def texts_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in load_file(checkpoint / "prompts.safetensors").items()}


def as_stored(x: torch.Tensor, keys: bool) -> torch.Tensor:
    """[tokens, H, D] -> [1, H, tokens, D], keys with their RoPE pairs as halves."""
    x = torch.cat([x[..., 0::2], x[..., 1::2]], -1) if keys else x
    return x.transpose(0, 1)[None]


@pytest.mark.parametrize("at", [3, 4, 5, 9])
def test_the_ring_after_a_smooth_change(bundle: Bundle, checkpoint: Path, at: int) -> None:
    """Every layer's keys and values: filling, exactly full (the sinks are made anew too), one more, wrapped."""
    reference, texts = reference_of(bundle, checkpoint), texts_of(checkpoint)
    with Stream(bundle, seed=5, prompt=PROMPTS[0], overlap=False) as stream:
        assert stream.recache == "window"
        made = [torch.from_numpy(stream.next_chunk().latent).double() for _ in range(at)]
        for c, latent in enumerate(made):
            reference.commit(latent, texts[PROMPTS[0]], 3 * c)
        if at <= 4:
            reference.recache(torch.cat(made, 1), texts[PROMPTS[2]], 0, keep=0)
        else:
            reference.recache(torch.cat(made[-3:], 1), texts[PROMPTS[2]], 3 * (at - 3), keep=1)
        stream.set_prompt(PROMPTS[2], "smooth")
        stream._apply_prompt()
        ring = {name: torch.from_numpy(buffer.read()) for name, buffer in stream._loop.ring.items()}
    layout = RingLayout.of(bundle.manifest.geometry)
    portable = bundle.manifest.form == "portable"
    newest = reference.past if at <= 4 else [None] * (at - 4) + reference.past  # by the chunk's number, sinks apart
    held = range(max(1, at - (2 if portable else 3)), at)
    for chunk in [0, *held]:
        expected = reference.past[0] if chunk == 0 else newest[chunk]
        assert expected is not None
        start = (layout.past_slot(chunk) if portable else layout.slot(chunk)).start
        for layer, pair in enumerate(expected):
            for side, values in zip("kv", pair, strict=True):
                got = ring[f"{side}_{layer}"][:, :, start : start + layout.chunk_tokens].double()
                wanted = as_stored(values, side == "k")
                assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max(), (chunk, layer, side)


def test_after_a_flush_the_sinks_and_the_newest_chunk(bundle: Bundle, checkpoint: Path) -> None:
    """What a flush threw away does not come back; the stream is longer than its window, so the sinks stay."""
    reference, texts, made = reference_of(bundle, checkpoint), texts_of(checkpoint), []
    with Stream(bundle, seed=5, prompt=PROMPTS[0], overlap=False) as stream:
        for c in range(10):
            prompt = PROMPTS[0] if c < 6 else PROMPTS[1] if c < 7 else PROMPTS[2]
            if c == 6:
                stream.set_prompt(prompt, "flush")
                reference.past = [reference.past[0], reference.past[-1]]
            if c == 7:
                stream.set_prompt(prompt, "smooth")
                reference.recache(torch.cat(made[-2:], 1), texts[prompt], 3 * 5, keep=1)
            noise = torch.from_numpy(chunk_noise(5, c, 4, bundle.manifest.geometry.latent_shape))[:, 0].double()
            expected = reference.next_chunk(noise, SIGMAS, texts[prompt], 3 * c)
            made.append(expected)
            latent = torch.from_numpy(stream.next_chunk().latent).double()
            assert (latent - expected).abs().max() < 2e-5 * expected.abs().max(), c


@pytest.mark.parametrize("form", ["in-place", "portable"])
def test_relative_sinks(following_paths: dict[str, Path], checkpoint: Path, form: str) -> None:
    """They stand right behind the window when it is run again, and go on standing there; early, they are made anew."""
    bundle = Bundle.open(following_paths[form])
    texts = texts_of(checkpoint)
    for at in (3, 7):
        reference, made, sink = reference_of(bundle, checkpoint), [], texts[PROMPTS[0]]
        with Stream(bundle, seed=2, rope_mode="relative", overlap=False) as stream:
            for c in range(10):
                prompt = PROMPTS[0] if c < at else PROMPTS[1]
                if c == at:
                    stream.set_prompt(prompt, "smooth")
                    if at == 3:
                        reference.recache(torch.cat(made, 1), texts[prompt], 0, keep=0)
                    else:
                        reference.past[:1] = turned(reference, made[:1], sink, at - 4)
                        reference.recache(torch.cat(made[-3:], 1), texts[prompt], 3 * (at - 3), keep=1)
                if c > 3:
                    reference.past[:1] = (
                        turned(reference, made[:3], texts[PROMPTS[1]], c - 3)
                        if at == 3
                        else turned(reference, made[:1], sink, c - 3)
                    )
                noise = torch.from_numpy(chunk_noise(2, c, 4, bundle.manifest.geometry.latent_shape))[:, 0].double()
                expected = reference.next_chunk(noise, SIGMAS, texts[prompt], 3 * c)
                made.append(expected)
                latent = torch.from_numpy(stream.next_chunk().latent).double()
                assert (latent - expected).abs().max() < 2e-5 * expected.abs().max(), (at, c)


def turned(reference: Reference, made: list, text: torch.Tensor, chunk: int) -> list:
    """The sinks as the pass that made them, of these chunks, would have left them at another place: attention knows
    distances only."""
    other = Reference(reference.state, TRANSFORMER, chunk=3, sink=3, window=12, thetas=reference.thetas)
    other.recache(torch.cat(made, 1), text, 3 * chunk, keep=0)
    return other.past[:1]


@pytest.mark.slow
def test_chunk_by_chunk_where_the_bundle_says_so(checkpoint: Path, tmp_path: Path) -> None:
    """Bundles of before, which have no such graph, commit their window again, oldest first."""
    export_checkpoint(checkpoint, tmp_path / "b", Overrides(recache="chunks"), chunks=8, force=False)
    raw = json.loads((tmp_path / "b" / MANIFEST).read_text())
    assert raw.pop("recache") == "chunks"
    (tmp_path / "b" / MANIFEST).write_text(json.dumps(raw))
    bundle = Bundle.open(tmp_path / "b")
    reference, texts, made = reference_of(bundle, checkpoint), texts_of(checkpoint), []
    with Stream(bundle, seed=5, prompt=PROMPTS[0], overlap=False) as stream:
        assert stream.recache == "chunks"
        for c in range(9):
            prompt = PROMPTS[0] if c < 6 else PROMPTS[2]
            if c == 6:
                stream.set_prompt(prompt, "smooth")
                reference.past = reference.past[:1]
                for back in (2, 1):
                    reference.commit(made[-back], texts[prompt], 3 * (c - back))
            noise = torch.from_numpy(chunk_noise(5, c, 4, bundle.manifest.geometry.latent_shape))[:, 0].double()
            expected = reference.next_chunk(noise, SIGMAS, texts[prompt], 3 * c)
            made.append(expected)
            latent = torch.from_numpy(stream.next_chunk().latent).double()
            assert (latent - expected).abs().max() < 2e-5 * expected.abs().max(), c


class Small:
    """A backend whose device tells how much is free."""

    def __init__(self, free: int):
        self.real, self.bytes, self.device = OrtBackend(EngineOptions()), free, self

    def free(self) -> int:
        return self.bytes

    def load(self, bundle: Bundle, name: str, beside: bool = False):
        return self.real.load(bundle, name, beside)


def test_a_device_without_room_says_so(bundle: Bundle) -> None:
    with Stream(bundle) as stream:
        ring, prompt = stream._loop.ring, stream._loop.prompt_kv
        wanted = recache_bytes(bundle)
        nothing, note = load_recache(Small(wanted - 1), bundle, ring, prompt)  # type: ignore[arg-type]
        assert nothing is None
        assert note is not None
        assert "chunk by chunk" in note
        found, note = load_recache(Small(wanted), bundle, ring, prompt)  # type: ignore[arg-type]
        assert isinstance(found, Recache)
        assert note is None
        assert stream.notices == []


def test_resumed_bit_for_bit_with_a_smooth_change_to_come(bundle: Bundle, tmp_path: Path) -> None:
    for at in (4, 5):
        resumes_with_a_smooth_change(bundle, at, tmp_path / "s", chunks=4)


@pytest.fixture(scope="module")
def int8_path(portable_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portable bundle with an INT8 ring and nothing else changed."""
    path = with_int8_ring(portable_path, tmp_path_factory.mktemp("int8") / "b.everframe")
    for name in ("step", "recache"):
        assert Bundle.open(path).manifest.graphs[name].model == describe(path / f"{name}.onnx")
    return path


def test_an_int8_ring_holds_the_float_ring_rounded(int8_path: Path, portable_path: Path) -> None:
    """The same window through both: to half a step of each token's scale; and sinks that stay, to the bit."""
    rings = []
    for path in (int8_path, portable_path):
        bundle = Bundle.open(path)
        with Stream(bundle, seed=1, prompt=PROMPTS[0], overlap=False) as stream:
            for _ in range(6):
                stream.next_chunk()
            recache = stream._loop.recache
            assert recache is not None
            generator = np.random.default_rng(0)
            shape = bundle.manifest.geometry.latent_shape[1:]
            window = [Standing(3 * i, generator.standard_normal(shape, np.float32)) for i in range(4)]
            before = {n: b.read_tokens(0, recache.layout.sink_tokens) for n, b in recache.ring.items()}
            recache.run([None, *window[1:]], stream.frequencies, keep_sinks=True)
            after = {n: b.read_tokens(0, recache.layout.sink_tokens) for n, b in recache.ring.items()}
            for name, values in before.items():
                step = 1e-6 * np.abs(values).max() if "scale" in name else 0
                assert np.abs(values - after[name]).max() <= step, name
            recache.run(window, stream.frequencies, keep_sinks=False)
            rings.append({name: buffer.read() for name, buffer in recache.ring.items()})
    small, wide = rings
    for name, values in wide.items():
        scale = small[f"{name}_scale"]
        assert small[name].dtype == np.int8
        assert (np.abs(small[name] * scale - values) <= 0.501 * scale + 1e-5 * np.abs(values).max()).all(), name


def test_a_bundle_that_says_one_thing_and_holds_another(bundle_path: Path, tmp_path: Path) -> None:
    raw = json.loads((bundle_path / MANIFEST).read_text())
    raw["recache"] = "chunks"
    (tmp_path / MANIFEST).write_text(json.dumps(raw))
    with pytest.raises(UserError, match="recache: 'chunks'"):
        Bundle.open(tmp_path)
