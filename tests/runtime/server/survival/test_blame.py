"""What a generator goes on with after a chunk that is not finite."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from everframe.runtime import Stream
from everframe.runtime.server.orders.playlist import Change, Item, Playlist
from everframe.runtime.server.survival import worker

from helpers import PROMPTS
from piped import Pipe, generator, next_one_broken


@pytest.mark.parametrize("shown", [True, False])
def test_a_chunk_that_is_not_finite_undoes_no_order_that_was_shown(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    """One that no chunk was shown of may be what broke."""
    state = tmp_path / "state"
    playlist = Playlist(items=[Item(prompt=PROMPTS[0])])
    pipe = Pipe()
    running = generator(pipe, bundle_path, state, seed=3)
    pipe.orders += [("playlist", playlist), ("stop",)]
    running.run()
    running = generator(Pipe(), bundle_path, state, seed=3)
    running._obey("prompt", Change(prompt=PROMPTS[1], transition="swap"))
    for _ in range(3 * shown):
        running._advance()
    next_one_broken(running, monkeypatch)
    assert running._make() is None
    for _ in range(3):
        running._advance()
    assert (running.director.playlist, running.stream.prompt) == (
        (None, PROMPTS[1]) if shown else (playlist, PROMPTS[0])
    )


def test_an_order_is_not_blamed_for_a_chunk_that_was_begun_before_it(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Stream", partial(Stream, overlap=True))
    state = tmp_path / "state"
    pipe = Pipe()
    running = generator(pipe, bundle_path, state, seed=3, prompt=PROMPTS[0])
    running._advance()
    pipe.orders.append(("stop",))
    running.run()
    running = generator(pipe := Pipe(), bundle_path, state, seed=3, prompt=PROMPTS[0])
    running._advance()
    running._obey("prompt", Change(prompt=PROMPTS[1], transition="swap"))
    next_one_broken(running, monkeypatch)
    for _ in range(4):
        running._advance()
    assert [kind for kind, _ in pipe.events] == ["nan"]
    assert pipe.chunks[-1][0]["prompt"] == PROMPTS[1]


@pytest.mark.parametrize("saved", [True, False])
def test_a_new_playlist_is_tried_once_more_from_its_start(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: bool
) -> None:
    """What broke may have been the noise; the playlist that ran before does not come back."""
    state, pipe = tmp_path / "state", Pipe()
    running = generator(pipe, bundle_path, state, seed=3, prompt=PROMPTS[0])
    running._advance()
    if saved:
        pipe.orders.append(("stop",))
        running.run()
        running = generator(pipe := Pipe(), bundle_path, state, seed=3, prompt=PROMPTS[0])
        running._advance()
    running._obey("playlist", Playlist(items=[Item(prompt=PROMPTS[2], seconds=60)]))
    new = Playlist(items=[Item(prompt=PROMPTS[1], seconds=60, transition="swap")])
    running._obey("playlist", new)
    while running.stream.prompt != PROMPTS[1]:
        running._advance()
    next_one_broken(running, monkeypatch)
    for _ in range(4):
        running._advance()
    assert (running.director.playlist, running.director.item) == (new, 0)
    assert pipe.chunks[-1][0]["prompt"] == PROMPTS[1]


def test_a_wish_does_not_stay_because_what_follows_it_broke(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "Stream", partial(Stream, overlap=False))
    running = generator(pipe := Pipe(), bundle_path, tmp_path / "state", seed=3, prompt=PROMPTS[0])
    running._obey("playlist", Playlist(items=[Item(prompt=PROMPTS[0], seconds=60, transition="swap")]))
    running._advance()
    running._obey("lend", Change(prompt=PROMPTS[1], transition="swap"))
    for _ in range(3):
        running._advance()
    assert pipe.chunks[-1][0]["prompt"] == PROMPTS[1]
    running._obey("back", None)
    next_one_broken(running, monkeypatch)  # of the item that comes back
    for _ in range(4):
        running._advance()
    assert not running.director.lent
    assert pipe.chunks[-1][0]["prompt"] == PROMPTS[0]


def test_every_return_to_one_state_is_with_other_noise(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second and third break after the stream has got further than the one before."""
    state, pipe = tmp_path / "state", Pipe()
    running = generator(pipe, bundle_path, state, seed=3)
    pipe.orders.append(("stop",))
    running.run()
    running = generator(pipe := Pipe(), bundle_path, state, seed=3)
    seeds = [running.stream.seed]
    for n in range(3):
        for _ in range(2 * n + 1):
            running._advance()
        next_one_broken(running, monkeypatch)
        running._advance()
        seeds.append(running.stream.seed)
    assert [kind for kind, _ in pipe.events] == ["nan"] * 3
    assert len(set(seeds)) == 4
