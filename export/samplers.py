"""What a pass of the step graph makes of the flow that the model predicts: x0, and the next pass' input.

Each sampler names what it reads beside the latent (`reads`) and leaves beside x0 and next (`leaves`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from .schedule import Schedule


def at(table: Tensor, step: Tensor) -> Tensor:
    """A table's number of this pass, to multiply latents with."""
    return table.index_select(0, step).view(1, 1, 1, 1, 1)


class Renoise(nn.Module):
    """x0 = x_t − σ·flow, noised again by fresh noise to the next pass' σ′."""

    sigma: Tensor
    sigma_next: Tensor
    reads = ("noise",)
    leaves = ()

    def __init__(self, schedule: Schedule):
        super().__init__()
        self.eta = schedule.eta
        lists = schedule.timesteps(), np.array([schedule.context_noise]), schedule.first_timesteps()
        # What a pass re-noises to is the next pass of its own list; after a list's last, nothing is re-noised.
        after = np.concatenate([np.append(one[1:], 0.0)[: len(one)] for one in lists])
        for name, value in {"sigma": np.concatenate(lists), "sigma_next": after}.items():
            self.register_buffer(name, (torch.from_numpy(value) / 1000.0).float())

    def forward(self, latent: Tensor, flow: Tensor, step: Tensor, read: list[Tensor]) -> tuple[Tensor, ...]:
        """latent, flow and noise (1, C, F, 2h, 2w) -> x0, next."""
        (noise,) = read
        after = at(self.sigma_next, step)
        x0 = latent - at(self.sigma, step) * flow
        if self.eta < 1:
            noise = self.eta * noise + math.sqrt(1 - self.eta**2) * (x0 + flow)  # x0 + flow: the noise it sees
        return x0, (1 - after) * x0 + after * noise


class UniPC(nn.Module):
    """The next input is the latent and a fixed mixture of the chunk's flow predictions so far: no noise but its first.

    With `held`, frames that are given (`still` is 1 for them) keep their latent in every pass.
    """

    sigma: Tensor
    own: Tensor
    past: Tensor

    def __init__(self, schedule: Schedule, held: bool = False):
        super().__init__()
        mixture = schedule.increments()
        before = np.tril(mixture, -1)
        self.history = int(np.flatnonzero(before.any(0)).max(initial=-1)) + 1  # earlier predictions that are ever read
        self.held = held
        self.reads = (*(f"flow_{j}" for j in range(self.history)), *(("still",) if held else ()))
        self.leaves = ("flow",) if self.history else ()
        commit = np.zeros((1, len(mixture)))
        tables = {
            "sigma": np.append(schedule.sigmas(), schedule.context_noise / 1000.0),
            "own": np.append(mixture.diagonal(), 0.0),
            "past": np.concatenate([before, commit])[:, : self.history],
        }
        for name, value in tables.items():
            self.register_buffer(name, torch.from_numpy(value).float())

    def forward(self, latent: Tensor, flow: Tensor, step: Tensor, read: list[Tensor]) -> tuple[Tensor, ...]:
        """latent, flow and earlier flows (1, C, F, 2h, 2w), still (F,) int64 -> x0, next, and flow where it is read later.

        Earlier flows that are not there yet count for nothing, and must be finite."""
        if self.held:
            flow = flow * (1 - read[-1]).to(flow.dtype).view(1, 1, -1, 1, 1)
        after = latent + at(self.own, step) * flow
        for j in range(self.history):
            after = after + at(self.past[:, j], step) * read[j]
        return latent - at(self.sigma, step) * flow, after, *((flow,) if self.history else ())


def sampler_of(schedule: Schedule, held: bool) -> Renoise | UniPC:
    return UniPC(schedule, held) if schedule.sampler == "unipc" else Renoise(schedule)
