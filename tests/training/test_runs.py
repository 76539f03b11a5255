"""What a run leaves behind: whole on this machine, compact for another."""

from __future__ import annotations

from pathlib import Path

import blend
import pytest
import torch
from torch import nn

import run as runs
from run import Ema, Run, load_part, progress_of


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(runs, "WORK", tmp_path / "work")
    return tmp_path


def train(steps: int, of: int = 10, before: int = 0) -> tuple[Run, nn.Linear, list[float]]:
    """Count `steps` steps in which every weight grows by one."""
    torch.manual_seed(0)
    model = nn.Linear(100, 80)
    nn.init.zeros_(model.weight)
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    ema = Ema(model, 0.0)
    run = Run("toy", {"model": model, "sgd": sgd, "ema": ema}, {"model": ema}, of, of=before)
    rates = []
    end = run.step + steps
    for step in run.count([(sgd, 1.0)], warmup=4):
        rates.append(sgd.param_groups[0]["lr"])
        with torch.no_grad():
            model.weight += 1
        ema.update(step)
        run.stopped = run.step + 1 >= end
    return run, model, rates


def test_goes_on_where_it_stopped() -> None:
    train(3)
    run, model, _ = train(4)
    assert run.step == 7
    assert (model.weight == 7).all()
    assert not run.finished


def test_ends_at_its_budget() -> None:
    train(6)
    run, model, _ = train(100)
    assert run.finished
    assert (model.weight == 10).all()


def test_a_fresh_machine_has_the_compact_checkpoint_only(folders: Path) -> None:
    train(6)
    file = folders / "runs" / "toy.checkpoint.safetensors"
    assert file.stat().st_size < 2.2 * 100 * 80  # half precision
    (folders / "work" / "toy.pt").unlink()
    assert progress_of("toy") == 6
    run, model, rates = train(2)
    assert run.step == 8
    assert (model.weight == 8).all()
    assert rates[0] == pytest.approx(0.25)  # the optimiser warms up again: a quarter of four steps


def test_an_older_whole_checkpoint_gives_way_to_a_newer_compact_one(folders: Path) -> None:
    train(3)
    old = (folders / "work" / "toy.pt").read_bytes()
    train(4)
    (folders / "work" / "toy.pt").write_bytes(old)
    run, _, _ = train(1)
    assert run.step == 8


def test_begins_anew_of_another_step_of_the_stage_before(folders: Path) -> None:
    """On this machine, with the whole checkpoint, and on a fresh one."""
    train(6)
    assert (progress_of("toy"), progress_of("toy", 3)) == (6, 0)
    run, model, _ = train(2, before=3)
    assert run.step == 2
    assert (model.weight == 2).all()
    assert (progress_of("toy"), progress_of("toy", 3)) == (0, 2)
    (folders / "work" / "toy.pt").unlink()
    assert train(2, before=3)[0].step == 4
    assert train(1, before=4)[0].step == 1


def test_rate_rises_stays_and_falls() -> None:
    _, _, rates = train(10)
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:8] == pytest.approx([1.0] * 4)
    assert rates[8:] == pytest.approx([0.82, 0.42])  # (1 − 8/10)/0.25 + 0.02, then 9/10


def test_a_blend_is_so_far_on_the_way(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(3)
    file = folders / "runs" / "toy.checkpoint.safetensors"
    before = file.rename(folders / "before.safetensors")
    train(4)
    monkeypatch.setattr("sys.argv", ["blend", "toy", "--before", str(before), "--share", "0.25"])
    blend.main()
    weights = load_part("toy", "model")["weight"]
    assert (weights == 3 + 0.25 * (7 - 3)).all()
    assert progress_of("toy") == 7  # it stays that run's
    assert file.stat().st_size < 2.2 * 100 * 80
