"""Things counted chunk by chunk, of renders of which one chunk is blank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lasting import EVERY, FRAMES, by_chunk
from scenes import render

from things import fish


def test_fish_are_counted_in_each_chunk_for_itself() -> None:
    clips = [
        (render("reef", "turquoise", seed, torch.arange(3 * FRAMES)) * 255).round().byte().numpy() for seed in (7, 8)
    ]
    for clip in clips:
        clip[FRAMES : 2 * FRAMES] = 90
    first, blank, third = by_chunk("reef", clips)
    assert blank == 0
    for at, figure in ((0, first), (2 * FRAMES, third)):
        counts = [len(fish(frame)) for clip in clips for frame in clip[at : at + FRAMES : EVERY]]
        assert figure == pytest.approx(np.mean(counts))
        assert figure > 3


def test_a_sun_is_a_share_of_frames() -> None:
    clip = (render("sea", "moonlit", 3, torch.arange(2 * FRAMES)) * 255).round().byte().numpy()
    clip[FRAMES:] = 0
    assert by_chunk("sea", [clip]) == [1.0, 0.0]
