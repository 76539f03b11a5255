"""The step graph against diffusers' WanTransformer3DModel with the same random weights.

Later chunks: one plain pass of diffusers' model over the clean history and the noisy chunk together, with a timestep for
every token and a mask that says who sees whom (block-causal, windowed, with sinks). No ring, no cache, no folded weights.
"""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# pyright: reportOptionalMemberAccess=false
# (diffusers' types do not tell what its calls return)
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from everframe.export.graphs import PromptGraph, Ring, StepGraph
from everframe.export.names import public_names
from everframe.export.schedule import Schedule
from everframe.export.sources import fit, wan_config
from everframe.export.verify import difference
from everframe.export.wan import Wan, fold
from everframe.runtime.ring import RingLayout
from everframe.runtime.rope import axis_frequencies, split_head_dim, temporal_tables


class Masked(WanAttnProcessor):
    """diffusers' own self-attention, with a mask."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.mask = mask

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        return super().__call__(attn, hidden_states, encoder_hidden_states, self.mask, rotary_emb)


class Case:
    """Random weights and sizes, in diffusers' model and in ours."""

    def __init__(self, seed: int):
        draw = random.Random(seed)
        self.chunk = draw.choice([1, 2, 3])
        self.sink = self.chunk * draw.choice([0, 1, 2])
        self.window = self.sink + self.chunk * draw.choice([1, 2, 3])
        self.rows, self.columns = draw.randint(1, 3), draw.randint(1, 4)
        heads, head_dim = draw.choice([1, 2, 3]), draw.choice([12, 16, 20, 22])
        torch.manual_seed(seed)
        self.theirs = WanTransformer3DModel(
            num_attention_heads=heads,
            attention_head_dim=head_dim,
            in_channels=4,
            out_channels=4,
            text_dim=10,
            freq_dim=32,
            ffn_dim=draw.choice([24, 50]),
            num_layers=draw.choice([1, 2, 3]),
        )
        self.theirs = self.theirs.double().eval().requires_grad_(False)
        for name, p in self.theirs.named_parameters():
            if "norm" in name and p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
            elif p.ndim == 1:
                p.normal_(0, 0.1)
        state = public_names(self.theirs.state_dict())
        self.config = wan_config(state, {"num_heads": heads, "text_len": 7}, Path("x"))
        self.model = Wan(self.config)
        fit(self.model, state, Path("x"), convert=lambda s: fold(s, self.config))
        self.schedule = Schedule(steps=(1000, 750, 500, 250), shift=5.0)
        self.ring = Ring(self.chunk, self.sink, self.window, self.rows, self.columns)
        self.text = torch.zeros(1, 7, 10, dtype=torch.float64)
        self.text[:, : draw.randint(1, 7)] = torch.randn(1, 1, 10, dtype=torch.float64)

    def noise(self) -> Tensor:
        return torch.randn(1, 4, self.chunk, 2 * self.rows, 2 * self.columns, dtype=torch.float64)

    def sees(self, chunk: int, other: int) -> bool:
        sinks, past = self.sink // self.chunk, (self.window - self.sink) // self.chunk - 1
        return other == chunk or (other < chunk and (other < sinks or chunk - other <= past))

    def flow(self, history: list[Tensor], x: Tensor, timestep: float, held: int = 0) -> Tensor:
        """diffusers' prediction for the last chunk, given the clean ones before it and its own first `held` frames."""
        chunks = [*history, x]
        tokens = self.chunk * self.rows * self.columns
        seen = torch.tensor([[self.sees(i, j) for j in range(len(chunks))] for i in range(len(chunks))])
        mask = seen.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
        for block in self.theirs.blocks:
            block.attn1.set_processor(Masked(mask))
        times = torch.zeros(1, len(chunks) * tokens, dtype=torch.float64)
        times[:, -tokens + held * self.rows * self.columns :] = timestep
        whole = self.theirs(torch.cat(chunks, 2), times, self.text, return_dict=False)[0]
        return whole[:, :, -self.chunk :]


def test_first_chunk_against_the_untouched_model() -> None:
    """Without our mask and timesteps in the way: cross-attention, modulation, head and all."""
    case = Case(0)
    step = StepGraph(case.model, case.schedule, case.ring)
    noise = case.noise()
    flow = case.theirs(noise, torch.tensor([1000.0]), case.text, return_dict=False)[0]
    x0, *_ = run(case, step, noise, 0, noise, 0, rings(case))
    assert (x0 - (noise - flow)).abs().max() < 1e-5 * flow.abs().max()


def rings(case: Case) -> list[Tensor]:
    c = case.config
    return [torch.zeros(1, c.heads, case.ring.cache_tokens, c.head_dim) for _ in range(2 * c.layers)]


