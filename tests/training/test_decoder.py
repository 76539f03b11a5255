"""What the decoder is tuned on beside the scenes: other colours, and cards before them."""

from __future__ import annotations

import itertools

import torch
from decoder import recoloured


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
