"""A training run: its budget in steps, its log, and what it leaves when it stops.

Two files keep a run. `training/work/NAME.pt` is everything, for the same machine: replaced every few minutes, it makes a
killed run go on as if nothing had happened. `training/runs/NAME.checkpoint.safetensors` is what is worth keeping in the
repository, a few MB: averaged weights in float16, the step and the time spent. A fresh machine goes on from it, with
optimisers that warm up again.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from team import Team

HERE = Path(__file__).parent
WORK = HERE / "work"  # large and rebuildable: never committed
RUNS = HERE / "runs"  # logs, curves, contact sheets and compact checkpoints: committed

FALL = 0.25  # share of the steps over which the learning rate falls at the end
SMALL = 4096  # tensors of so few elements (norms, biases) stay in float32


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
        self.shadow = {k: v.clone().to(self.shadow[k].device) for k, v in state.items()}


Part = nn.Module | torch.optim.Optimizer | Ema


def compact_path(name: str) -> Path:
    return RUNS / f"{name}.checkpoint.safetensors"


def write_compact(name: str, states: dict[str, Tensor], about: dict[str, str]) -> None:
    """The compact checkpoint of a run, in place of the one that is there."""
    small = {k: v.half() if v.is_floating_point() and v.numel() > SMALL else v for k, v in states.items()}
    part = compact_path(name).with_suffix(".part")
    save_file({k: v.detach().cpu().contiguous() for k, v in small.items()}, part, about)
    part.replace(compact_path(name))


def about_compact(name: str) -> dict[str, str]:
    """What a compact checkpoint says of itself: its step, the seconds spent, the step of the stage before it."""
    with safe_open(compact_path(name), "pt") as f:
        return f.metadata() or {}


def progress_of(name: str, of: int = 0) -> int:
    """Steps that the compact checkpoint of a run has behind it; 0 where there is none, or one made from another step of the
    stage before it than `of`."""
    if not compact_path(name).exists():
        return 0
    about = about_compact(name)
    return int(about.get("step", 0)) if int(about.get("of", 0)) == of else 0


def load_part(name: str, part: str) -> dict[str, Tensor]:
    """One part's weights out of a compact checkpoint, in float32."""
    states = load_file(compact_path(name))
    return {k.removeprefix(f"{part}."): v.float() for k, v in states.items() if k.startswith(f"{part}.")}


@dataclass
class Run:
    """`parts` are kept whole on this machine, `kept` (under the names of the parts they are loaded into) compactly.
    It ends after `steps` steps over all sessions; a session ends after `minutes`, or at SIGTERM. It begins anew where its
    checkpoints were made from another step of the stage before it than `of`."""

    name: str
    parts: dict[str, Part]
    kept: dict[str, nn.Module | Ema]
    steps: int
    minutes: float = math.inf
    team: Team = field(default_factory=Team)
    of: int = 0
    save_every: float = 180.0  # seconds
    compact_every: float = 1200.0
    step: int = 0
    spent: float = 0.0  # seconds of training, over all sessions
    stopped: bool = False
    _fresh: int = 0  # the step at which the optimisers were last without history
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _compacted: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        RUNS.mkdir(exist_ok=True)
        WORK.mkdir(exist_ok=True)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        whole = torch.load(self.path, weights_only=True, map_location="cpu") if self.path.exists() else None
        compact = progress_of(self.name, self.of)
        if whole and whole.get("of", 0) == self.of and whole["step"] >= compact:
            for name, part in self.parts.items():
                part.load_state_dict(whole[name])
            self.step, self.spent, self._fresh = whole["step"], whole["spent"], whole["fresh"]
        elif compact:
            self._resume_compact()
        self.team.seed(self.step)
        if self.step and self.team.first:
            print(f"{self.name}: resumed at step {self.step} after {self.spent / 60:.1f} min", flush=True)

    def _resume_compact(self) -> None:
        about = about_compact(self.name)
        self.step, self.spent = int(about["step"]), float(about["spent"])
        self._fresh = self.step
        for name, keeper in self.kept.items():
            state = load_part(self.name, name)
            for part in (self.parts[name], keeper):
                part.load_state_dict(state)

    def _stop(self, *_: object) -> None:
        self.stopped = True

    @property
    def path(self) -> Path:
        return WORK / f"{self.name}.pt"

    @property
    def elapsed(self) -> float:
        return self.spent + time.monotonic() - self._started

    @property
    def progress(self) -> float:
        return min(1.0, self.step / self.steps)

    def save(self) -> None:
        if not self.team.first:
            return
        state: dict[str, object] = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"step": self.step, "spent": self.elapsed, "fresh": self._fresh, "of": self.of}
        torch.save(state, self.path.with_suffix(".part"))
        self.path.with_suffix(".part").replace(self.path)
        self._saved = time.monotonic()

    def save_compact(self, name: str = "") -> None:
        """Under another name: a checkpoint to keep for itself."""
        if not self.team.first:
            return
        states = {f"{part}.{k}": v for part, kept in self.kept.items() for k, v in kept.state_dict().items()}
        about = {"step": str(self.step), "spent": f"{self.elapsed:.0f}", "of": str(self.of)}
        write_compact(name or self.name, states, about)
        self._compacted = time.monotonic()

    def rate(self, peak: float, warmup: int) -> float:
        """Warm-up (again wherever the optimisers start anew), a plateau, and a linear fall at the end."""
        rise = min(1.0, (self.step - self._fresh + 1) / warmup)
        return peak * rise * min(1.0, (1 - self.progress) / FALL + 0.02)

    def count(self, optimisers: list[tuple[torch.optim.Optimizer, float]], warmup: int = 200) -> Iterator[int]:
        """Count steps until the budget, the session or the patience of the system ends, setting each optimiser's
        learning rate from its peak."""
        while self.step < self.steps and not self.team.agree(
            self.stopped or self.elapsed - self.spent > 60 * self.minutes
        ):
            for optimiser, peak in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = self.rate(peak, warmup)
            yield self.step
            self.step += 1
            now = time.monotonic()
            if now - self._saved > self.save_every:
                self.save()
            if now - self._compacted > self.compact_every:
                self.save_compact()
        self.save()
        self.save_compact()
        self.team.leave()

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    def log(self, **figures: float | dict[str, float] | dict[str, list[float]]) -> None:
        if not self.team.first:
            return
        record = {"step": self.step, "minutes": round(self.elapsed / 60, 2), **figures}
        with open(RUNS / f"{self.name}.jsonl", "a") as f:
            f.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)
