"""UniPC as a linear map against diffusers' scheduler, which steps, and against the coefficients of the authors' own."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# (diffusers' types do not tell what its calls return)
import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from everframe.export.schedule import Schedule

# LongLive 2.0's FlowUniPCMultistep, taken out of its code symbolically: x_i − x_0, by v_0, v_1 …
PUBLISHED = {
    4: [
        [-0.0625343919],
        [-0.0266509189, -0.1400935517],
        [-0.0274609756, 0.0041767442, -0.3518282426],
        [-0.0274609756, 0.0041767442, -0.3518282426, -0.6246873736],
    ],
    2: [[-0.1667444706], [-0.1667444706, -0.8330553770]],
}


def schedule(n: int) -> Schedule:
    return Schedule(tuple(1000 - 1000 * i // n for i in range(n)), 5.0, sampler="unipc")


@pytest.mark.parametrize("n", PUBLISHED)
def test_the_authors_coefficients(n: int) -> None:
    whole = schedule(n).increments().cumsum(0)
    for row, expected in zip(whole, PUBLISHED[n], strict=True):
        assert np.abs(row[: len(expected)] - expected).max() < 2e-7  # from sigmas in float32
        assert (row[len(expected) :] == 0).all()


@pytest.mark.parametrize("n", range(1, 9))
def test_diffusers_steps(n: int) -> None:
    """With its own order, warm-up, corrector and last step; predictions that have nothing to do with each other."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, solver_order=2, solver_type="bh2"
    )
    ours = schedule(n)
    scheduler.set_timesteps(sigmas=0.999 * np.array(ours.steps) / 1000)
    assert np.abs(scheduler.sigmas.numpy() - [*ours.sigmas(), 0]).max() < 1e-7
    assert scheduler.timesteps.tolist() == ours.timesteps().tolist()
    generator = torch.Generator().manual_seed(n)
    x = theirs = torch.randn(1, 7, generator=generator, dtype=torch.float64)
    flows: list[torch.Tensor] = []
    for i, timestep in enumerate(scheduler.timesteps):
        flows.append(torch.randn(1, 7, generator=generator, dtype=torch.float64))
        x = x + sum(d * v for d, v in zip(ours.increments()[i].tolist(), flows, strict=False))
        theirs = scheduler.step(flows[-1], timestep, theirs, return_dict=False)[0]
        assert (x - theirs).abs().max() < 2e-5, i  # its table is float32, and 1 − σ is 2e-4 at the start


def test_the_published_timesteps() -> None:
    assert schedule(4).timesteps().tolist() == [999, 937, 833, 624]
    assert schedule(2).timesteps().tolist() == [999, 833]
    sigmas = [0.9997998476, 0.9372654557, 0.8330553770, 0.6246873736]
    assert np.abs(schedule(4).sigmas() - sigmas).max() < 3e-8


def test_a_constant_flow_is_followed() -> None:
    for n in range(1, 9):
        ours = schedule(n)
        assert np.allclose(ours.increments().sum(1), np.diff([*ours.sigmas(), 0]), atol=1e-12)
