"""What a student is drawn to that learns other words: where it went itself, told what it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import reword
import torch
from distill import Teacher, rollout_loss
from rollout import Tables
from weights import trained_transformer

from team import Team


def test_it_is_drawn_to_itself_told_otherwise() -> None:
    student, was = trained_transformer("distill"), Teacher(trained_transformer("distill"), guidance=0.0)
    text, other = torch.randn(2, 1, 2, 32, 384, generator=torch.Generator().manual_seed(1))

    def loss(told: torch.Tensor, asked: torch.Tensor | None) -> float:
        torch.manual_seed(0)
        some = torch.zeros(1, 2, 16, 3, 18, 32), told, [[0], [3]]
        with torch.no_grad():
            return float(rollout_loss(student, was, Tables("cpu"), some, 1, true=0.0, asked=asked))

    assert loss(text, None) < 1e-8
    assert loss(other, text) > 1e-4
    later = torch.stack([text[:, 0], other[:, 1]], 1)  # the second chunk alone
    assert 1e-4 < loss(later, text) < loss(other, text)


def test_what_it_was_stays_and_it_begins_with_the_averaged_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reword, "WORK", tmp_path)
    begun = tmp_path / "distill.pt"
    begun.write_bytes(b"weights of the last refinement that are not averaged")
    first = reword.as_it_was(Team(1), "worded")
    assert not begun.exists()
    begun.write_bytes(b"its own")
    again = reword.as_it_was(Team(1), "worded")
    assert begun.exists()
    assert all(v.equal(again.state_dict()[k]) for k, v in first.state_dict().items())


def test_only_what_reads_the_text_learns() -> None:
    names = [name for name, _ in trained_transformer("distill").named_parameters() if reword.reads_text(name)]
    assert {name.split(".")[-2] for name in names if "blocks" in name} == {"q", "k", "v", "o", "norm_q", "norm_k"}
    assert all(".cross_attn." in name or name.startswith("text_embedding.") for name in names)
