"""The one error path of all commands."""

from __future__ import annotations

import re


class UserError(Exception):
    """Something the user can mend, said in one line: what is wrong, what was found, what was expected.

    Commands print it without a traceback and exit with code 2.
    """


class RunError(RuntimeError):
    """A pass that an engine could not run now, though it was loaded: a card may be full. Commands say it as they say a
    UserError; a server tries again, for nobody has to mend anything."""


class CudaError(RunError, UserError):
    """What CUDA, or the card behind it, did not do: while something is chosen or loaded a reason like any other against it,
    in a stream that runs one to try again."""


# As CUDA ("out of memory", cudaErrorMemoryAllocation), cuBLAS and cuDNN, TensorRT ("OutOfMemory") and ONNX Runtime's arena
# say it.
FULL = re.compile(r"out ?of ?memory|MemoryAllocation|ALLOC_FAILED|failed to allocate memory", re.IGNORECASE)


def load_error(reason: str, size: int, card: int) -> type[UserError]:
    """The kind of error with which so many bytes could not be loaded onto a card of so many, by the reason that its library
    gives: where the card is only full now, nobody has to mend the file."""
    return CudaError if FULL.search(reason) and size <= card else UserError
