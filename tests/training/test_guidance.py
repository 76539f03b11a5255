"""How far teachers are guided: by scene and variant, less above a sea's horizon, and what moves apart from what stands."""

from __future__ import annotations

import pytest
import torch
from distill import Teacher
from guidance import FURTHER, GUIDED, SKY_GUIDANCE, further_of, guidance_of
from prompts import PROMPTS
from refine import kept_loss
from rollout import Tables
from weights import trained_transformer

WIDE = torch.zeros(3, 16, 3, 18, 32)


def test_a_sea_is_guided_less_above_its_horizon() -> None:
    for measure, sky, water in zip(
        guidance_of(("sea", "noon"), WIDE), SKY_GUIDANCE, GUIDED["sea", "noon"], strict=True
    ):
        rows = measure[:, 0].tolist()
        assert rows[:8] == pytest.approx([sky] * 8)
        assert rows[8:] == pytest.approx([water] * 10)
    for measure, all_over in zip(guidance_of(("reef", "deep"), WIDE), GUIDED["reef", "deep"], strict=True):
        assert measure[:, 0].tolist() == pytest.approx([all_over] * 18)


def test_a_kept_sea_keeps_its_sky() -> None:
    for measure, water in zip(further_of(("sea", "noon"), WIDE), FURTHER["sea", "noon"], strict=True):
        assert measure[:, 0].tolist() == pytest.approx([0.0] * 8 + [water] * 10)
    for measure, all_over in zip(further_of(("fire", "red"), WIDE), FURTHER["fire", "red"], strict=True):
        assert measure[:, 0].tolist() == pytest.approx([all_over] * 18)


def test_every_scene_and_variant_that_is_kept_is_told_how_far() -> None:
    assert FURTHER.keys() == {(scene, variant) for scene, variants in PROMPTS.items() for variant in variants}
    assert FURTHER.keys() > GUIDED.keys()


def test_what_stands_and_what_moves_are_guided_apart() -> None:
    """The mean over a chunk's latent frames as guided by the one, the differences from it as guided by the other."""
    tables, text = Tables("cpu"), torch.zeros(1, 32, 384)
    torch.manual_seed(0)
    x = torch.randn(1, 16, 3, 18, 32)

    def x0(guidance: float, moving: float | None = None) -> torch.Tensor:
        both = (trained_transformer(name) for name in ("transformer", "young"))
        teacher = Teacher(*both, guidance=guidance, moving=moving)
        return teacher.x0(x, 0.5, tables([0], [1]), teacher.contexts(text), 0)

    without, some, more = x0(0.0), x0(0.5), x0(2.0)
    assert (some - without).abs().mean() > 0.01
    assert torch.allclose(x0(0.5, 0.5), some, atol=1e-5)
    for stands, moves, found in (
        (some, more, x0(0.5, 2.0)),
        (without, more, x0(0.0, 2.0)),
        (more, without, x0(2.0, 0.0)),
    ):
        assert torch.allclose(found.mean(2), stands.mean(2), atol=1e-5)
        mine, others = (v - v.mean(2, keepdim=True) for v in (found, moves))
        assert torch.allclose(mine, others, atol=1e-5)


def test_measures_may_differ_by_row() -> None:
    """Each row as it is where that measure is everywhere."""
    tables, text = Tables("cpu"), torch.zeros(1, 32, 384)
    torch.manual_seed(0)
    x = torch.randn(1, 16, 3, 18, 32)
    rows = torch.zeros(18, 1)
    rows[8:] = 2.0

    def x0(guidance: float | torch.Tensor, moving: float | torch.Tensor) -> torch.Tensor:
        both = (trained_transformer(name) for name in ("transformer", "young"))
        teacher = Teacher(*both, guidance=guidance, moving=moving)
        return teacher.x0(x, 0.5, tables([0], [1]), teacher.contexts(text), 0)

    found, without, moves = x0(torch.zeros(18, 1), rows), x0(0.0, 0.0), x0(0.0, 2.0)
    assert torch.allclose(found[..., :8, :], without[..., :8, :], atol=1e-5)
    assert torch.allclose(found[..., 8:, :], moves[..., 8:, :], atol=1e-5)
    assert (moves - without).abs().mean() > 0.01


def test_a_kept_scene_is_drawn_to_what_the_student_was_guided_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that is still what it was has nothing to learn where neither is guided further."""
    student, tables = trained_transformer("distill"), Tables("cpu")
    was = Teacher(*(trained_transformer(name) for name in ("distill", "transformer", "young")))
    some = torch.zeros(1, 1, 16, 3, 18, 32), torch.zeros(1, 1, 32, 384), [[0]]

    def loss(pair: tuple[float, float]) -> float:
        monkeypatch.setitem(FURTHER, ("fire", "red"), pair)
        torch.manual_seed(0)
        with torch.no_grad():
            return float(kept_loss(student, was, tables, ("fire", "red"), some))

    assert loss((0.0, 0.0)) < 1e-6
    assert loss((1.0, 0.0)) > 1e-4
    assert loss((0.0, 1.0)) > 1e-4
