"""Bases of every head of every layer: how they are spread, and what a design reaches, by direct formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from everframe.engines.progress import Report
from everframe.runtime.jitter import (
    NEAR,
    designed_jitter,
    far_cosine,
    few_bases,
    highest_return,
    stratified_jitter,
)
from everframe.runtime.rope import axis_frequencies, draw_jitter, head_thetas


def curve(epsilon: np.ndarray, channels: int, reach: int) -> list[float]:
    """Mean over all bases and channel pairs of cos(ω·Δ), ω = (10000·(1 + 0.8·ε))^(−2j/channels), for Δ = NEAR … reach."""
    thetas = [10000.0 * (1 + 0.8 * e) for e in np.ravel(epsilon)]
    waves = [theta ** (-2 * j / channels) for theta in thetas for j in range(channels // 2)]
    return [math.fsum(math.cos(w * d) for w in waves) / len(waves) for d in range(NEAR, reach + 1)]


def comes_back(values: list[float]) -> float:
    return max(values[i] - min(values[: i + 1]) for i in range(len(values)))


def test_one_in_each_part_and_every_layer_spans_the_range() -> None:
    epsilon = stratified_jitter(30, 12, seed=3)
    assert epsilon.shape == (30, 12)
    parts = np.floor((epsilon + 1) / 2 * 360).astype(int)
    assert sorted(parts.ravel()) == list(range(360))
    for layer in epsilon:
        assert sorted(np.floor((layer + 1) / 2 * 12).astype(int)) == list(range(12))
    assert (epsilon == stratified_jitter(30, 12, seed=3)).all()
    assert (epsilon != stratified_jitter(30, 12, seed=4)).any()
    places = np.argsort(epsilon, 1)[:, 0]  # which head has the layer's smallest: not always the same
    assert len(set(places)) > 5


@pytest.mark.parametrize("count", [1, 4, 7, 96])
def test_so_many_different_bases_and_no_more(count: int) -> None:
    epsilon = few_bases(count, 12, 8, seed=3)
    assert epsilon.shape == (12, 8)
    values, heads = np.unique(epsilon, return_counts=True)
    assert list(np.floor((values + 1) / 2 * count)) == list(range(count))  # one in each part of the range
    assert heads.max() - heads.min() <= 1
    assert (epsilon == few_bases(count, 12, 8, seed=3)).all()


def test_the_curve_and_its_return() -> None:
    epsilon = stratified_jitter(2, 3, seed=0)
    found = far_cosine(axis_frequencies(head_thetas(10000.0, 0.8, epsilon), 24), 200)
    assert found == pytest.approx(curve(epsilon, 24, 200), abs=1e-12)
    assert highest_return(found) == pytest.approx(comes_back(curve(epsilon, 24, 200)), abs=1e-12)


def test_a_design_of_many_heads_has_something_to_choose_from() -> None:
    """1,080 heads: more than there are values in the grid of fewer."""
    made = designed_jitter(10000.0, 8, 0.8, 30, 36, 40, seed=0)
    assert len(np.unique(made)) == 1080
    values, drawn = curve(made, 8, 40), curve(stratified_jitter(30, 36, 0), 8, 40)
    assert max(values) + comes_back(values) < 0.999 * (max(drawn) + comes_back(drawn))


def test_a_search_tells_how_far_it_is() -> None:
    """That of a large model takes minutes."""
    told: list[tuple[str, int, int | None]] = []
    designed_jitter(10000.0, 8, 0.8, 2, 4, 40, 0, Report(step=lambda *step: told.append(step)))
    sweeps = list(dict.fromkeys(what for what, _, _ in told))
    assert [what.split(", ")[1] for what in sweeps] == [f"sweep {n + 1} of at most 8" for n in range(len(sweeps))]
    assert [step[1:] for step in told] == [(done, 8) for _ in sweeps for done in range(8)]


@pytest.mark.parametrize(("layers", "heads", "channels"), [(4, 4, 24), (6, 12, 44)])
def test_a_design_is_below_every_draw(layers: int, heads: int, channels: int) -> None:
    """Its highest mean cosine and how far it comes back, against the paper's draws and stratified ones of ten seeds."""
    reach = 400
    made = designed_jitter(10000.0, channels, 0.8, layers, heads, reach, seed=0)
    assert made.shape == (layers, heads)
    assert np.abs(made).max() <= 1
    assert np.diff(np.sort(made.ravel())).min() > 1e-3
    assert (made == designed_jitter(10000.0, channels, 0.8, layers, heads, reach, seed=0)).all()
    values = curve(made, channels, reach)
    for seed in range(10):
        stratified = curve(stratified_jitter(layers, heads, seed), channels, reach)
        assert comes_back(values) < comes_back(stratified)
        assert max(values) + comes_back(values) < max(stratified) + comes_back(stratified)
        assert comes_back(values) < comes_back(curve(draw_jitter(heads, seed), channels, reach))
