"""What the trainings have in common."""

from __future__ import annotations

import torch
from common import FilterMuon


def test_a_steps_gradient_does_not_count_in_the_next() -> None:
    """A backward pass adds to the filters' own gradients, not to those of the matrices that they are seen as."""
    filters = torch.nn.Parameter(torch.randn(3, 2, 3, 3))
    muon = FilterMuon([filters], lr=0.0)
    for _ in range(3):
        muon.zero_grad()
        filters.sum().backward()
        assert filters.grad is not None
        assert (filters.grad == 1).all()
        muon.step()
