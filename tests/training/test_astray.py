"""Pasts in which a stream has lost something: what is gone, and that all else is as it was."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from astray import ABOVE, BELOW, CHUNKS, DISC, astray, spoilt_suns, with_ground, with_spoilt_sun, without_sun
from beginnings import beginning, seeds
from clips import NEAR, size_of
from latents import PER_CLIP, encode_clip
from scenes import canvas, render, sun_of
from torch import Tensor
from transformer import Batches
from weights import shipped_autoencoder

from things import disc


def coded(variant: str, seed: int, portrait: bool = False) -> Tensor:
    """[C, F, 2h, 2w] of a chosen sea's second chunk."""
    one = beginning("sea", variant, seed)
    frames = render(one.scene, one.variant, one.seed, torch.arange(24), *size_of(portrait), one.wish)
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


def test_an_upright_sun_is_covered_too() -> None:
    seed = seeds("sea", "moonlit", 3, portrait=True)[2]
    one, chunk = beginning("sea", "moonlit", seed), coded("moonlit", seed, portrait=True)
    whole, covered = picture(chunk), picture(without_sun(chunk, one, 9))
    assert whole.shape == (256, 144, 3)
    height, width = size_of(portrait=True)
    _, across, down = sun_of(canvas("sea", "moonlit", seed, height, width))
    y, x = int(down * height), int(across * height)
    assert whole[y, x].min() > 180 > 100 > covered[y, x].max()  # grey levels


def test_a_spoilt_sun_is_spoilt_where_its_disc_is_and_only_there() -> None:
    whole = torch.ones(16, 1, 7, 7)
    for variant in ("sunset", "noon", "moonlit"):
        seed = seeds("sea", variant, 3)[2]
        one, chunk = beginning("sea", variant, seed), coded(variant, seed)
        clean = disc(picture(chunk))
        assert clean is not None
        assert with_spoilt_sun(chunk, one, 9, [((0, 0), whole)]).sub(chunk).abs().max() < 1e-5
        for by in ((0, 1), (1, 0), (0, -1)):
            aside = disc(picture(with_spoilt_sun(chunk, one, 9, [(by, whole)])))
            assert aside is not None, (variant, by)
            gone = aside.rows.mean() - clean.rows.mean(), aside.columns.mean() - clean.columns.mean()
            assert np.abs(np.array(gone) - 8 * np.array(by)).max() < 5, (variant, by, gone)  # pixels: a cell is eight
        y, x = int(clean.rows.mean()), int(clean.columns.mean())
        faint = with_spoilt_sun(chunk, one, 9, [((0, 0), 0.1 * whole)])
        there, before = (picture(c)[y - 2 : y + 3, x - 2 : x + 3].mean() for c in (faint, chunk))
        assert there < before - 20  # grey levels
        two = with_spoilt_sun(chunk, one, 9, [((0, 0), whole), ((0, 3), 0.8 * whole)])
        there, before = (picture(c)[y - 2 : y + 3, x + 22 : x + 27].mean() for c in (two, chunk))
        assert there > before + 8  # grey levels: another stands three cells to the right
        changed = (faint != chunk).any(0).any(0)
        rows, columns = (torch.nonzero(changed.any(i)).flatten() for i in (1, 0))
        assert len(rows) <= 7
        assert len(columns) <= 7
        _, across, down = sun_of(canvas("sea", variant, seed))
        assert rows.float().mean().sub(down * 18 - 0.5).abs() < 1
        assert columns.float().mean().sub(across * 18 - 0.5).abs() < 1


def test_its_own_sun_is_the_strongest_and_a_cell_aside_at_most() -> None:
    rng, counts = np.random.default_rng(2), []
    torch.manual_seed(2)
    for _ in range(200):
        suns = spoilt_suns(rng, 16, 7)
        strengths = [float(strength.mean()) for _, strength in suns]
        assert suns[0][1].shape == (16, 1, 7, 7)
        assert max(map(abs, suns[0][0])) <= 1
        assert all(later < 1.1 * before for before, later in itertools.pairwise(strengths))
        counts.append(len(suns))
    assert {1, 2, 3} == set(counts)
    assert 80 < counts.count(1) < 120


def test_ground_is_of_the_other_and_the_sky_is_not() -> None:
    mine, other = torch.randn(2, 1, 16, 3, 18, 32)
    out = with_ground(mine, other)
    assert out[..., :8, :].equal(mine[..., :8, :])
    assert out[..., 8:, :].equal(other[..., 8:, :])


def test_what_is_lost_stays_so_and_sinks_are_at_most_spoilt() -> None:
    shown = [
        beginning(scene, variant, 1000 + k) for scene, variant in (("sea", "noon"), ("hills", "autumn")) for k in (0, 1)
    ]
    latents = np.random.default_rng(0).standard_normal((len(shown), PER_CLIP, 16, 18, 32)).astype(np.float16)
    texts = {p: torch.full((2, 3), float(i)) for i, p in enumerate({w for one in shown for w in one.wordings})}
    batches = Batches(latents, texts, "cpu", shown=shown)
    batches.rng = np.random.default_rng(1)
    losses: dict[str, list[int]] = {"sea": [], "hills": []}
    for _ in range(80):
        it = astray(batches)
        (truth, text, starts), (scene, _) = it.drawn, it.kind
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
        lost = [int((it.lose(truth[:, c], c) != truth[:, c]).any(1).any(1).sum()) for c in range(CHUNKS)]
        assert lost[0] <= 49  # cells: of sinks at most what is around the disc
        there = [cells > 0 for cells in lost]
        assert there == sorted(there) or there == [True, False, False, False, False]
        losses[scene].append(sum(there))
        if scene == "hills":
            assert it.weight.unique().tolist() == [1]
            assert there[0] is False
        else:
            assert set(it.weight.unique().tolist()) <= {BELOW, ABOVE, DISC}
            assert (it.weight == DISC).sum() <= 49
    assert set(losses["sea"]) == {0, 1, 2, 3, 4, 5}
    assert set(losses["hills"]) == {0, 2, 3, 4}
