"""Workers that meet once a step take the same step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TRAINING = Path(__file__).parents[2] / "training"
PROGRAM = """
import sys
sys.path.insert(0, {training!r})
import torch
from torch import nn
from team import Team

team = Team(2)
model = nn.Linear(2, 1, bias=False)
model.register_buffer("seen", torch.tensor([10.0 + team.rank]))
model.weight.grad = torch.tensor([[1.0 + team.rank, 4.0 * team.rank]])
team.average(model)
team.seed(5)
lines = [model.weight.grad.tolist(), model.seen.tolist(), team.agree(team.rank == 1), team.agree(False)]
lines.append(float(team.mean(torch.tensor(3.0 + team.rank))))
open({folder!r} + "/" + str(team.rank), "w").write(repr(lines) + "|" + str(torch.rand(1).item()))
team.leave()
"""


def test_gradients_and_buffers_become_means(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM.format(training=str(TRAINING), folder=str(tmp_path)))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("EVERFRAME")}
    subprocess.run([sys.executable, script], check=True, timeout=120, env=environment)
    first, second = ((tmp_path / str(rank)).read_text().split("|") for rank in (0, 1))
    assert first[0] == second[0] == repr([[[1.5, 2.0]], [10.5], True, False, 3.5])
    assert first[1] != second[1]  # each draws its own batches
