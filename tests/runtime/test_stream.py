"""The whole chunk loop on exported engines, against the slow reference and against its own promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.export.taehv import Taehv
from everframe.runtime import EngineOptions, Stream, Transition
from everframe.runtime.noise import chunk_noise
from everframe.runtime.state import save_state

from helpers import AUTOENCODER, PROMPTS, TRANSFORMER
from reference import Reference, flow_sigmas


@pytest.fixture(params=["in-place", "portable"])
def bundle(request: pytest.FixtureRequest, bundle_path: Path, portable_path: Path) -> Bundle:
    """Everything here holds for both forms of the step graph."""
    return Bundle.open(portable_path if request.param == "portable" else bundle_path)


SIGMAS = flow_sigmas([1000, 750, 500, 250], 5.0)


def reference_of(bundle: Bundle, checkpoint: Path, sigma: float) -> Reference:
    rope = bundle.manifest.rope
    thetas = (10000.0 * (1 + sigma * np.array(rope.epsilon))).tolist()
    state = load_file(checkpoint / "transformer.safetensors")
    return Reference(state, TRANSFORMER, chunk=3, sink=3, window=12, thetas=thetas)


def texts_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in load_file(checkpoint / "prompts.safetensors").items()}


def noise_of(seed: int, chunk: int, bundle: Bundle) -> torch.Tensor:
    return torch.from_numpy(chunk_noise(seed, chunk, 4, bundle.manifest.geometry.latent_shape))[:, 0].double()


@pytest.mark.parametrize(("sigma", "start"), [(0.0, 0), (0.8, 1_000_002)])
def test_ring_equals_a_list_of_all_keys_and_values(bundle: Bundle, checkpoint: Path, sigma: float, start: int) -> None:
    """Sinks, window and positions over ten chunks, six of them past the first overwritten slot; also far out."""
    reference = reference_of(bundle, checkpoint, sigma)
    text = texts_of(checkpoint)[PROMPTS[0]]
    with Stream(bundle, seed=11, start=start, jitter_sigma=sigma) as stream:
        for c in range(10):
            chunk = stream.next_chunk()
            expected = reference.next_chunk(noise_of(11, c, bundle), SIGMAS, text, start + 3 * c)
            assert chunk.index == c
            assert chunk.position == start + 3 * c
            error = (torch.from_numpy(chunk.latent).double() - expected).abs().max() / expected.abs().max()
            assert error < 2e-5, f"chunk {c}"


def test_the_window_matters(bundle: Bundle, checkpoint: Path) -> None:
    """The reference with another window gives other numbers: the test above would notice a wrong one."""
    right, wrong = (reference_of(bundle, checkpoint, 0.8) for _ in range(2))
    wrong.window = 15
    text = texts_of(checkpoint)[PROMPTS[0]]
    a = b = torch.zeros(())
    for c in range(6):
        noise = noise_of(11, c, bundle)
        a, b = (r.next_chunk(noise, SIGMAS, text, 3 * c) for r in (right, wrong))
    assert (a - b).abs().max() > 1e-3 * a.abs().max()


def test_frames_are_the_whole_clip_decode_of_the_latents(bundle: Bundle, checkpoint: Path) -> None:
    autoencoder = Taehv(AUTOENCODER).double()
    autoencoder.load_state_dict({k: v.double() for k, v in load_file(checkpoint / "autoencoder.safetensors").items()})
    with Stream(bundle, seed=3) as stream:
        chunks = [stream.next_chunk() for _ in range(8)]
    latents = torch.from_numpy(np.concatenate([c.latent for c in chunks], 1)).double()
    with torch.no_grad():
        clip, _ = autoencoder.decode(latents.transpose(0, 1)[None])
    expected = (clip[0].clamp(0, 1) * 255).permute(0, 2, 3, 1)
    frames = torch.from_numpy(np.concatenate([c.frames for c in chunks])).double()
    assert frames.shape == (96, 32, 64, 3)
    assert frames.std() > 1
    assert (frames - expected).abs().max() < 0.51  # rounding alone


@pytest.mark.slow
def test_probe_tells_the_attention_on_the_sinks(checkpoint: Path, bundle_path: Path, tmp_path: Path) -> None:
    """Its numbers against the reference's, pass by pass; its frames are those of the plain step graph."""
    bundle = Bundle.open(bundle_path)
    with pytest.raises(UserError, match="--probe"):
        Stream(bundle, probe=True)
    path = tmp_path / "probed.everframe"
    export_checkpoint(checkpoint, path, Overrides(), chunks=8, force=False, probe=True)
    reference = reference_of(bundle, checkpoint, 0.8)
    text = texts_of(checkpoint)[PROMPTS[0]]
    with Stream(Bundle.open(path), seed=11, probe=True) as probed, Stream(bundle, seed=11) as plain:
        for c in range(7):
            reference.sink_mass.clear()
            reference.next_chunk(noise_of(11, c, bundle), SIGMAS, text, 3 * c)
            expected = torch.stack(reference.sink_mass[: -TRANSFORMER.layers])  # the commit pass left out
            chunk = probed.next_chunk()
            assert chunk.sink_mass is not None
            got = torch.from_numpy(chunk.sink_mass).flatten(0, 1).double()
            assert got.shape == expected.shape
            assert (got - expected).abs().max() < 1e-4, f"chunk {c}"
            assert (c > 0) == (float(expected.max()) < 0.999)
            same = plain.next_chunk()
            assert same.sink_mass is None
            assert np.abs(same.latent - chunk.latent).max() < 1e-4


