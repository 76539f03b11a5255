"""What refine.py counts and guides: the sky of a sea, the cells where its sun is, and every third round upright."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import refine
import torch
from astray import ABOVE, BELOW, DISC
from beginnings import sun_cells
from refine import (
    GUIDANCE,
    SKY_GUIDANCE,
    Place,
    as_it_was,
    further,
    guidance_of,
    moved_student,
    of_step,
    taught_by,
    weight_of,
    whose_student,
)
from safetensors.torch import load_file, save_file

import run
from team import Team

WIDE = torch.zeros(3, 16, 3, 18, 32)


def test_a_sea_is_guided_less_above_its_horizon() -> None:
    rows = guidance_of(("sea", "noon"), WIDE)[:, 0].tolist()
    assert rows[:8] == pytest.approx([SKY_GUIDANCE] * 8)
    assert rows[8:] == pytest.approx([GUIDANCE + further(("sea", "noon"))] * 10)
    reef = guidance_of(("reef", "deep"), WIDE)[:, 0].tolist()
    assert reef == pytest.approx([GUIDANCE + further(("reef", "deep"))] * 18)


def test_where_the_suns_of_seas_are_counts_most_and_other_scenes_count_alike() -> None:
    weight = weight_of(WIDE, ["reef", "sea", "fire"])[:, 0, 0]
    assert (weight[[0, 2]] == 1).all()
    rows, columns = sun_cells(WIDE)
    assert (weight[1][rows, columns] == DISC).all()
    assert Counter(weight[1].flatten().tolist()).keys() == {ABOVE, BELOW, DISC}
    assert (weight[1][:8] >= ABOVE).all()
    assert (weight[1][8:] == BELOW).all()


def test_every_kind_of_step_is_upright_in_every_third_round() -> None:
    kinds = ("a", "b", "a", "c")
    steps = [of_step(step, kinds) for step in range(3 * len(kinds))]
    assert Counter(steps) == {("a", 0): 4, ("b", 0): 2, ("c", 0): 2, ("a", 1): 2, ("b", 1): 1, ("c", 1): 1}


def test_upright_pictures_are_held_to_their_own_weights_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "WORK", tmp_path)
    places = [Place(name, *[None] * 4) for name in ("", "upright")]  # type: ignore[arg-type]
    first = as_it_was("distill", Team(), places[0])
    assert (tmp_path / "distill-before.safetensors").exists()
    other = {k: v + 1 for k, v in first.state_dict().items()}
    save_file(other, tmp_path / "distill-upright.safetensors")
    wide, upright = (as_it_was("distill", Team(), place).state_dict() for place in places)
    assert all(wide[k].equal(v) for k, v in first.state_dict().items())
    assert all(upright[k].equal(v) for k, v in other.items())


def test_a_student_is_moved_by_what_its_own_teacher_has_moved_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "WORK", tmp_path)
    monkeypatch.setattr(run, "RUNS", tmp_path)
    run.write_compact("distill", {"model.w": torch.tensor([5.0])}, {"step": "7", "of": "30"})
    with pytest.raises(SystemExit, match="transformer-before"):
        whose_student()
    save_file({"w": torch.tensor([1.0])}, tmp_path / "transformer-before.safetensors")
    save_file({"w": torch.tensor([2.0])}, tmp_path / "transformer-20.safetensors")  # another's
    teacher = {"w": torch.tensor([10.0])}
    assert moved_student(load_file(whose_student()), teacher) == {"w": torch.tensor([5.0 + (10 - 1)])}
    save_file({"w": torch.tensor([4.0])}, taught_by(30))
    assert moved_student(load_file(whose_student()), teacher) == {"w": torch.tensor([5.0 + (10 - 4)])}
