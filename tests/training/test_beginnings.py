"""The clips that refine.py goes on with: what is chosen is in the picture, and no judge and no pool has it."""

from __future__ import annotations

from collections import Counter

import beginnings
import numpy as np
import pytest
import torch
from beginnings import (
    AWAY,
    EACH,
    FIRST,
    KEPT,
    LATER,
    LEARNT,
    LEVEL,
    Beginnings,
    beginning,
    listed,
    seeds,
    sun_cells,
)
from clips import UPRIGHT, instance, size_of
from prompts import PROMPTS
from scenes import SUN, render
from settings import CELL

from team import Team
from things import disc, fish


def first_frame(scene: str, variant: str, seed: int, portrait: bool = False) -> np.ndarray:
    frame = render(scene, variant, seed, torch.tensor([0]), *size_of(portrait))[0]
    return (frame * 255).round().byte().numpy()


@pytest.mark.parametrize("portrait", [False, True])
def test_the_suns_of_chosen_seas_stand_in_one_place(portrait: bool) -> None:
    """In the picture itself: no further from the middle and from one height than was said, two pixels more for measuring."""
    height, width = size_of(portrait)
    rows, columns = sun_cells(torch.zeros(height // CELL, width // CELL))
    assert rows.stop - rows.start <= 2 * SUN * height / CELL + 3  # no more than the cells that a disc may touch
    assert columns.stop - columns.start <= 2 * SUN * height / CELL + 3
    every = 2 if portrait else 1  # an upright one's are larger than what counts as a disc
    found = 0
    for variant in PROMPTS["sea"]:
        for seed in seeds("sea", variant, 6, portrait):
            blob = disc(first_frame("sea", variant, seed, portrait)[::every, ::every])
            if blob is None:
                continue
            found += 1
            down, across = (every * at for at in (blob.rows, blob.columns))
            assert abs(across.mean() + 0.5 - width / 2) < CELL * AWAY + 2
            assert abs(down.mean() + 0.5 - LEVEL * height) < CELL * AWAY + 2
            assert set(down // CELL) <= set(range(height // CELL)[rows])
            assert set(across // CELL) <= set(range(width // CELL)[columns])
    assert found == 18  # clouds are few


def test_chosen_reefs_show_nearly_all_of_their_fish() -> None:
    for variant in PROMPTS["reef"]:
        chosen = seeds("reef", variant, 12)
        some = set(range(FIRST, chosen[-1])) - set(chosen)
        many, few = ([len(fish(first_frame("reef", variant, seed))) for seed in which] for which in (chosen, some))
        assert np.mean(many) > np.mean(few) + 0.7  # of those that hide another, one is counted
        assert np.mean(many) > 5.2


def test_what_is_drawn_is_mostly_of_what_is_to_be_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beginnings, "encoded", lambda name, shown, *_: np.zeros((len(shown), 3, 1, 1, 1), np.float16))
    each = dict.fromkeys(PROMPTS, KEPT) | {"hills": EACH["hills"], "reef": EACH["reef"]}
    words = {word: torch.zeros(1, 1) for b in listed(each) for word in b.wordings}
    some = Beginnings(["hills", "reef"], words, "cpu", Team())
    assert Counter(b.scene for b in some.all) == {scene: 3 * n for scene, n in each.items()}
    drawn = Counter(some.draw(2000).scenes)
    assert all(abs(drawn[scene] / 2000 - LEARNT / 2) < 0.05 for scene in ("hills", "reef"))
    assert all(drawn[scene] / 2000 < 0.08 for scene in PROMPTS if scene not in ("hills", "reef"))
    assert set(some.draw(50, ["reef"]).scenes) == {"reef"}


def test_seeds_are_no_pools_and_no_judges() -> None:
    pool = {instance(i).seed for i in (3199, UPRIGHT + 319)}
    mine = {b.seed for b in listed(EACH, 0.5)} | {b.seed for b in listed(LATER, 1.0)}
    assert max(pool) < FIRST <= min(mine)
    assert not any(5000 <= seed < 10_000 for seed in mine)  # judge.py's: names from 5000 on, others from 9000
    assert max(mine) >= 10_000  # some are beyond


def test_as_many_as_said_and_a_share_of_them_is_the_first() -> None:
    few, many = (
        {scene: [b for b in listed(EACH, share) if b.scene == scene] for scene in PROMPTS} for share in (0.01, 0.02)
    )
    for scene, n in EACH.items():
        assert len(few[scene]) == 3 * max(1, round(0.01 * n))
        assert {b.seed for b in few[scene]} <= {b.seed for b in many[scene]}


def test_far_is_a_chunks_first_latent_frame() -> None:
    far = [beginning("sea", "noon", seed).far for seed in range(FIRST, FIRST + 200)]
    assert all(f % 3 == 0 and 12 <= f < 3e5 for f in far)
    assert min(far) < 100 < 1e4 < max(far)
