"""Counter-based Gaussian noise: the noise of chunk n needs the seed and n, and no history."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import NDArray

from ..engines.errors import UserError

MAX_SEED = 2**64 - 1


def whole_number(name: str, value: object, most: int, expected: str) -> int:
    """From 0 to `most`, NumPy's integers as Python's, which a saved state can hold. Raises UserError."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number <= most:
        raise UserError(f"{name} {value}: expected {expected}")
    return number


def seed_of(value: object) -> int:
    """Raises UserError."""
    return whole_number("seed", value, MAX_SEED, f"0 to {MAX_SEED}")


def chunk_noise(seed: int, chunk: int, passes: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise of one chunk, float32 [passes, *shape].

    Philox 4×64 keyed by the seed, its counter's high word set to the chunk index: streams of different chunks cannot
    overlap (each would need 2^192 draws to reach the next), and a resumed stream draws what the first would have drawn.
    """
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, chunk]))
    return generator.standard_normal((passes, *shape), dtype=np.float32)


class NoiseAhead:
    """The noise of one stream's chunks, each the same as `chunk_noise`, drawn before it is asked for where there is time."""

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        self._drawn: tuple[tuple[int, int, int], NDArray[np.float32]] | None = None

    def draw(self, seed: int, chunk: int, passes: int) -> None:
        """Have it ready."""
        self._drawn = (seed, chunk, passes), chunk_noise(seed, chunk, passes, self._shape)

    def take(self, seed: int, chunk: int, passes: int) -> NDArray[np.float32]:
        """float32 [passes, *shape], the one that is ready or a new one."""
        ready, self._drawn = self._drawn, None
        if ready is not None and ready[0] == (seed, chunk, passes):
            return ready[1]
        return chunk_noise(seed, chunk, passes, self._shape)
