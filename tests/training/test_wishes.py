"""What is asked of a scene is in its picture, in the words, and what is kept back is in no training clip."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clips import HELD_OUT, UPRIGHT, instance, trained, unseen
from prompts import PROMPTS
from scenes import SCENES, render
from texts import prompts
from wishes import COLOURS, COUNTS, Wish, every, wordings

from things import blobs, flakes, tree_tips

ALL = [*range(3200), *range(UPRIGHT, UPRIGHT + 320)]
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
    encoded = set(prompts())
    plain = {p for variants in PROMPTS.values() for group in variants.values() for p in group}
    for it in (instance(i) for i in ALL):
        assert set(it.wordings) <= encoded
        if not it.wish:
            continue
        said = wordings(it.scene, it.variant, it.wish)
        assert len(set(said)) == 5
        assert it.wordings == said[:4]
        assert said[4] not in encoded - plain
        for words in (w.split() for w in said):
            assert not it.wish.colour or it.wish.colour in words
            assert not it.wish.count or list(COUNTS)[it.wish.count - 1] in words
            assert not it.wish.count or it.scene in ("lava", "snow", "reef")


def test_what_is_kept_back_is_in_no_clip() -> None:
    asked = [instance(i) for i in ALL]
    assert not any(it.wish.untrained(it.scene, it.variant) for it in asked)
    assert {it.wish for it in asked if it.wish and it.scene == "reef"} <= {
        w for variant in PROMPTS["reef"] for w in every("reef", variant)
    }
    assert sum(bool(it.wish) for it in asked[:1600]) / 1600 == pytest.approx(1 / 3, abs=0.01)
    assert not any(instance(i, wishes=False).wish for i in range(100))
    variants = {(scene, variant) for scene, variants in PROMPTS.items() for variant in variants}
    assert {(it.scene, it.variant) for it in asked[:48] if it.wish} == variants
    assert {(it.scene, it.variant) for it in asked[:48] if not it.wish} == variants
    parts = {(it.scene, it.wish.colour) for it in asked} | {(it.scene, it.wish.count) for it in asked}
    assert {("reef", "blue"), ("reef", 3), ("sea", "green"), ("city", "green"), ("lava", "violet")} <= parts
    for clips in (480, 1600, 3200):
        held = unseen(clips)
        assert sorted(held + trained(clips)) == list(range(clips))
        assert {(instance(i).scene, instance(i).variant) for i in held} == variants
        assert len(held) == HELD_OUT
        assert not any(instance(i).wish for i in held)


@pytest.mark.parametrize("scene", list(SCENES))
def test_upright(scene: str) -> None:
    for variant in PROMPTS[scene]:
        picture = render(scene, variant, 3, MOMENTS[:1], 256, 144)
        assert picture.shape == (1, 256, 144, 3)
        assert picture.std() > 0.05