def run(
    case: Case,
    step: StepGraph,
    latent: Tensor,
    index: int,
    noise: Tensor | list[Tensor],
    chunk: int,
    ring: list[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    c, n = case.config, case.config.layers
    frequencies = np.repeat(axis_frequencies(c.theta, split_head_dim(c.head_dim)[0])[None], c.heads, 0)
    tables = temporal_tables(np.arange(case.chunk) + float(case.chunk * chunk), frequencies)
    sinks = case.sink // case.chunk
    slot = RingLayout(sinks, case.window // case.chunk - sinks, case.ring.chunk_tokens).slot(chunk)
    context = PromptGraph(case.model)(case.text.float())
    place = (torch.tensor([slot.start]), torch.tensor([slot.valid]))
    cos, sin = (torch.from_numpy(t) for t in tables)
    read = noise.float() if isinstance(noise, Tensor) else noise
    args = (latent.float(), torch.tensor([index]), read, cos, sin, list(place), ring[:n], ring[n:])
    x0, after, *ring = step(*args, list(context[:n]), list(context[n:]))
    return x0, after, ring


@pytest.mark.parametrize("seed", range(1, 13))
def test_ten_chunks_of_random_configs(seed: int) -> None:
    """Sampling with both, side by side, well past the wrap of every one of these rings."""
    case = Case(seed)
    step = StepGraph(case.model, case.schedule, case.ring)
    sigmas = [5 * s / (1 + 4 * s) for s in (1.0, 0.75, 0.5, 0.25)]
    ring, history = rings(case), []
    for chunk in range(10):
        noise = [case.noise() for _ in sigmas]
        x = theirs = noise[0]
        for i, sigma in enumerate(sigmas):
            fresh = noise[(i + 1) % 4]
            expected = theirs - sigma * case.flow(history, theirs, 1000 * sigma)
            x0, after, ring = run(case, step, x, i, fresh, chunk, ring)
            assert (x0 - expected).abs().max() < 1e-4 * expected.abs().max(), (chunk, i)
            theirs = expected if i == 3 else (1 - sigmas[i + 1]) * expected + sigmas[i + 1] * fresh
            if i < 3:
                assert (after - theirs).abs().max() < 1e-4 * theirs.abs().max()
            x = x0 if i == 3 else after
        _, _, ring = run(case, step, x, 4, noise[0], chunk, ring)
        history.append(theirs)


@pytest.mark.parametrize("seed", [1, 4, 5, 9])
@pytest.mark.parametrize("steps", [4, 2])
def test_unipc_with_a_picture_as_the_first_frame(seed: int, steps: int) -> None:
    """Ten chunks, sampled by diffusers' scheduler there. Frame 0 of the first is given: its timestep is 0, and it is put
    back before and after every step, as LongLive 2.0 does."""
    case = Case(seed)
    case.schedule = Schedule(tuple(1000 - 1000 * i // steps for i in range(steps)), 5.0, sampler="unipc")
    step = StepGraph(case.model, case.schedule, case.ring, held=True)
    assert step.sampler.reads == ("flow_0", "flow_1", "still")[-3 if steps == 4 else -1 :]
    ring, history, picture = rings(case), [], case.noise()[:, :, :1]
    for chunk in range(10):
        held = 1 if chunk == 0 else 0
        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0, solver_order=2
        )
        scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, steps + 1)[:-1])
        x = theirs = case.noise()
        x[:, :, :held] = picture[:, :, :held]
        still = (torch.arange(case.chunk) < held).long()
        flows = [torch.zeros_like(x.float()) for _ in step.sampler.reads[:-1]]
        for i, timestep in enumerate(scheduler.timesteps):
            flow = case.flow(history, theirs, float(timestep), held)
            theirs = scheduler.step(flow, timestep, theirs, return_dict=False)[0]
            theirs[:, :, :held] = picture[:, :, :held]
            x0, x, ring = run(case, step, x, i, [*flows, still], chunk, ring)
            if flows:
                flow, *ring = ring
                if i < len(flows):
                    flows[i] = flow
            assert (x - theirs).abs().max() < 1e-4 * theirs.abs().max(), (chunk, i)
            assert not held or torch.equal(x[:, :, 0], picture[:, :, 0].float())
        assert (x0 - x).abs().max() < 1e-5
        _, _, ring = run(case, step, x, steps, [*flows, still], chunk, ring)
        ring = ring[1:] if flows else ring
        history.append(theirs)


def test_sigmas_are_those_of_diffusers_scheduler() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=5.0)
    table = scheduler.timesteps.double().numpy()
    for timestep in Schedule().timesteps():
        assert np.abs(table - timestep).min() < 1e-3


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_small_difference(number: float) -> None:
    """Whichever side it is on and whatever came before: no limit may let it pass."""
    fine, broken = torch.ones(3), torch.tensor([1.0, number, 1.0])
    for got, expected in ((broken, fine), (fine, broken), (broken, broken)):
        for name in ("x0", "frames"):
            assert max(0.0, difference(name, got, expected)) == float("inf")
    assert difference("x0", torch.tensor([2.0, 4.5]), torch.tensor([2.0, 4.0])) == pytest.approx(0.125)
    assert difference("frames", torch.tensor([7], dtype=torch.uint8), torch.tensor([9], dtype=torch.uint8)) == 2
