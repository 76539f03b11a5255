"""What refine.py counts and guides: the sky of a sea, the cells where its sun is, and every third round upright."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import refine
import torch
from astray import ABOVE, BELOW, DISC
from beginnings import Drawn, sun_cells
from distill import Teacher, rollout_loss, standing_out
from refine import (
    Place,
    as_it_was,
    beginning_loss,
    moved_student,
    of_step,
    taught_by,
    weight_of,
    whose_student,
)
from rollout import Tables
from safetensors.torch import load_file, save_file
from weights import trained_transformer

import run
from team import Team

WIDE = torch.zeros(3, 16, 3, 18, 32)


def test_where_the_suns_of_seas_are_counts_most_and_other_scenes_count_alike() -> None:
    weight = weight_of(WIDE, ["reef", "sea", "fire"])[:, 0, 0]
    assert (weight[[0, 2]] == 1).all()
    rows, columns = sun_cells(WIDE)
    assert (weight[1][rows, columns] == DISC).all()
    assert Counter(weight[1].flatten().tolist()).keys() == {ABOVE, BELOW, DISC}
    assert (weight[1][:8] >= ABOVE).all()
    assert (weight[1][8:] == BELOW).all()


def test_a_beginning_that_is_kept_is_drawn_to_what_was_and_one_that_is_learnt_to_the_truth() -> None:
    model, tables = trained_transformer("distill"), Tables("cpu")
    text = torch.zeros(1, 32, 384)

    def loss(scenes: list[str], before: str, learnt: list[str]) -> float:
        torch.manual_seed(0)
        n = len(scenes)
        some = Drawn(torch.ones(n, 16, 3, 18, 32), text.expand(n, -1, -1), [(scene, "deep") for scene in scenes])
        with torch.no_grad():
            return float(beginning_loss(model, trained_transformer(before), tables, some, learnt))

    assert loss(["reef"], "distill", ["sea"]) == 0
    assert loss(["reef"], "young", ["sea"]) > 0
    assert loss(["reef"], "young", ["reef"]) == loss(["reef"], "distill", ["reef"]) > 0
    sea, fire = (loss(["sea", "fire"], "distill", [learnt]) for learnt in ("sea", "fire"))
    assert sea > 0 < fire
    assert loss(["sea", "fire"], "distill", ["sea", "fire"]) == pytest.approx(sea + fire)
    assert loss(["sea", "fire"], "young", ["reef"]) == pytest.approx(loss(["city", "fire"], "young", ["reef"]))


def test_in_a_rollout_what_stands_out_counts_more_where_it_is_said() -> None:
    student, tables, text = trained_transformer("distill"), Tables("cpu"), torch.zeros(2, 1, 32, 384)

    def loss(things: torch.Tensor | float) -> float:
        torch.manual_seed(0)
        teacher = Teacher(trained_transformer("transformer"), guidance=0.0)
        with torch.no_grad():
            some = torch.zeros(2, 1, 16, 3, 18, 32), text, [[0, 0]]
            return float(rollout_loss(student, teacher, tables, some, substeps=1, things=things))

    plain, both = loss(0.0), loss(1.0)
    first, second = (loss(torch.tensor(of).view(2, 1, 1, 1, 1)) for of in ([1.0, 0.0], [0.0, 1.0]))
    assert plain < first < both
    assert plain < second < both
    assert first + second == pytest.approx(plain + both, rel=1e-4)


def test_what_stands_out_of_its_row_counts_more() -> None:
    """By as much as it does; rows that differ from each other don't."""
    row = torch.arange(18.0).view(1, 1, 1, 18, 1).repeat(2, 16, 3, 1, 32)
    assert (standing_out(row) == 0).all()
    one = row.clone()
    one[0, :, 1, 4, 7] += 2.0
    out = standing_out(one)
    assert out.shape == (2, 1, 3, 18, 32)
    assert out[0, 0, 1, 4, 7] == 4.0
    assert out.sum() == 4.0


def test_every_kind_of_step_is_upright_in_every_third_round() -> None:
    kinds = ("a", "b", "a", "c")
    steps = [of_step(step, kinds) for step in range(3 * len(kinds))]
    assert Counter(steps) == {("a", 0): 4, ("b", 0): 2, ("c", 0): 2, ("a", 1): 2, ("b", 1): 1, ("c", 1): 1}


def test_upright_pictures_are_held_to_their_own_weights_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refine, "WORK", tmp_path)
    places = [Place(name, *[None] * 4) for name in ("", "upright")]  # type: ignore[arg-type]
    first = as_it_was("distill", Team(), places[0], ["sea"])
    assert (tmp_path / "distill-before.safetensors").exists()
    other = {k: v + 1 for k, v in first.state_dict().items()}
    save_file(other, tmp_path / "distill-upright.safetensors")
    wide, upright = (as_it_was("distill", Team(), place, ["sea"]).state_dict() for place in places)
    assert all(wide[k].equal(v) for k, v in first.state_dict().items())
    assert all(upright[k].equal(v) for k, v in other.items())


def test_what_was_before_other_scenes_went_on_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refine, "WORK", tmp_path)
    wide = Place("", *[None] * 4)  # type: ignore[arg-type]
    as_it_was("distill", Team(), wide, ["sea", "reef"])
    as_it_was("distill", Team(), wide, ["sea", "reef"])
    with pytest.raises(SystemExit, match=r"distill-before.safetensors: .* before sea reef went on, not reef"):
        as_it_was("distill", Team(), wide, ["reef"])


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
