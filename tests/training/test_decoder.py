"""What the decoder is tuned on: latents with their pixels, and beside the scenes other colours, and cards before them."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from clips import NEAR, frame_indices
from decoder import LENGTH, Pairs, recoloured


def test_a_recoloured_clip_is_the_clip_in_other_colours_behind_flat_still_cards() -> None:
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        clip = torch.rand(4, 3, 36, 64)
        kept = clip.clone()
        out = recoloured(clip)
        assert clip.equal(kept)
        assert out.shape == clip.shape
        assert 0 <= out.min() <= out.max() <= 1
        shares = {}
        for order, mirrored, inverted in itertools.product(
            itertools.permutations(range(3)), (False, True), (False, True)
        ):
            like = clip[:, order].flip(3) if mirrored else clip[:, order]
            same = ((1 - like if inverted else like) == out).all(1).all(0)  # [H, W]
            shares[order, mirrored, inverted] = same
        how = max(shares, key=lambda k: shares[k].sum())
        behind = shares[how]
        assert 0.1 < behind.float().mean() < 1
        cards = out[:, :, ~behind]
        assert cards.equal(cards[:1].expand_as(cards))  # they stand still
        assert len(cards[0].unique(dim=1).T) <= 3
        seen.add(how)
    assert {inverted for _, _, inverted in seen} == {mirrored for _, mirrored, _ in seen} == {False, True}
    assert len({order for order, _, _ in seen}) == 6


def test_latents_have_the_pixels_that_they_stand_for() -> None:
    """Every latent frame names its four pixel frames, near and far alike; no piece goes across the gap between the two."""
    far = 30  # the latent frame with which the far clip begins
    shown = frame_indices(far)  # of every frame of the pool
    pool = np.broadcast_to(shown.numpy().astype(np.uint8)[None, :, None, None, None], (50, len(shown), 8, 8, 3))
    of = np.concatenate([np.arange(NEAR // 4), np.arange(far, far + 12)]).astype(np.float32)
    latents = np.broadcast_to(of[None, :, None, None, None], (50, len(of), 16, 1, 1))
    pairs = Pairs(latents, pool, "cpu")
    torch.manual_seed(0)
    seen = set()
    for _ in range(60):
        made, frames = pairs.draw(2)
        assert made.shape[:2] == (2, LENGTH)
        assert frames.shape[:2] == (2, 4 * LENGTH)
        levels = (255 * frames[:, :, 0, 0, 0]).round()
        assert levels.equal((4 * made[:, :, 0, 0, 0]).repeat_interleave(4, 1) + torch.arange(4.0).repeat(LENGTH))
        assert (levels.diff() == 1).all()
        seen |= set(made[:, 0, 0, 0, 0].tolist())
    assert {0.0, NEAR // 4 - LENGTH, far, far + 12 - LENGTH} <= seen