@pytest.mark.parametrize("eta", [0.4, 0.05])
@pytest.mark.slow
def test_less_fresh_noise(checkpoint: Path, tmp_path: Path, eta: float) -> None:
    """The share eta of the schedule, against the reference's direct formula."""
    changed = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    config = json.loads((changed / "config.json").read_text())
    config["schedule"]["eta"] = eta
    (changed / "config.json").write_text(json.dumps(config))
    path = tmp_path / "eta.everframe"
    export_checkpoint(changed, path, Overrides(), chunks=6, force=False)
    bundle = Bundle.open(path)
    assert bundle.manifest.schedule.eta == eta
    reference = reference_of(bundle, checkpoint, 0.8)
    reference.eta = eta
    text = texts_of(checkpoint)[PROMPTS[0]]
    with Stream(bundle, seed=11) as stream:
        for c in range(6):
            chunk = stream.next_chunk()
            expected = reference.next_chunk(noise_of(11, c, bundle), SIGMAS, text, 3 * c)
            error = (torch.from_numpy(chunk.latent).double() - expected).abs().max() / expected.abs().max()
            assert error < 2e-5, f"chunk {c}"


@pytest.mark.parametrize("transition", ["swap", "smooth", "flush", "cut"])
def test_prompt_changes(bundle: Bundle, checkpoint: Path, transition: str) -> None:
    """Each transition against the same thing done to the reference's list."""
    reference = reference_of(bundle, checkpoint, 0.8)
    texts, made = texts_of(checkpoint), []
    with Stream(bundle, seed=5, prompt=PROMPTS[0], overlap=False) as stream:
        for c in range(9):
            prompt = PROMPTS[0] if c < 6 else PROMPTS[2]
            if c == 6:
                stream.set_prompt(PROMPTS[2], transition)  # type: ignore[arg-type]
                if transition == "smooth":
                    reference.recache(torch.cat(made[-3:], 1), texts[prompt], 3 * (c - 3), keep=1)
                elif transition == "flush":
                    reference.past = [reference.past[0], reference.past[-1]]
                elif transition == "cut":
                    reference.past = []
            chunk = stream.next_chunk()
            assert chunk.prompt == prompt
            expected = reference.next_chunk(noise_of(5, c, bundle), SIGMAS, texts[prompt], 3 * c)
            made.append(expected)
            error = (torch.from_numpy(chunk.latent).double() - expected).abs().max() / expected.abs().max()
            assert error < 2e-5, f"chunk {c}"


