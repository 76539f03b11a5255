from __future__ import annotations

import numpy as np

from everframe.runtime.noise import NoiseAhead, chunk_noise

SHAPE = (1, 16, 3, 18, 32)


def test_depends_on_seed_and_chunk_alone() -> None:
    a = chunk_noise(7, 123456789, 4, SHAPE)
    assert a.shape == (4, *SHAPE)
    assert a.dtype == np.float32
    assert (a == chunk_noise(7, 123456789, 4, SHAPE)).all()
    assert not (a == chunk_noise(8, 123456789, 4, SHAPE)).any()
    assert not (a == chunk_noise(7, 123456790, 4, SHAPE)).any()
    assert not (a[0] == a[1]).any()


def test_is_standard_normal() -> None:
    draws = np.stack([chunk_noise(0, c, 4, SHAPE) for c in range(8)]).ravel()
    n = draws.size
    assert abs(draws.mean()) < 5 / np.sqrt(n)
    assert abs(draws.var() - 1) < 5 * np.sqrt(2 / n)
    assert abs((np.abs(draws) < 1).mean() - 0.682689) < 0.003


def test_takes_the_largest_seed() -> None:
    assert np.isfinite(chunk_noise(2**64 - 1, 2**50, 1, (3,))).all()


def test_noise_that_was_drawn_ahead_is_the_same() -> None:
    """And what was drawn for another seed, chunk or number of passes is not taken."""
    shape = (2, 3, 4)
    expected = {key: chunk_noise(*key, shape) for key in ((7, 3, 4), (8, 3, 4), (7, 4, 4), (7, 3, 2))}
    ahead = NoiseAhead(shape)
    for drawn in expected:
        for key, noise in expected.items():
            ahead.draw(*drawn)
            assert (ahead.take(*key) == noise).all()
            assert (ahead.take(*key) == noise).all()  # it is gone, and drawn again
