from __future__ import annotations

from collections import OrderedDict

import pytest

from everframe.engines.bundle import Geometry
from everframe.runtime.ring import RingLayout


def geometry(chunk: int, sink: int, window: int) -> Geometry:
    return Geometry(width=32, height=32, fps=16, latent_channels=4, chunk=chunk, sink=sink, window=window)


@pytest.mark.parametrize(
    ("chunk", "sink", "window"), [(3, 3, 12), (3, 0, 9), (1, 3, 12), (3, 6, 9), (2, 2, 4), (1, 0, 1)]
)
def test_slots_hold_the_sinks_and_the_newest_chunks(chunk: int, sink: int, window: int) -> None:
    layout = RingLayout.of(geometry(chunk, sink, window))
    tokens = chunk * 4
    held: dict[int, int] = {}  # slot -> chunk
    fifo: OrderedDict[int, None] = OrderedDict()
    for c in range(50):
        slot = layout.slot(c)
        assert slot.start % tokens == 0
        held[slot.start // tokens] = c
        # the reference: a list of sinks, and a queue that drops its oldest
        if c >= sink // chunk:
            fifo[c] = None
            while len(fifo) > (window - sink) // chunk:
                fifo.popitem(last=False)
        expected = {*range(min(c + 1, sink // chunk)), *fifo}
        assert set(held.values()) == expected
        assert slot.valid == len(expected) * tokens
        assert sorted(held) == list(range(len(held)))  # the valid tokens are a prefix
