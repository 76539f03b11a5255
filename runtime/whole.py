"""What a chunk that was broken off leaves behind: nothing that can be gone on with."""

from __future__ import annotations

from ..engines.errors import UserError


class Whole:
    """A context around the making of every chunk. Ctrl-C or an error inside leaves a ring and decoder states half written,
    some of them by passes that still run: a state that was saved of that would resume wrong, without a word."""

    def __init__(self) -> None:
        self._broken, self._closed = False, False

    def check(self) -> None:
        """Raises UserError where there is nothing whole."""
        if self._closed:
            raise UserError("the stream is closed")
        if self._broken:
            raise UserError(
                "the stream was broken off inside a chunk; make another one, from what was saved between two chunks"
            )

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> None:
        self.check()
        self._broken = True

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._broken = kind is not None
