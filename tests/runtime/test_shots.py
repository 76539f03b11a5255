"""Streams of the 5B's family against a slow reference: UniPC steps by diffusers, a cache that is rolled as LongLive 2.0's
is, shots with their pinned chunk and their positions, one prompt a chunk."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# (diffusers' types do not tell what its calls return)
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler
from safetensors.numpy import load_file, save_file
from torch import Tensor

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle, describe, write_manifest
from everframe.engines.errors import UserError
from everframe.engines.ort import OrtBackend
from everframe.export.addprompts import add
from everframe.export.names import public_names
from everframe.export.sources import read, single
from everframe.export.texts import Umt5
from everframe.export.wanexport import load_transformer
from everframe.runtime import Stream
from everframe.runtime.anchor import encode_anchor
from everframe.runtime.noise import chunk_noise
from everframe.runtime.ring import RingLayout
from everframe.runtime.server.config import Config
from everframe.runtime.server.orders.control import Control
from everframe.runtime.server.orders.playlist import Item, Playlist
from everframe.runtime.shots import ShotRing
from everframe.runtime.state import load_state, save_state

from reference import Reference
from wanfiles import WAN_PROMPTS, source22

pytestmark = pytest.mark.slow  # exports of the 5B's family are the dearest there are
PREFIX = "The scene transitions. "
FORMS = ("in-place", "portable")


class LongLive2(Reference):
    """The cache is a list of four chunks, as the original keeps it: a roll drops one and moves what is behind it."""

    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.pinned: int | None = None  # place in the list
        self.shot = 0

    def visible(self) -> list:
        """With a full list, what is left once it has rolled for the next chunk."""
        if len(self.past) < self.window // self.chunk:
            return self.past
        protected = 2 if self.pinned == 1 else 1
        return [*self.past[:protected], *self.past[protected + 1 :]]

    def make(self, noise: Tensor, steps: int, text: Tensor, frame: int, cut: bool) -> Tensor:
        """noise [C, F, h, w] -> the chunk's latent; frame: its first one, counted without jumps."""
        self.shot += cut
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, solver_order=2
        )
        scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
        x, start = noise[None], frame + 8 * self.shot
        for timestep in scheduler.timesteps:
            flow, _ = self.forward(x[0], float(timestep), text, start)
            x = scheduler.step(flow[None], timestep, x, return_dict=False)[0]
        full, self.past = len(self.past) == self.window // self.chunk, self.visible()
        if full and self.pinned is not None and self.pinned > 1:
            self.pinned -= 1
        self.commit(x[0], text, start)
        if cut:
            self.pinned = len(self.past) - 1
        return x[0]


def reference_of(home: Path, bundle: Bundle, **changes) -> LongLive2:
    given = source22(home, **changes)
    state = dict(public_names(read(given.generator).state))
    thetas = (10000.0 * (1 + 0.8 * np.array(bundle.manifest.rope.epsilon))).tolist()
    config = load_transformer(given, single).config
    g = bundle.manifest.geometry
    return LongLive2(state, config, chunk=g.chunk, sink=g.sink, window=g.window, thetas=thetas)


def embedding(home: Path, prompt: str) -> Tensor:
    return Umt5(home / "text").encode(prompt, 512).half().double()


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_of_shots(wan22_home: Path, wan22_paths: dict[str, Path], form: str) -> None:
    """Twelve chunks, three shots, a plain change of the prompt, and a state that is resumed in between."""
    bundle = Bundle.open(wan22_paths[form])
    assert bundle.manifest.schedule.sampler == "unipc"
    assert (bundle.manifest.geometry.space_scale, bundle.manifest.recache) == (16, "none")
    reference = reference_of(wan22_home, bundle)
    shape = bundle.manifest.geometry.latent_shape
    sea, snow = WAN_PROMPTS
    orders = {2: (snow, "smooth"), 4: (sea, "cut"), 9: (PREFIX + snow, "swap"), 10: (PREFIX + sea, "cut")}
    cuts, prompt, made = (4, 9, 10), sea, []
    with Stream(bundle, seed=5, overlap=False) as stream:
        for c in range(12):
            if c in orders:
                stream.set_prompt(*orders[c])  # type: ignore[arg-type]
                prompt = orders[c][0].removeprefix(PREFIX)
            chunk = stream.next_chunk()
            noise = torch.from_numpy(chunk_noise(5, c, 1, shape))[0, 0].double()
            text = embedding(wan22_home, PREFIX + prompt if c in cuts else prompt)
            expected = reference.make(noise, 4, text, 2 * c, c in cuts)
            assert (torch.from_numpy(chunk.latent) - expected).abs().max() < 1e-4 * expected.abs().max(), c
            assert (chunk.prompt, chunk.position) == (prompt, 2 * c)
            made.append(chunk)
    assert [len(f.frames) for f in made] == [5] + 11 * [8]
    if form == "portable":
        return  # it decodes with taew2_2
    vae = AutoencoderKLWan.from_pretrained(wan22_home / "vae")
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        whole = torch.cat([torch.from_numpy(f.latent) for f in made], 1)[None]
        clip = vae.decode(whole * std + mean).sample[0].permute(1, 2, 3, 0)
    assert np.abs(np.concatenate([f.frames for f in made]) - ((clip + 1) * 127.5).numpy()).max() < 0.52


