"""What the training scripts share: evaluation with averaged weights, Muon, the hardware's number type, pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from run import Ema
from team import Team


def evaluate_with(ema: Ema, model: nn.Module, work: Callable[[], None]) -> None:
    """Call work() with the averaged weights in the model, then put the trained ones back."""
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(ema.shadow)
    model.eval()
    try:
        work()
    finally:
        model.load_state_dict(kept)
        model.train()


def update(loss: Tensor, model: nn.Module, optimisers: list[torch.optim.Optimizer], team: Team) -> None:
    """A step down the team's mean gradient."""
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    team.average(model)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()


class Muon(torch.optim.Optimizer):
    """Muon (Jordan 2024) with the update scaled to AdamW's root mean square, iterated in the matrix's own type.

    torch.optim.Muon iterates in bfloat16, which a CPU without it emulates: five sixths of a training step went there.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                kept = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                kept.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(kept, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * math.sqrt(max(p.shape)) * group["lr"])


def orthogonal(matrix: Tensor, rounds: int = 5) -> Tensor:
    """The nearest (half-)orthogonal matrix, roughly: Newton-Schulz with Muon's quintic coefficients."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(rounds):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


class FilterMuon(Muon):
    """Muon on convolution filters seen as matrices [out, in·kh·kw]."""

    def __init__(self, filters: list[nn.Parameter], lr: float):
        self.filters = filters
        self.views = [nn.Parameter(p.data.view(len(p), -1)) for p in filters]  # the same memory
        super().__init__(self.views, lr=lr)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of the filters: a backward pass adds to theirs, not to those of their views."""
        for p in self.filters:
            p.grad = None
        super().zero_grad(set_to_none)

    def step(self, closure=None):
        for p, view in zip(self.filters, self.views, strict=True):
            view.grad = None if p.grad is None else p.grad.reshape(view.shape)
        return super().step(closure)


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the hardware computes it; a CPU that only emulates it is several times slower than with float32."""
    return torch.autocast(
        device, torch.bfloat16, enabled=device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def save_sheet(rows: list[Tensor], path: Path) -> None:
    """rows: [T, H, W, 3] in [0, 1] each, drawn one below the other."""
    sheet = torch.cat([torch.cat(list(row), 1) for row in rows], 0)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray((sheet.clamp(0, 1) * 255).byte().cpu().numpy()).save(path, optimize=True)
