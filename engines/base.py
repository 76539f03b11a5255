"""The interface that every backend implements: buffers allocated once, engines bound to them once, then only run.

    engine = backend.load(graph)                 an Engine, for one graph of a bundle
    ring = engine.device.zeros([1, 6, 1728, 32], "float32")
    go = engine.bind({"k_0": ring, …}, {"k_0": ring, …})   the same buffer on both sides: updated in place
    go()                                         one pass, no allocation

An output bound to the buffer of an input is legal exactly where the graph's contract says so (the KV ring of the step
graph). Everywhere else input and output buffers must differ.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from .bundle import Bundle, Graph

HIDDEN = -1e9  # added to the attention score of a slot that holds nothing yet: its weight is exactly 0
Key = TypeVar("Key", bound=Hashable)
Loaded = TypeVar("Loaded")


class Buffer(Protocol):
    """A tensor of fixed shape in the memory of the engine's device."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def write(self, values: np.ndarray) -> None:
        """Copy host values of the same shape and dtype in."""
        ...

    def clear(self) -> None:
        """Zeros everywhere."""
        ...

    def read(self) -> np.ndarray:
        """A host copy of the present contents."""
        ...

    def write_tokens(self, start: int, values: np.ndarray) -> None:
        """Copy host values [1, H, n, D] over tokens start … start + n − 1 of a ring [1, H, S, D]."""
        ...

    def read_tokens(self, start: int, stop: int) -> np.ndarray:
        """A host copy of tokens start … stop − 1 of a ring."""
        ...

    def copy_tokens(self, start: int, source: Buffer, begin: int = 0, count: int | None = None) -> None:
        """Copy `count` tokens (default: all that follow) of a ring buffer of the same device, from `begin` on, over tokens
        start … of this one. It may be this one, where the two do not overlap."""
        ...

    def copy(self, source: Buffer) -> None:
        """Copy a buffer of the same shape, dtype and device over this one, after all that was asked of both before."""
        ...

    def parts(self) -> Iterator[np.ndarray]:
        """The contents as bytes: uint8 arrays, each of which holds until the next is asked for. Also for another thread than
        the loop's, of a buffer that nobody writes meanwhile."""
        ...

    def fetch(self) -> None:
        """A pass: bring the present contents to the host."""
        ...

    def fetched(self) -> np.ndarray:
        """What the last `fetch` brought, as a copy that belongs to the caller."""
        ...


class Launch(Protocol):
    """A chain of passes that can be started again and again, once the one before is waited for."""

    def start(self, variant: int = 0) -> None:
        """variant: what else than the contents of buffers the passes depend on, at this start."""
        ...

    def main(self) -> list[float]:
        """Wait for the passes and return the seconds that each took; asked again, the same."""
        ...

    def side(self) -> list[float]:
        """The same for the passes beside them."""
        ...


class Device(Protocol):
    overlaps: bool  # whether passes side by side are faster here than one after the other

    def free(self) -> int | None:
        """Bytes that are free on the device; None where nobody tells, or where no limit but the machine's is known."""
        ...

    def zeros(self, shape: Sequence[int], dtype: str) -> Buffer: ...

    def wait(self) -> None:
        """Until everything that was asked of its buffers is done."""
        ...

    def chain(self, passes: Sequence[Callable[[], None]], beside: Sequence[Callable[[], None]] = ()) -> Launch:
        """All passes as one thing to start, in order, and others that run beside them. A device may record them once and
        replay the recording, so they must not depend on anything but their buffers and what `start` is told."""
        ...


class Engine(Protocol):
    """One graph, ready to run."""

    @property
    def graph(self) -> Graph: ...

    @property
    def device(self) -> Device: ...

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Callable[[], None]:
        """Tie every input and output to a buffer and return the pass. Raises ValueError for a name, shape or dtype that
        is not the graph's."""
        ...


@dataclass(frozen=True)
class EngineOptions:
    """What a user can choose about how graphs run."""

    provider: str = "cpu"  # onnxruntime execution provider: cpu, cuda, tensorrt, nvtensorrtrtx
    threads: int = 0  # CPU threads of one pass; 0 = one per core
    device: str = "cpu"  # of OpenVINO: cpu, gpu, npu
    precision: str = "auto"  # of OpenVINO: f32, bf16, f16; auto: f32


@dataclass(frozen=True)
class Computing:
    """What computes a bundle's graphs on this machine."""

    backend: str  # with its version: "openvino 2026.4.1"
    device: str  # "CPU AMD EPYC 9B14", "NVIDIA H100, driver 13.0"
    precision: str  # f32, tf32, f16, bf16; of INT8 layers, what is around them
    engines: str = ""  # compiled ones, told apart by how they were built and what came of it

    def __str__(self) -> str:
        return f"{self.backend}, {self.device}, {self.precision}"


class Backend(Protocol):
    @property
    def device(self) -> Device: ...

    def computes(self, bundle: Bundle) -> Computing:
        """What a proof of its engines for this bundle holds for. Raises UserError as `load` does."""
        ...

    def load(self, bundle: Bundle, name: str, beside: bool = False) -> Engine:
        """Make graph `name` of the bundle ready to run; beside: next to the passes of another engine, so that on a CPU it
        gets half of the threads. Raises UserError when it cannot be loaded."""
        ...


class Shared(Generic[Key, Loaded]):
    """Engines that streams share: loaded once, freed when no stream holds one any more."""

    def __init__(self) -> None:
        self._loaded: weakref.WeakValueDictionary[Key, Loaded] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, key: Key) -> bool:
        return key in self._loaded

    def get(self, key: Key, load: Callable[[], Loaded]) -> Loaded:
        found = self._loaded.get(key)
        if found is None:
            found = self._loaded[key] = load()
        return found


def check_bindings(graph: Graph, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer], file: Path) -> None:
    """Raise ValueError unless the buffers are exactly the graph's tensors."""
    for side, specs, given in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        names = {spec.name for spec in specs}
        if names != set(given):
            raise ValueError(f"{file}: {side}s {sorted(names ^ set(given))} are missing or unknown")
        for spec in specs:
            have = (tuple(given[spec.name].shape), str(given[spec.name].dtype))
            if have != (tuple(spec.shape), spec.dtype):
                raise ValueError(f"{file}: {side} {spec.name}: buffer {have}, the graph has {spec.shape} {spec.dtype}")