def test_a_state_in_the_middle_of_a_shot(wan22_paths: dict[str, Path], tmp_path: Path) -> None:
    """Saved right behind a cut, whose prompt is yet to lose its prefix, and later; with the decoding beside."""
    bundle = Bundle.open(wan22_paths["in-place"])

    def order(stream: Stream, c: int) -> None:
        if c in (2, 6):
            stream.set_prompt(WAN_PROMPTS[c // 2 % 2], "cut")

    with Stream(bundle, seed=1, overlap=True) as whole:
        expected = []
        for c in range(9):
            order(whole, c)
            expected.append(whole.next_chunk().frames)
    for split in (4, 5):
        with Stream(bundle, seed=1, overlap=True) as first:
            for c in range(split):
                order(first, c)
                first.next_chunk()
            save_state(first, tmp_path / "state")
        with Stream(bundle, seed=1, overlap=True) as second:
            load_state(second, tmp_path / "state")
            for c in range(split, 9):
                order(second, c)
                assert (second.next_chunk().frames == expected[c]).all(), (split, c)


@pytest.mark.parametrize("form", FORMS)
def test_a_state_is_restored_again_and_again(wan22_paths: dict[str, Path], form: str) -> None:
    """As calibration does for every layer: going on from a state changes nothing of it."""
    with Stream(Bundle.open(wan22_paths[form]), seed=1, overlap=False) as stream:
        for c in range(6):
            if c == 3:
                stream.set_prompt(WAN_PROMPTS[1], "cut")
            stream.next_chunk()
        state = stream.snapshot()
        expected = [stream.next_chunk().latent for _ in range(3)]
        for _ in range(2):
            stream.restore(*state)
            for latent in expected:
                assert (stream.next_chunk().latent == latent).all()


def test_a_stream_begun_anew_is_a_new_stream(wan22_paths: dict[str, Path]) -> None:
    bundle = Bundle.open(wan22_paths["portable"])
    with Stream(bundle, seed=2, overlap=False) as stream:
        for c in range(5):
            if c == 2:
                stream.set_prompt(WAN_PROMPTS[1], "cut")
            stream.next_chunk()
        stream.begin_anew(WAN_PROMPTS[0])
        again = stream.next_chunk()
        assert again.position == 2 * 5
    with Stream(bundle, seed=2, start=again.position, overlap=False) as fresh:
        fresh._index = 5  # the same noise
        assert (fresh.next_chunk().latent == again.latent).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_is_the_first_frame(wan22_paths: dict[str, Path], form: str) -> None:
    """Frame 0 of chunk 0, and no other, is the picture's latent; what else a picture changes is shown in test_parity."""
    bundle = Bundle.open(wan22_paths[form])
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    backend = OrtBackend(EngineOptions())
    (latent,) = encode_anchor(backend, bundle, picture)
    assert latent.shape == (1, 48, 1, 4, 6)
    with Stream(bundle, anchor=picture, overlap=False) as stream, Stream(bundle, overlap=False) as plain:
        for c in range(3):
            one, other = stream.next_chunk(), plain.next_chunk()
            held = (one.latent[:, 0] == latent[0, :, 0]).all()
            assert held == (c == 0)
            assert len(one.frames) == len(other.frames)
            assert np.abs(one.latent[:, 1] - other.latent[:, 1]).max() > 1e-3


def test_a_prompt_that_is_not_there_for_a_shot(wan22_home: Path, wan22_paths: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(wan22_paths["portable"], tmp_path / "b.everframe"))
    bank = load_file(path / "prompts.safetensors")
    assert set(bank) == {*WAN_PROMPTS, *(PREFIX + p for p in WAN_PROMPTS)}
    del bank[PREFIX + WAN_PROMPTS[1]]
    save_file(bank, path / "prompts.safetensors")
    manifest = Bundle.open(wan22_paths["portable"]).manifest
    write_manifest(path, manifest.model_copy(update={"prompt_bank": describe(path / "prompts.safetensors")}))
    with Stream(Bundle.open(path), overlap=False) as stream:
        stream.set_prompt(WAN_PROMPTS[1], "swap")
        with pytest.raises(UserError, match=r"not there as the first of a shot, behind 'The scene transitions\. '"):
            stream.set_prompt(WAN_PROMPTS[1], "cut")
    # The server says so when it is told, not when it is due, perhaps in an hour.
    control = Control(Config(state_dir=tmp_path), Bundle.open(path), lambda kind, value: None)
    items = [Item(prompt=WAN_PROMPTS[0]), Item(prompt=WAN_PROMPTS[1], transition="cut")]
    with pytest.raises(UserError, match="not there as the first of a shot"):
        control.set_playlist(Playlist(items=items))
    assert add(path, ["a quiet city"], None, str(wan22_home / "text")) == 1
    with Stream(Bundle.open(path), overlap=False) as stream:
        stream.next_chunk()
        stream.set_prompt("a quiet city", "cut")
        assert stream.next_chunk().prompt == "a quiet city"
    # With the prefix it is the same prompt: lists of prompts of the model's authors have it.
    encoder = str(wan22_home / "text")
    assert add(path, [f"{PREFIX}a quiet city", f"{PREFIX}{PREFIX}a quiet snow"], None, encoder) == 1
    assert Bundle.open(path).manifest.prompts == [*WAN_PROMPTS, "a quiet city", "a quiet snow"]
    with Stream(Bundle.open(path), prompt=f"{PREFIX}a quiet snow", overlap=False) as stream:
        assert stream.next_chunk().prompt == "a quiet snow"
        stream.set_prompt(f"  {PREFIX}a quiet snow", "swap")
        assert stream.next_chunk().prompt == "a quiet snow"


class Rolled:
    """The original's bookkeeping: a list of chunks that is rolled, and where in it the pinned one is."""

    def __init__(self, chunks: int, sinks: int):
        self.held: list[int] = []
        self.chunks, self.sinks, self.pinned = chunks, sinks, -1

    def add(self, chunk: int, cut: bool) -> list[int]:
        """What the chunk sees, itself included."""
        if len(self.held) == self.chunks:
            del self.held[self.sinks + (self.pinned == self.sinks)]
            self.pinned -= self.pinned > self.sinks
        self.held.append(chunk)
        if cut:
            self.pinned = len(self.held) - 1
        return list(self.held)


@pytest.mark.parametrize("past", [False, True])
def test_the_ring_sees_what_the_rolled_list_sees(past: bool) -> None:
    """Random cuts, in rings of every size, in both forms; a flush leaves what stays and the newest."""
    draw = random.Random(0)
    for _ in range(200):
        sinks, more, often = draw.choice([1, 2]), draw.choice([2, 3, 4]), draw.choice([0.0, 0.1, 0.4, 1.0])
        layout, rolled = RingLayout(sinks, more, 10), Rolled(sinks + more, sinks)
        ring = ShotRing(layout, past, 8)
        for chunk in range(40):
            cut = chunk >= sinks and draw.random() < often
            before = [slot for slot in ring.slots if slot is not None]
            ring.cut = cut
            slot = ring.place(chunk)
            seen = [*before, chunk] if past else [s for s in ring.slots if s is not None]
            assert sorted(seen) == sorted(rolled.add(chunk, cut))
            assert slot.valid == 10 * (len(seen) - past)
            assert slot.start == -1 or ring.slots[slot.start // 10] == chunk
            if not often:
                assert slot == layout.place(chunk, past)
        stood = list(ring.slots)

        def move(source: int, target: int, tokens: int) -> None:
            assert tokens == 10
            stood[target // 10] = stood[source // 10]  # noqa: B023

        expected = {s for s in stood if s is not None and (s < sinks or s in (ring.kept, max(stood)))}  # type: ignore[type-var]
        ring.flush(move)
        left = [s for s in ring.slots if s is not None]
        assert set(left) == expected
        assert stood[: len(left)] == left == ring.slots[: len(left)]
