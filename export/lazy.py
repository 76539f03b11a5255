"""Tensors that are made when they are asked for, one at a time: how a model larger than memory passes through here."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

PAGEOUT = 21  # MADV_PAGEOUT of Linux: give the pages back; what they held stays in its file (or goes to the swap)


@dataclass(frozen=True)
class Later:
    """A tensor that is not made yet. source: what it is made of, as it lies in its file."""

    make: Callable[[], Tensor]
    shape: torch.Size
    source: Tensor


class Lazy(Mapping[str, Tensor]):
    """Tensors by name, those that are `Later` made anew at every access."""

    def __init__(self, entries: Mapping[str, Tensor | Later]):
        self.entries = dict(entries)

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        return entry.make() if isinstance(entry, Later) else entry

    def __contains__(self, name: object) -> bool:  # a Mapping's own makes the tensor to see whether it is there
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def entries_of(state: Mapping[str, Tensor]) -> dict[str, Tensor | Later]:
    """Everything as it stands there: nothing is made."""
    return dict(state.entries) if isinstance(state, Lazy) else dict(state)


def shape_of(state: Mapping[str, Tensor], name: str) -> torch.Size:
    return state.entries[name].shape if isinstance(state, Lazy) else state[name].shape


def renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> Lazy:
    return Lazy({rename(name): entry for name, entry in entries_of(state).items()})


def chosen(state: Mapping[str, Tensor], wanted: Callable[[str], bool]) -> Lazy:
    return Lazy({name: entry for name, entry in entries_of(state).items() if wanted(name)})


def changed(state: Mapping[str, Tensor], changes: Mapping[str, Callable[[Tensor], Tensor]]) -> Lazy:
    """The state with some tensors changed, when they are asked for. A change keeps the shape."""
    entries = entries_of(state)
    for name, change in changes.items():
        entry = entries[name]
        source = entry.source if isinstance(entry, Later) else entry
        entries[name] = Later(partial(_made, entry, change), entry.shape, source)
    return Lazy(entries)


def _made(entry: Tensor | Later, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(entry.make() if isinstance(entry, Later) else entry)


def release(entry: Tensor | Later) -> None:
    """Let the pages of a memory-mapped tensor go, now that it was read. Loses nothing; only Linux does it."""
    tensor = entry.source if isinstance(entry, Later) else entry
    first = tensor.data_ptr()
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (first + tensor.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if sys.platform == "linux" and length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), PAGEOUT)
