"""What both training scripts share: a run that survives being killed, its log, and its pictures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

HERE = Path(__file__).parent
WORK = HERE / "work"  # large and rebuildable: never committed
RUNS = HERE / "runs"  # logs, curves and contact sheets: committed


@dataclass
class Run:
    """A training run: named parts with state, a time budget, and a checkpoint that is replaced by rename."""

    name: str
    parts: dict[str, nn.Module | torch.optim.Optimizer]
    minutes: float
    save_every: float = 180.0
    step: int = 0
    spent: float = 0.0  # seconds of training, over all sessions
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        RUNS.mkdir(exist_ok=True)
        WORK.mkdir(exist_ok=True)
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location="cpu")
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            self.step, self.spent = state["step"], state["spent"]
            torch.set_rng_state(state["torch_rng"])
            print(f"{self.name}: resumed at step {self.step} after {self.spent / 60:.1f} min", flush=True)

    @property
    def path(self) -> Path:
        return WORK / f"{self.name}.pt"

    @property
    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        return min(1.0, self.elapsed / (60 * self.minutes))

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": self.step, "spent": self.elapsed, "torch_rng": torch.get_rng_state()}
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)
        self._saved = time.monotonic()

    def steps(self, optimisers: list[torch.optim.Optimizer], peak: float, warmup: int = 200) -> Iterator[int]:
        """Count steps until the time budget is spent, setting a warm-up and a cosine fall of the learning rate."""
        while self.progress < 1:
            rate = (
                peak
                * min(1.0, (self.step + 1) / warmup)
                * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))
            )
            for group in (g for optimiser in optimisers for g in optimiser.param_groups):
                group["lr"] = rate
            yield self.step
            self.step += 1
            if time.monotonic() - self._saved > self.save_every:
                self.save()
        self.save()

    def log(self, **figures: float | dict[str, float]) -> None:
        record = {"step": self.step, "minutes": round(self.elapsed / 60, 2), **figures}
        with open(RUNS / f"{self.name}.jsonl", "a") as f:
            f.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)


class Ema:
    """Exponential moving average of a model's weights, for evaluation and export."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.model = decay, model
        self.shadow = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for k, v in self.model.state_dict().items():
            self.shadow[k].lerp_(v, 1 - decay) if v.is_floating_point() else self.shadow[k].copy_(v)

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.shadow = {k: v.clone() for k, v in state.items()}


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


def autocast(device: str) -> torch.autocast:
    """bfloat16 where the hardware computes it; a CPU that only emulates it is several times slower than with float32."""
    return torch.autocast(
        device, torch.bfloat16, enabled=device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


def save_sheet(rows: list[Tensor], path: Path) -> None:
    """rows: [T, H, W, 3] in [0, 1] each, drawn one below the other."""
    sheet = torch.cat([torch.cat(list(row), 1) for row in rows], 0)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray((sheet.clamp(0, 1) * 255).byte().cpu().numpy()).save(path, optimize=True)


def load_pool(name: str) -> np.ndarray:
    return np.load(WORK / name, mmap_mode="r")
