"""What is asked for in many other words is said in each of them, and what freetext.py asks in is kept back."""

from __future__ import annotations

import re

import numpy as np
import phrases
import pytest
import reword
from freetext import FOREIGN, FOREIGN_COLOURS
from phrases import COLOURS, COUNTED, phrase
from prompts import PROMPTS
from texts import prompts
from wishes import Wish, every, wordings

ALL = [(scene, variant) for scene, variants in PROMPTS.items() for variant in variants]


def alternatives(text: str) -> set[str]:
    return set(text.strip("[]").split("|")) - {""}


def drawn(scene: str, variant: str, count: int = 200) -> list[tuple[Wish, str]]:
    rng, wishes = np.random.default_rng(5), every(scene, variant)
    some = [wishes[i] for i in rng.integers(len(wishes), size=count)]
    return [(wish, phrase(scene, variant, wish, rng)) for wish in some]


@pytest.mark.parametrize(("scene", "variant"), ALL)
def test_a_phrase_says_what_is_asked(scene: str, variant: str) -> None:
    for wish, said in drawn(scene, variant):
        assert re.fullmatch(r"[A-Za-z0-9',:\- ]+", said), said
        assert "  " not in said
        assert " ," not in said
        padded = f" {said.replace(',', ' ').replace(':', ' ')} "
        if wish.colour:
            assert any(f" {colour} " in padded for colour in alternatives(COLOURS[wish.colour])), (wish, said)
        if wish.count:
            assert any(f" {count} " in padded for count in alternatives(COUNTED[wish.count])), (wish, said)
        others = {n for n in COUNTED if n and n != wish.count}
        assert not any(f" {count} " in padded for n in others for count in alternatives(COUNTED[n])), (wish, said)


def words_of(said: str) -> set[str]:
    return set(re.findall("[a-z]+", said.lower()))


# All words that phrases are made of, and all that are told beside them.
TABLES = str([phrases.PHRASES, phrases.VARIANTS, phrases.WEATHERS, COLOURS, COUNTED, phrases.SPEAK_OF, phrases.MANNER])
KNOWN = words_of(TABLES) | {word for said in prompts() for word in words_of(said)}
FIFTH = {wordings(*one, wish)[-1] for one in ALL for wish in every(*one)}
PARTS = {  # of every phrase, what stands for the wish and for the variant
    "sea": [("colour",), ("sky", "above"), ("time", "light")],
    "hills": [("colour",), ("sky", "above"), ("land",), ("time",)],
    "lava": [("colour",), ("count:",)],
    "city": [("colour",), ("time",)],
    "snow": [("count:",), ("amount", "flakes"), ("time",)],
    "aurora": [("colour",)],
    "fire": [("colour",)],
    "reef": [("colour",), ("count:",), ("where",)],
}


@pytest.mark.parametrize("scene", list(PROMPTS))
def test_every_phrase_has_a_place_for_each_part_of_a_wish(scene: str) -> None:
    for said in phrases.PHRASES[scene]:
        for part in PARTS[scene]:
            assert any("{" + name in said for name in part), (said, part)


@pytest.mark.parametrize(("scene", "variant"), ALL)
def test_what_is_asked_in_later_is_kept_back(scene: str, variant: str) -> None:
    told = drawn(scene, variant)
    assert len({said for _, said in told}) > 100
    for wish, said in told:
        assert said not in FIFTH
        assert not wish.untrained(scene, variant)


def test_words_of_nobody_are_in_no_text_of_training() -> None:
    for scene, variant, wish, said in FOREIGN:
        assert not wish.untrained(scene, variant)
        assert words_of(said) - KNOWN, said


def test_colours_of_nobody_are_in_known_wordings() -> None:
    for scene, variant, wish, said in FOREIGN_COLOURS:
        unknown = words_of(said) - KNOWN
        assert len(unknown) == 1, (said, unknown)
        assert not wish.untrained(scene, variant), said
        assert said.replace(unknown.pop(), wish.colour) in wordings(scene, variant, wish)[:-1], said
    assert {wish.colour for _, _, wish, _ in FOREIGN_COLOURS} == {colour for colour in COLOURS if colour}


def test_every_prompt_is_told_beside_one_that_is_known() -> None:
    rng, known = np.random.default_rng(1), set(prompts())
    pairs = [reword.prompts(rng) for _ in range(400)]
    assert {wording for _, wording in pairs} <= known
    assert 0.4 < np.mean([told == wording for told, wording in pairs]) < 0.65
