"""Data-parallel training by single-threaded processes, one a core.

On a CPU that other work shares, two threads of one process wait for each other at every operation: beside a test suite,
a step of the autoencoder took 10 s in place of 1.6 s. Processes meet once a step.

The process that the user starts is the first of the team and starts the others: the same command with two variables in
its environment. If it dies, they fail at the next meeting and go too.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

RANK, PLACE = "EVERFRAME_RANK", "EVERFRAME_MEETING_PLACE"
PATIENCE = datetime.timedelta(hours=3)  # the first may be judging its work, or a machine be busy


class Team:
    """`size` processes that train the same weights on different batches."""

    def __init__(self, size: int = 1):
        self.size, self.rank = size, int(os.environ.get(RANK, "0"))
        self._others: list[subprocess.Popen[bytes]] = []
        if size == 1:
            return
        torch.set_num_threads(1)
        if self.first:
            place = Path(tempfile.mkdtemp()) / "store"
            for rank in range(1, size):
                environment = os.environ | {RANK: str(rank), PLACE: str(place)}
                self._others.append(subprocess.Popen([sys.executable, *sys.argv], env=environment))
        else:
            place = Path(os.environ[PLACE])
        dist.init_process_group(
            "gloo", init_method=f"file://{place}", rank=self.rank, world_size=size, timeout=PATIENCE
        )

    @property
    def first(self) -> bool:
        """This process keeps the log and the checkpoints."""
        return self.rank == 0

    def seed(self, step: int) -> None:
        """Other batches and other noise for each, from now on."""
        torch.manual_seed(1_000_003 * self.rank + step)

    def average(self, *models: nn.Module) -> None:
        """Replace gradients and floating-point buffers by the team's means: every process then takes the same step."""
        if self.size == 1:
            return
        tensors = [p.grad for m in models for p in m.parameters() if p.grad is not None]
        tensors += [b for m in models for b in m.buffers() if b.is_floating_point()]
        flat = torch.cat([t.reshape(-1) for t in tensors])
        dist.all_reduce(flat)
        for tensor, mean in zip(tensors, (flat / self.size).split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def agree(self, stop: bool) -> bool:
        """Whether any of the team wants to stop."""
        if self.size == 1:
            return stop
        wish = torch.tensor(float(stop))
        dist.all_reduce(wish, dist.ReduceOp.MAX)
        return bool(wish)

    def mean(self, value: Tensor) -> Tensor:
        """The team's mean of a figure for the log."""
        if self.size > 1:
            dist.all_reduce(value)
        return value / self.size

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        self.wait()
        if self.size > 1:
            dist.destroy_process_group()
            for other in self._others:
                other.wait()
