"""The clips that refine.py goes on with: what is chosen is in the picture, and no judge and no pool has it."""

from __future__ import annotations

import numpy as np
import torch
from beginnings import EACH, FIRST, MIDDLE, beginning, listed, seeds
from clips import UPRIGHT, instance
from prompts import PROMPTS
from scenes import render

from things import disc


def test_the_sun_of_a_chosen_sea_stands_near_the_middle() -> None:
    found = []
    for variant in PROMPTS["sea"]:
        for seed in seeds("sea", variant, 6):
            frame = (render("sea", variant, seed, torch.tensor([0]))[0] * 255).round().byte().numpy()
            blob = disc(frame)
            found.append(None if blob is None else float(blob.columns.mean()) + 0.5)
    there = np.array([x for x in found if x is not None])
    assert len(there) == 18  # clouds are few
    assert np.abs(there - 128).max() < 144 * MIDDLE + 1.5  # pixels
    assert there.std() > 5  # not all in one place


def test_seeds_are_no_pools_and_no_judges() -> None:
    pool = {instance(i).seed for i in (3199, UPRIGHT + 319)}
    mine = {b.seed for b in listed(EACH)}
    assert max(pool) < FIRST <= min(mine)
    assert max(mine) < 5000  # judge.py learns its names from 5000 on, and compares with 9000 on


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