@pytest.mark.parametrize("at", [1, 2, 4])
@pytest.mark.parametrize("transition", ["smooth", "flush"])
def test_prompt_changes_before_the_ring_is_full(bundle: Bundle, checkpoint: Path, transition: str, at: int) -> None:
    reference = reference_of(bundle, checkpoint, 0.8)
    texts, made = texts_of(checkpoint), []
    with Stream(bundle, seed=5, prompt=PROMPTS[0], overlap=False) as stream:
        for c in range(6):
            prompt = PROMPTS[0] if c < at else PROMPTS[1]
            if c == at:
                stream.set_prompt(prompt, transition)  # type: ignore[arg-type]
                if transition == "smooth":
                    reference.recache(torch.cat(made, 1), texts[prompt], 0, keep=0)  # the sinks too
                elif at == 4:
                    reference.past = [reference.past[0], reference.past[-1]]
            expected = reference.next_chunk(noise_of(5, c, bundle), SIGMAS, texts[prompt], 3 * c)
            made.append(expected)
            latent = torch.from_numpy(stream.next_chunk().latent).double()
            assert (latent - expected).abs().max() / expected.abs().max() < 2e-5, f"chunk {c}"


@pytest.mark.parametrize(("form", "sink"), [("portable", 6), ("in-place", 3), ("portable", 3), ("in-place", 6)])
@pytest.mark.slow
def test_an_anchor_becomes_the_sinks(
    checkpoint: Path, tmp_path: Path, form: Literal["in-place", "portable"], sink: int
) -> None:
    """The picture's latents, encoded here, in the reference's list as if they had been made; the rest follows."""
    path = tmp_path / "a.everframe"
    changes = Overrides(encoder=True, sink=sink, form=form)
    export_checkpoint(checkpoint, path, changes, chunks=8, force=False)
    bundle = Bundle.open(path)
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    autoencoder = Taehv(AUTOENCODER).double()
    autoencoder.load_state_dict({k: v.double() for k, v in load_file(checkpoint / "autoencoder.safetensors").items()})
    clip = torch.from_numpy(picture).permute(2, 0, 1).double().expand(1, 4 * sink, 3, 32, 64) / 255
    with torch.no_grad():
        latents = autoencoder.encode(clip)[0][0].transpose(0, 1)  # [C, sink, h, w]
    reference = reference_of(bundle, checkpoint, 0.8)
    reference.sink = sink
    text = texts_of(checkpoint)[PROMPTS[0]]
    with Stream(bundle, seed=5, anchor=picture) as stream:
        for c in range(7):
            if c < sink // 3:
                expected = latents[:, 3 * c : 3 * c + 3]
                reference.commit(expected, text, 3 * c)
            else:
                expected = reference.next_chunk(noise_of(5, c, bundle), SIGMAS, text, 3 * c)
            chunk = stream.next_chunk()
            assert len(chunk.timings.diffuse) == (0 if c < sink // 3 else 4)
            error = (torch.from_numpy(chunk.latent).double() - expected).abs().max() / expected.abs().max()
            assert error < 2e-5, f"chunk {c}"


def test_anchors_that_do_not_fit(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="--encoder"):
        Stream(bundle, anchor=np.zeros((32, 64, 3), np.uint8))


def test_both_forms_give_the_same_frames(bundle_path: Path, portable_path: Path) -> None:
    with Stream(Bundle.open(bundle_path), seed=6) as a, Stream(Bundle.open(portable_path), seed=6) as b:
        for _ in range(10):
            one, other = a.next_chunk(), b.next_chunk()
            assert np.abs(one.latent - other.latent).max() < 1e-4
            assert np.abs(one.frames.astype(int) - other.frames).max() <= 1


def frames_of(bundle: Bundle, seed: int, **kw) -> np.ndarray:
    with Stream(bundle, seed=seed, **kw) as stream:
        return np.concatenate([stream.next_chunk().frames for _ in range(5)])


@pytest.mark.parametrize("transition", ["swap", "smooth", "flush", "cut"])
def test_overlap_changes_nothing_but_when_a_prompt_takes_effect(bundle: Bundle, transition: Literal["cut"]) -> None:
    """Decoding beside the next chunk's denoising: same frames, and a new prompt one chunk later."""
    one = EngineOptions(threads=1)  # a lane has half of the threads, and other threads may round otherwise
    with (
        Stream(bundle, seed=2, overlap=False, options=one) as plain,
        Stream(bundle, seed=2, overlap=True, options=one) as overlapped,
    ):
        assert plain.position == overlapped.position == 0
        for c in range(12):
            if c == 6:
                plain.set_prompt(PROMPTS[1], transition)
            if c == 5:
                overlapped.set_prompt(PROMPTS[1], transition)
            a, b = plain.next_chunk(), overlapped.next_chunk()
            assert (a.index, a.position, a.prompt) == (b.index, b.position, b.prompt)
            assert (a.latent == b.latent).all()
            assert (a.frames == b.frames).all()
            assert len(b.timings.diffuse) == 4
            assert plain.position == overlapped.position == 3 * c + 3


def test_two_lanes_of_two_threads(bundle: Bundle) -> None:
    one, two = (frames_of(bundle, 2, overlap=o, options=EngineOptions(threads=2)).astype(int) for o in (False, True))
    assert np.abs(one - two).max() <= 1


def test_seeds(bundle: Bundle) -> None:
    assert (frames_of(bundle, 1) == frames_of(bundle, 1)).all()
    assert (frames_of(bundle, 1) != frames_of(bundle, 2)).any()


def test_thread_counts_agree_to_rounding(bundle: Bundle) -> None:
    one, two = (frames_of(bundle, 1, options=EngineOptions(threads=n)).astype(int) for n in (1, 2))
    assert np.abs(one - two).max() <= 1


def test_chunks_belong_to_the_caller(bundle: Bundle) -> None:
    with Stream(bundle) as stream:
        first = stream.next_chunk()
        kept = first.frames.copy(), first.latent.copy()
        stream.next_chunk()
        assert (first.frames == kept[0]).all()
        assert (first.latent == kept[1]).all()
        first.latent[:] = 0  # nor does the stream get what its owner makes of it
        assert (stream.snapshot()[0]["recent_0"] == kept[1]).all()
    assert first.timings.total > 0
    assert len(first.timings.diffuse) == 4


def test_no_growth(bundle: Bundle) -> None:
    """Resident memory after 200 chunks within 2 % of that after 20."""
    psutil = pytest.importorskip("psutil")
    process = psutil.Process()
    with Stream(bundle) as stream:
        for _ in range(20):
            stream.next_chunk()
        early = process.memory_info().rss
        for _ in range(180):
            stream.next_chunk()
        assert process.memory_info().rss < 1.02 * early


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": "a quiet seat"}, ["a quiet seat", "did you mean 'a quiet sea'", *PROMPTS]),
        ({"seed": -1}, ["seed -1"]),
        ({"seed": 2**64}, ["seed"]),
        ({"start": -3}, ["start -3"]),
        ({"start": 10**13 + 1}, ["start", "10^13"]),
        ({"jitter_sigma": 1.5}, ["jitter", "1.5"]),
        ({"rope_mode": "sideways"}, ["sideways", "absolute", "relative"]),
        ({"rope_mode": "relative"}, ["rope relative", "export it anew with --rope relative"]),
        ({"options": EngineOptions(provider="abacus")}, ["abacus", "cpu"]),
        ({"options": EngineOptions(threads=-2)}, ["threads -2"]),
    ],
)
def test_bad_arguments(bundle: Bundle, arguments: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Stream(bundle, **arguments)
    for word in words:
        assert word in str(caught.value)


def test_unknown_transition(bundle: Bundle) -> None:
    with Stream(bundle) as stream, pytest.raises(UserError, match="dissolve"):
        stream.set_prompt(PROMPTS[1], "dissolve")  # type: ignore[arg-type]


def test_a_cut_at_once_forgets_the_chunk_in_flight(bundle: Bundle) -> None:
    """With overlap it comes as soon as without, as the same chunk; other changes wait for the one in flight."""
    with (
        Stream(bundle, seed=5, overlap=True) as overlapped,
        Stream(bundle, seed=5, overlap=False) as plain,
    ):
        for _ in range(4):
            overlapped.next_chunk()
            plain.next_chunk()
        for stream in (overlapped, plain):
            stream.set_prompt(PROMPTS[1], "cut")
            stream.cut_at_once()
        for _ in range(4):
            a, b = overlapped.next_chunk(), plain.next_chunk()
            assert (a.index, a.position, a.prompt) == (b.index, b.position, b.prompt)
            assert a.prompt == PROMPTS[1]
            assert np.abs(a.latent - b.latent).max() < 1e-5 * np.abs(b.latent).max()
            assert np.abs(a.frames.astype(int) - b.frames).max() <= 1
        overlapped.set_prompt(PROMPTS[2], "swap")
        overlapped.cut_at_once()
        assert overlapped.next_chunk().prompt == PROMPTS[1]


@pytest.mark.parametrize("order", ["swap", "smooth", "flush"])
@pytest.mark.parametrize("cuts", [1, 2])
def test_an_order_behind_a_cut_at_once(bundle: Bundle, order: Transition, cuts: int) -> None:
    """The scene is a new one all the same, under the newer prompt: of the forgotten chunk nothing is in it. After two cuts
    that is the first of its scene, which would be its sinks."""
    with Stream(bundle, seed=5) as overlapped, Stream(bundle, seed=5, overlap=False) as plain:
        for stream in (overlapped, plain):
            for _ in range(4):
                stream.next_chunk()
            for cut in range(cuts):
                if cut:
                    stream.next_chunk()
                stream.set_prompt(PROMPTS[1], "cut")
                stream.cut_at_once()
        overlapped.set_prompt(PROMPTS[2], order)
        plain.set_prompt(PROMPTS[2], "cut")
        for _ in range(3):
            a, b = overlapped.next_chunk(), plain.next_chunk()
            assert (a.index, a.position, a.prompt, a.begins) == (b.index, b.position, b.prompt, b.begins)
            assert np.abs(a.latent - b.latent).max() < 1e-5 * np.abs(b.latent).max()


@pytest.mark.parametrize("overlap", [False, True])
def test_an_order_behind_a_new_beginning(bundle: Bundle, overlap: bool) -> None:
    """Everything was emptied: another prompt, by any transition, is the one that the new scene begins with."""
    made = []
    for prompt, order in ((PROMPTS[1], None), (PROMPTS[0], "swap"), (PROMPTS[0], "smooth"), (PROMPTS[0], "flush")):
        with Stream(bundle, seed=5, overlap=overlap) as stream:
            for _ in range(6):
                stream.next_chunk()
            stream.begin_anew(prompt)
            if order is not None:
                stream.set_prompt(PROMPTS[1], order)  # type: ignore[arg-type]
            made.append([stream.next_chunk() for _ in range(3)])
    for others in made[1:]:
        for chunk, other in zip(made[0], others, strict=True):
            assert other.prompt == PROMPTS[1]
            assert (other.latent == chunk.latent).all()
            assert (other.frames == chunk.frames).all()


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_broken_off_inside_a_chunk_is_not_gone_on_with(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, overlap: bool
) -> None:
    """As by Ctrl-C: the ring and the decoder's states are half written, and a state saved of them would resume wrong."""
    with Stream(bundle, overlap=overlap) as stream:
        stream.next_chunk()
        monkeypatch.setattr(stream._loop, "shown", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.next_chunk()
        for go_on in (stream.next_chunk, stream.snapshot):
            with pytest.raises(UserError, match="broken off inside a chunk"):
                go_on()
    for go_on in (stream.next_chunk, stream.snapshot):
        with pytest.raises(UserError, match="the stream is closed"):
            go_on()


def interrupted() -> None:
    raise KeyboardInterrupt


def test_seeds_and_starts_of_numpy(bundle: Bundle, tmp_path: Path) -> None:
    seed, start = np.array([5, 30])
    with Stream(bundle, seed=seed, start=start) as stream:
        frames = stream.next_chunk().frames
        save_state(stream, tmp_path / "state")
    with Stream(bundle, seed=5, start=30) as stream:
        assert (stream.next_chunk().frames == frames).all()
    with pytest.raises(UserError, match=r"seed 1\.5"):
        Stream(bundle, seed=1.5)  # type: ignore[arg-type]
