"""What is asked of a scene is in its picture, in the words, and what is kept back is in no training clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips import WISHLESS, instance, trained, unseen
from prompts import PROMPTS
from scenes import SCENES, render
from wishes import COLOURS, COUNTS, Wish, wordings

from things import blobs, flakes, tree_tips

MOMENTS = torch.tensor([5, 40, 90])


def frames(scene: str, variant: str, wish: Wish, moments: torch.Tensor = MOMENTS) -> np.ndarray:
    return (render(scene, variant, 4000, moments, wish=wish) * 255).round().byte().numpy()


def alike(pictures: np.ndarray, colour: str) -> np.ndarray:
    """Where a pixel has the direction of a colour, however bright."""
    wanted = np.array([int(COLOURS[colour][k : k + 2], 16) for k in (1, 3, 5)], float)
    size = np.linalg.norm(pictures, axis=-1) * np.linalg.norm(wanted)
    return (pictures @ wanted > 0.985 * size) & (pictures.max(-1) > 60)


@pytest.mark.parametrize("count", range(1, 7))
def test_so_many_fish_of_that_colour(count: int) -> None:
    for picture in alike(frames("reef", "lagoon", Wish("pink", count)), "pink"):
        assert len(blobs(picture, (15, 800))) == count


@pytest.mark.parametrize("count", [1, 2, 3])  # of more, one stands before another
def test_so_many_trees(count: int) -> None:
    assert len(tree_tips(frames("snow", "day", Wish(count=count, weather="light"), torch.arange(12)))) == count


def test_light_and_heavy_snow() -> None:
    falling = [
        np.mean([len(found) for found in flakes(frames("snow", "night", Wish(weather=w), torch.arange(0, 60, 5)))])
        for w in ("light", "", "heavy")
    ]
    assert falling[0] < 0.5 * falling[1]
    assert falling[1] < 0.8 * falling[2]  # in dense snow flakes run into each other


@pytest.mark.parametrize("scene", ["sea", "lava", "city", "aurora", "fire"])
def test_colours(scene: str) -> None:
    variant = {"sea": "sunset", "lava": "blue", "city": "night", "aurora": "rose", "fire": "orange"}[scene]
    for colour in ("red", "green", "violet"):
        share = {other: alike(frames(scene, variant, Wish(other)), colour).mean() for other in (colour, "blue")}
        assert share[colour] > 0.005
        assert share[colour] > 5 * share["blue"]


def test_words_say_what_is_asked() -> None:
    for i in range(WISHLESS, 2 * WISHLESS):
        it = instance(i)
        if not it.wish:
            continue
        said = wordings(it.scene, it.variant, it.wish)
        assert len(set(said)) == 3
        assert it.wordings == said[:2]
        for words in (w.split() for w in said):
            assert not it.wish.colour or it.wish.colour in words
            assert not it.wish.count or list(COUNTS)[it.wish.count - 1] in words
            assert not it.wish.count or it.scene in ("lava", "snow", "reef")


def test_what_is_kept_back_is_in_no_clip() -> None:
    asked = [instance(i) for i in range(2 * WISHLESS)]
    assert not any(it.wish.untrained(it.scene, it.variant) for it in asked)
    assert not any(it.wish for it in asked[:WISHLESS])
    every = {(scene, variant) for scene, variants in PROMPTS.items() for variant in variants}
    assert {(it.scene, it.variant) for it in asked if it.wish} == every
    assert {(it.scene, it.variant) for it in asked[WISHLESS:] if not it.wish} == every
    parts = {(it.scene, it.wish.colour) for it in asked} | {(it.scene, it.wish.count) for it in asked}
    assert {("reef", "blue"), ("reef", 3), ("sea", "green"), ("city", "green"), ("lava", "violet")} <= parts
    held = unseen(2 * WISHLESS)
    assert not {*held} & {*trained(2 * WISHLESS)}
    assert all(not instance(i).wish for i in held)


@pytest.mark.parametrize("scene", list(SCENES))
def test_upright(scene: str) -> None:
    for variant in PROMPTS[scene]:
        picture = render(scene, variant, 3, MOMENTS[:1], 256, 144)
        assert picture.shape == (1, 256, 144, 3)
        assert picture.std() > 0.05
