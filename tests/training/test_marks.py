"""Goals that what is wrong in two ways at once, missing or noisy cannot meet."""

from __future__ import annotations

import numpy as np
import pytest
from marks import COUNTED, Row, goals, measure, shares

GOOD: Row = {"finest": 1.0, "next": 1.0, "motion": 1.0}
REEF = {name: 1.0 for name, scene in COUNTED.items() if scene == "reef"}


def value(rows: dict[tuple[str, str], Row], text: str) -> tuple[float, bool]:
    (goal,) = (g for g in goals(rows, (2, 2), 2) if text in g.text)
    return goal.value, goal.met


def reef(**changes: float) -> dict[tuple[str, str], Row]:
    """Two variants, the second with changes."""
    return {("reef", "a"): GOOD | REEF, ("reef", "b"): GOOD | REEF | changes}


def test_as_much_as_in_the_renders() -> None:
    assert all(g.met for g in goals(reef() | {("sea", "a"): GOOD | {"disc": 1.0}}, (2, 2), 2))


def test_too_much_does_not_make_good_too_little() -> None:
    rows = reef(motion=0.5)
    rows["reef", "a"] |= {"motion": 2.0}
    off, met = value(rows, "motion")
    assert off == pytest.approx(1.0)  # by a factor of two
    assert not met
    rows["reef", "a"] |= {"fish": 3.0}
    rows["reef", "b"] |= {"fish": 1 / 3}
    assert value(rows, "of 2 counts") == (1, False)


def test_noise_is_no_detail() -> None:
    energy, met = value(reef(finest=16.0), "finest")
    assert energy == pytest.approx(0.25)
    assert not met


def test_what_no_variant_has_is_missing() -> None:
    rows = reef()
    for row in rows.values():
        del row["fish size"]
    assert value(rows, "of 2 counts") == (1, False)
    assert value({("lava", "a"): GOOD}, "of 0 counts") == (0, True)


def test_a_clip_with_half_the_contrast_has_a_quarter_of_the_energies_and_half_of_the_motion() -> None:
    """Of noise about grey, and so its colours are half as far from that too."""
    rng = np.random.default_rng(0)
    pictures = 60 * rng.integers(-1, 2, (2, 16, 72, 128, 3))
    full, half = ([(128 + part // by).astype(np.uint8) for part in pictures] for by in (1, 2))
    found = shares(measure("lava", half), measure("lava", full))
    for energy in ("finest", "next", "third", "Laplacian", "fast", "slow"):
        assert found[energy] == pytest.approx(1 / 4, rel=1e-3)
    assert found["motion"] == pytest.approx(1 / 2, rel=1e-3)
    assert found["diversity"] == pytest.approx(1 / 2, rel=1e-3)
    assert found["judder"] == pytest.approx(1, rel=1e-3)
    assert found["colour"] == pytest.approx(30 * 2 / 3, rel=0.1)  # two of three values are 30 levels off
