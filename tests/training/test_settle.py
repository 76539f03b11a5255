"""What a student is drawn to whose suns are to be whole: a render's, where that has its sun, and itself everywhere else."""

from __future__ import annotations

import numpy as np
import pytest
import settle
import torch
from clips import size_of
from distill import Teacher
from rollout import Tables
from scenes import render
from weights import trained_transformer
from wishes import COLOURS, UNTRAINED_COLOURS, Wish

from things import disc


@pytest.mark.parametrize("portrait", [False, True])
@pytest.mark.parametrize("variant", ["sunset", "noon", "moonlit"])
def test_the_suns_place_is_where_a_render_has_it(variant: str, portrait: bool) -> None:
    seed, (height, width) = settle.open_sky(variant, portrait), size_of(portrait)
    frame = render("sea", variant, seed, torch.zeros(1, dtype=torch.long), height, width, Wish())[0]
    every = 2 if portrait else 1  # an upright sun is larger than what `disc` takes for one
    sun = disc((255 * frame.numpy()[::every, ::every]).round().astype(np.uint8))
    assert sun is not None
    near = settle.around_sun(height // 8, width // 8)
    rows, columns = (np.arange(n) * 8 + 3.5 for n in near.shape)
    far = np.hypot(rows[:, None] - every * sun.rows.mean(), columns - every * sun.columns.mean())
    assert near[torch.from_numpy(far < 8)].min() == 1
    assert near[torch.from_numpy(far > 48)].max() < 0.06
    assert near[torch.from_numpy(rows > height * 4 / 9)].max() == 0  # the water


def test_there_it_has_that_sun_and_all_else_is_as_it_was() -> None:
    was, tables = trained_transformer("distill"), Tables("cpu")
    text, x, suns = torch.randn(2, 32, 384), torch.randn(2, 16, 3, 18, 32), torch.randn(2, 16, 3, 18, 32)
    near = settle.around_sun(18, 32)
    plain, settled = Teacher(was, guidance=0.0), settle.Settled(was, suns, near)
    told, rope = plain.contexts(text), tables([0, 0], [1, 1])
    first, made = (one.x0(x, 0.9, rope, told, 0) for one in (plain, settled))
    assert made[..., near == 1].equal(suns[..., near == 1])
    assert made[..., near == 0].equal(first[..., near == 0])


def test_a_sea_of_every_colour_that_training_may_see_and_no_cloud() -> None:
    seas = settle.clear_seas(False)
    for variant in ("sunset", "noon", "moonlit"):
        wishes = [one.wish for one in seas if one.variant == variant]
        held_out = {colour for scene, v, colour in UNTRAINED_COLOURS if (scene, v) == ("sea", variant)}
        assert {wish.colour for wish in wishes} == {"", *COLOURS} - held_out
        assert {wish.weather for wish in wishes} == {"", "clear"}
        assert len(wishes) == len(set(wishes))
        assert Wish() in wishes
