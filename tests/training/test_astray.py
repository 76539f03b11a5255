"""Pasts in which a stream has lost something: what is gone, and that all else is as it was."""

from __future__ import annotations

import numpy as np
import torch
from astray import CHUNKS, GROUND, astray, with_ground, without_sun
from beginnings import beginning, seeds
from clips import NEAR, size_of
from latents import PER_CLIP, encode_clip
from scenes import render
from torch import Tensor
from transformer import Batches
from weights import shipped_autoencoder

from things import disc


def coded(variant: str, seed: int) -> Tensor:
    """[C, F, 2h, 2w] of a chosen sea's second chunk."""
    one = beginning("sea", variant, seed)
    frames = render(one.scene, one.variant, one.seed, torch.arange(24), *size_of(), one.wish)
    return encode_clip(shipped_autoencoder(), frames.permute(0, 3, 1, 2)[None])[0, 3:].transpose(0, 1)


def picture(chunk: Tensor) -> np.ndarray:
    with torch.no_grad():
        out, _ = shipped_autoencoder().decode(chunk.transpose(0, 1)[None])
    return (out[0, -1].clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()


def test_a_covered_sun_is_in_no_picture() -> None:
    for variant in ("sunset", "noon", "moonlit"):
        seed = seeds("sea", variant, 3)[2]
        one, chunk = beginning("sea", variant, seed), coded(variant, seed)
        assert disc(picture(chunk)) is not None
        for aside in (-9, 9):
            covered = without_sun(chunk, one, aside)
            assert disc(picture(covered)) is None, (variant, aside)
            changed = (covered != chunk).any(0).any(0)
            assert changed.sum() <= 81  # no more than nine by nine cells
            assert not changed[9:].any()  # the water is as it was


def test_the_glitter_goes_with_it_and_a_share_is_on_the_way() -> None:
    seed = seeds("sea", "noon", 3)[2]
    one, chunk = beginning("sea", "noon", seed), coded("noon", seed)
    sky, both, half = (without_sun(chunk, one, 9, *how) for how in ((False, 1.0), (True, 1.0), (False, 0.5)))
    water = slice(80, 144)
    bright = [np.sort(picture(c)[water].mean(-1).ravel())[-300:].mean() for c in (chunk, sky, both)]
    assert abs(bright[1] - bright[0]) < 8
    assert bright[2] < bright[0] - 8  # grey levels
    torch.testing.assert_close(half, (chunk + sky) / 2)


def test_ground_is_of_the_other_and_the_sky_is_not() -> None:
    mine, other = torch.randn(2, 1, 16, 3, 18, 32)
    out = with_ground(mine, other)
    assert out[..., :GROUND, :].equal(mine[..., :GROUND, :])
    assert out[..., GROUND:, :].equal(other[..., GROUND:, :])


def test_sinks_are_never_lost_and_what_is_lost_stays_so() -> None:
    shown = [
        beginning(scene, variant, 1000 + k) for scene, variant in (("sea", "noon"), ("hills", "autumn")) for k in (0, 1)
    ]
    latents = np.random.default_rng(0).standard_normal((len(shown), PER_CLIP, 16, 18, 32)).astype(np.float16)
    texts = {p: torch.full((2, 3), float(i)) for i, p in enumerate({w for one in shown for w in one.wordings})}
    batches = Batches(latents, texts, "cpu", shown=shown)
    batches.rng = np.random.default_rng(1)
    losses: dict[str, list[int]] = {"sea": [], "hills": []}
    for _ in range(60):
        (truth, text, starts), lose, (scene, _) = astray(batches)
        assert truth.shape == (1, CHUNKS, 16, 3, 18, 32)
        assert text.shape == (1, CHUNKS, 2, 3)
        assert starts[0] == [0]
        assert [s[0] - starts[1][0] for s in starts[1:]] == [0, 3, 6, 9]
        row = next(
            i for i in range(len(shown)) if torch.from_numpy(latents[i, :3]).float().transpose(0, 1).equal(truth[0, 0])
        )
        assert shown[row].scene == scene
        assert starts[1][0] in (3, shown[row].far)
        after = latents[row, 3:15] if starts[1][0] == 3 else latents[row, NEAR // 4 :]
        assert truth[0, 1:].transpose(1, 2).flatten(0, 1).equal(torch.from_numpy(after).float())
        lost = [not lose(truth[:, c], c).equal(truth[:, c]) for c in range(CHUNKS)]
        assert not lost[0]
        assert lost == sorted(lost)
        losses[scene].append(sum(lost))
    assert set(losses["sea"]) == {0, 2, 3, 4}
    assert set(losses["hills"]) == {0, 2, 3, 4}
