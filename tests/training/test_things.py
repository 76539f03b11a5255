"""Things that are drawn here, in known number and size, are found; what only looks a bit like them is not."""

from __future__ import annotations

import numpy as np
import pytest

from things import blobs, disc, fish, flakes, grid, median_area, prominence, stripe, tree_tips, windows

H, W = 144, 256
Y, X = np.mgrid[:H, :W].astype(float)


def evening() -> np.ndarray:
    """A sky that brightens towards the horizon."""
    return np.stack([60 + 1.2 * Y, 50 + 0.8 * Y, 90 + 0 * Y], -1)


def water() -> np.ndarray:
    return np.stack([70 - 0.4 * Y, 210 - 0.8 * Y, 220 - 0.5 * Y], -1)


def paint(picture: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float]) -> None:
    picture[mask] = colour


def done(picture: np.ndarray) -> np.ndarray:
    return picture.round().clip(0, 255).astype(np.uint8)


def blurred(picture: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        p = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
        picture = (p[1:-1, 1:-1] + p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:]) / 5
    return picture


@pytest.mark.parametrize(("x", "y", "radius"), [(60, 40, 8), (200, 30, 6), (128, 52, 10)])
def test_disc(x: float, y: float, radius: float) -> None:
    sky = evening()
    paint(sky, np.hypot(X - x, Y - y) < radius, (255, 240, 180))
    found = disc(done(sky))
    assert found is not None
    assert found.columns.mean() == pytest.approx(x, abs=1)
    assert found.rows.mean() == pytest.approx(y, abs=1)
    assert found.area == pytest.approx(np.pi * radius**2, rel=0.15)


def test_what_is_no_disc() -> None:
    assert disc(done(evening())) is None
    bar = evening()
    paint(bar, (abs(X - 80) < 25) & (abs(Y - 30) < 4), (255, 240, 180))
    assert disc(done(bar)) is None
    glow = evening() + 60 * np.exp(-np.hypot(X - 128, Y - 40) / 40)[..., None]
    assert disc(done(glow)) is None


def school(places: list[tuple[float, float]], size: float, dark: float) -> np.ndarray:
    """Ellipses size × size/2 with a dark stripe across, and what is no fish: blades of weed, bubbles."""
    sea = water()
    for x in (20, 100, 230):
        paint(sea, (abs(X - x) < 2) & (Y > 70), (10, 60, 30))
    for x, y in ((50, 20), (140, 110), (210, 60)):
        paint(sea, np.hypot(X - x, Y - y) < 1.5, (160, 220, 230))
    for x, y in places:
        body = ((X - x) / size) ** 2 + ((Y - y) / (size / 2)) ** 2 < 1
        paint(sea, body, (255, 140, 40))
        paint(sea, body & (abs(X - x) < size / 8), (255 * (1 - dark), 140 * (1 - dark), 40 * (1 - dark)))
    return done(sea)


@pytest.mark.parametrize("places", [[], [(60, 50)], [(50, 40), (120, 60), (180, 90), (90, 95), (210, 30)]])
def test_fish_are_counted(places: list[tuple[float, float]]) -> None:
    found = fish(school(places, 10, 0.3))
    assert len(found) == len(places)
    if places:
        assert median_area(found) == pytest.approx(np.pi * 10 * 5, rel=0.15)


def test_stripes() -> None:
    for dark in (0.0, 0.2, 0.4):
        frame = school([(128, 50)], 12, dark)
        assert stripe(frame, fish(frame)[0]) == pytest.approx(dark, abs=0.03)


def test_a_blurred_fish_has_less_of_a_stripe() -> None:
    sharp = school([(128, 50)], 12, 0.4)
    soft = done(blurred(sharp.astype(float), 12))
    assert stripe(soft, fish(soft)[0]) < 0.6 * stripe(sharp, fish(sharp)[0])


def house(columns: int, rows: int) -> np.ndarray:
    night = np.full((H, W, 3), 20.0)
    for i in range(rows):
        for j in range(columns):
            night[40 + 6 * i : 43 + 6 * i, 30 + 6 * j : 33 + 6 * j] = (250, 210, 140)
    return night


def test_windows_on_a_grid() -> None:
    frame = done(house(12, 8))
    found = windows(frame)
    assert len(found) == 96
    assert median_area(found) == 9
    assert grid(frame) > 0.5


def test_lights_without_order() -> None:
    night, rng = np.full((H, W, 3), 20.0), np.random.default_rng(0)
    for _ in range(90):
        y, x = rng.integers(25, 110), rng.integers(5, 245)
        night[y : y + 3, x : x + 3] = (250, 210, 140)
    assert grid(done(night)) < 0.1


def test_no_windows_in_a_blur() -> None:
    assert not windows(done(blurred(house(12, 8), 30)))
    assert grid(done(np.full((H, W, 3), 20.0))) == 0


def forest(tips: list[tuple[int, int]]) -> np.ndarray:
    """Dark triangles (x, height) on snow that begins at the foot of the trees."""
    picture = np.full((H, W, 3), 150.0)
    foot = int(0.8 * H)
    for x, tall in tips:
        paint(picture, (abs(X - x) < 0.24 * (Y - (foot - tall))) & (foot > Y), (30, 50, 40))
    paint(picture, foot <= Y, (230, 235, 240))
    return picture


def test_trees() -> None:
    planted = [(30, 60), (90, 45), (150, 70), (215, 50)]
    found = tree_tips(np.stack([done(forest(planted))] * 3))
    assert found == pytest.approx([tall for _, tall in planted], abs=4)
    assert tree_tips(np.stack([done(forest([]))] * 3)) == []


def test_flakes_fall_before_trees() -> None:
    rng = np.random.default_rng(1)
    places = [(int(x), int(y)) for x, y in zip(rng.permutation(24)[:20] * 10 + 5, rng.integers(0, H, 20), strict=True)]
    frames = []
    for t in range(9):
        picture = forest([(100, 60)])
        for x, y in places:
            paint(picture, np.hypot(X - x, (Y - y - 11 * t) % H) < 1.5, (255, 255, 255))
        frames.append(done(picture))
    counts = [len(found) for found in flakes(np.stack(frames))]
    assert min(counts) >= 8  # before the snow on the ground they hardly show
    assert max(counts) <= len(places)


def test_blobs_by_area() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:4, 2:4] = mask[10:15, 10:15] = True
    assert sorted(b.area for b in blobs(mask, (1, 100))) == [4, 25]
    assert [b.area for b in blobs(mask, (5, 100))] == [25]


def test_prominence_counts_from_the_higher_saddle() -> None:
    profile = np.array([0, 5, 2, 9, 4, 6, 1])
    assert prominence(profile, 3, 3) == 9
    assert prominence(profile, 1, 1) == 3
    assert prominence(profile, 5, 5) == 2
