"""A first chunk with a schedule of its own (Causal Forcing++), against the slow reference that is given either list."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.export.recipes import find
from everframe.export.schedule import Schedule
from everframe.export.taehv import Taehv
from everframe.export.wanexport import check_schedule
from everframe.runtime import Stream
from everframe.runtime.cli.app import app
from everframe.runtime.noise import chunk_noise
from everframe.runtime.state import load_state, save_state

from helpers import AUTOENCODER, PROMPTS, TRANSFORMER, write_checkpoint
from reference import Reference, flow_sigmas
from wanfiles import source

FIRST = [1000, 750, 500, 250]


@pytest.fixture(
    scope="module",
    params=[pytest.param(one, marks=pytest.mark.slow) for one in (("in-place", [1000]), ("portable", [1000, 500]))],
    ids=["1-step", "2-step"],
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    """Frame-wise, as Causal Forcing++ is, one step in the one form and two in the other."""
    form: Literal["in-place", "portable"]
    form, steps = request.param
    home = tmp_path_factory.mktemp("first")
    geometry = {"geometry__chunk": 1, "geometry__sink": 1, "geometry__window": 4}
    schedule = {"schedule__steps": steps, "schedule__first_steps": FIRST}
    checkpoint = write_checkpoint(home / "checkpoint", **geometry, **schedule)
    export_checkpoint(checkpoint, home / "b.everframe", Overrides(encoder=True, form=form), chunks=8, force=False)
    return checkpoint, Bundle.open(home / "b.everframe")


class Expected:
    """The reference, given the first list for the first chunk that it denoises and the common one for all others."""

    def __init__(self, checkpoint: Path, bundle: Bundle):
        thetas = (10000.0 * (1 + 0.8 * np.array(bundle.manifest.rope.epsilon))).tolist()
        state = load_file(checkpoint / "transformer.safetensors")
        self.reference = Reference(state, TRANSFORMER, chunk=1, sink=1, window=4, thetas=thetas)
        self.texts = {k: v.double() for k, v in load_file(checkpoint / "prompts.safetensors").items()}
        self.steps, self.shape = bundle.manifest.schedule.steps, bundle.manifest.geometry.latent_shape
        self.first = True

    def chunk(self, c: int, prompt: str = PROMPTS[0]) -> torch.Tensor:
        steps = FIRST if self.first else self.steps
        self.first = False
        noise = torch.from_numpy(chunk_noise(5, c, len(steps), self.shape))[:, 0].double()
        return self.reference.next_chunk(noise, flow_sigmas(steps, 5.0), self.texts[prompt], c)


def close(latent: np.ndarray, expected: torch.Tensor) -> bool:
    return bool((torch.from_numpy(latent) - expected).abs().max() < 2e-5 * expected.abs().max())


def test_the_first_chunk_and_the_first_after_a_cut(made: tuple[Path, Bundle]) -> None:
    checkpoint, bundle = made
    expected = Expected(checkpoint, bundle)
    with Stream(bundle, seed=5, prompt=PROMPTS[0], overlap=False) as stream:
        for c in range(9):
            if c == 6:
                stream.set_prompt(PROMPTS[1], "cut")
                expected.reference.past, expected.first = [], True
            chunk = stream.next_chunk()
            assert len(chunk.timings.diffuse) == (4 if c in (0, 6) else len(bundle.manifest.schedule.steps))
            assert close(chunk.latent, expected.chunk(c, PROMPTS[1] if c >= 6 else PROMPTS[0])), c


def test_after_a_picture_it_is_the_first_that_is_denoised(made: tuple[Path, Bundle]) -> None:
    """As in the original's image-to-video: the given frame is committed, the next one has the first list."""
    checkpoint, bundle = made
    expected = Expected(checkpoint, bundle)
    picture = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    autoencoder = Taehv(AUTOENCODER).double()
    autoencoder.load_state_dict({k: v.double() for k, v in load_file(checkpoint / "autoencoder.safetensors").items()})
    clip = torch.from_numpy(picture).permute(2, 0, 1).double().expand(1, 4, 3, 32, 64) / 255
    with torch.no_grad():
        given = autoencoder.encode(clip)[0][0].transpose(0, 1)
    with Stream(bundle, seed=5, anchor=picture) as stream:
        assert close(stream.next_chunk().latent, given)
        expected.reference.commit(given, expected.texts[PROMPTS[0]], 0)
        for c in range(1, 6):
            assert close(stream.next_chunk().latent, expected.chunk(c)), c


@pytest.mark.parametrize("overlap", [False, True])
def test_resumed_and_overlapped_bit_for_bit(made: tuple[Path, Bundle], tmp_path: Path, overlap: bool) -> None:
    """A state saved when the next chunk is a first one again, and one in the middle."""
    _, bundle = made
    for at in (2, 3):
        with Stream(bundle, seed=5, overlap=overlap) as whole, Stream(bundle, seed=5, overlap=overlap) as resumed:
            for _ in range(2):
                whole.next_chunk()
            whole.set_prompt(PROMPTS[1], "cut")
            for _ in range(at - 2):
                whole.next_chunk()
            save_state(whole, tmp_path / "s")
            load_state(resumed, tmp_path / "s")
            for a, b in itertools.islice(zip(whole, resumed, strict=True), 5):
                assert (a.frames == b.frames).all()


def test_a_list_that_is_the_common_one_is_none() -> None:
    assert Schedule((1000, 500)).first_timesteps().size == 0


@pytest.mark.parametrize("name", ["causal-forcing++-2step", "causal-forcing++-1step"])
def test_the_recipes_know_it(wan_home: Path, name: str) -> None:
    options = {k: v for k, v in find(name).options.items() if k in ("steps", "first_steps", "shift", "chunk")}
    chosen = source(wan_home, **options)
    check_schedule(chosen)
    assert chosen.first_steps == tuple(FIRST)


@pytest.mark.parametrize(
    ("steps", "words"),
    [((500, 1000), "falling numbers"), ((1000, 937, 833, 625), "--first-steps 1000,937,833,625: look")],
)
def test_first_steps_that_are_wrong(wan_home: Path, steps: tuple[int, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_schedule(source(wan_home, first_steps=steps))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--first-steps", "1000,x"], "--first-steps '1000,x': expected numbers with commas"),
        (["--recache", "all"], "--recache 'all': expected window, chunks or none"),
    ],
)
def test_the_command_refuses(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, ["export", "wan", *words], catch_exceptions=False)
