"""An overlay above a running picture: drawn anew when something in it changes, burned into frames."""

from __future__ import annotations

import datetime as dt
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...engines.errors import UserError
from ...engines.files import reason
from .draw import PAGE, Drawn, draw, strip_share
from .parts import Overlay

KEPT = 4  # drawings, of the sizes that are asked for
LARGEST_FILE = 8 << 20  # bytes of a logo


class Layer:
    """Any thread. zone: asked for the clock's zone; logo: the content of its file, if not the one that the overlay names;
    size: of the pictures that it is burned into.

    Raises UserError for what cannot be drawn, at that size or at a page's.
    """

    def __init__(
        self,
        overlay: Overlay,
        zone: Callable[[], dt.tzinfo],
        logo: bytes | None = None,
        size: tuple[int, int] = (320, 180),
    ):
        self.overlay, self.zone, self._size = overlay, zone, size
        if logo is None and overlay.logo is not None and overlay.logo.file is not None:
            logo = read_logo(overlay.logo.file)
        self.logo = logo
        # Who burns does not wait for who draws for a page, which is ten times as large.
        self._burned, self._pages = _Drawings(), _Drawings()
        self._last: tuple[tuple[Any, ...], NDArray[np.uint8]] = (None, None, None), np.empty(0, np.uint8)
        now = dt.datetime.now(dt.UTC)
        self._drawing(self._burned, size, now)
        self.drawn((round(PAGE * size[0] / size[1]), PAGE), now)

    @property
    def empty(self) -> bool:
        return self.overlay.empty

    @cached_property
    def ticker_share(self) -> float:
        """The ticker's words in widths of the picture, measured once: every page's connection asks twice a second."""
        ticker = self.overlay.ticker
        return 0.0 if ticker is None else strip_share(ticker, self._size, self.overlay.font)

    def face(self, now: dt.datetime) -> str:
        """What its clock shows: as long as it stays, so does everything but the ticker's place."""
        clock = self.overlay.clock
        return "" if clock is None or self.overlay.message is not None else self._local(now).strftime(clock.format)

    def drawn(self, size: tuple[int, int], now: dt.datetime) -> Drawn:
        """For pages of so many pixels, width and height."""
        return self._drawing(self._pages, size, now)

    def burned(self, frame: NDArray[np.uint8], now: dt.datetime) -> NDArray[np.uint8]:
        """A copy of frame [H, W, 3] with the overlay in it; the frame itself where there is none."""
        if self.empty:
            return frame
        drawn = self._drawing(self._burned, (frame.shape[1], frame.shape[0]), now)
        left = None if drawn.strip is None else drawn.strip.place(now.timestamp())
        before, out = self._last
        if before[0] is frame and before[1] is drawn and before[2] == left:  # a picture that stands still
            return out
        image = Image.fromarray(frame)
        for piece in drawn.pieces:
            image.paste(piece.colours, (piece.x, piece.y), piece.alpha)
        if drawn.strip is not None and left is not None:
            image.paste(drawn.strip.colours, (left, drawn.strip.y), drawn.strip.alpha)
        out = np.asarray(image)
        self._last = (frame, drawn, left), out
        return out

    def _drawing(self, kept: _Drawings, size: tuple[int, int], now: dt.datetime) -> Drawn:
        return kept.get((size, self.face(now)), lambda: draw(self.overlay, size, self._local(now), self.logo))

    def _local(self, now: dt.datetime) -> dt.datetime:
        return now.astimezone(self.zone())


class _Drawings:
    """The newest drawings; one is made at a time."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[tuple[int, int], str], Drawn] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[tuple[int, int], str], make: Callable[[], Drawn]) -> Drawn:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
                while len(self._made) > KEPT:
                    self._made.popitem(last=False)
            self._made.move_to_end(key)
            return self._made[key]


def read_logo(file: Path) -> bytes:
    """Raises UserError."""
    try:
        if file.stat().st_size > LARGEST_FILE:
            raise UserError(f"overlay.logo {file}: larger than {LARGEST_FILE >> 20} MiB")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"overlay.logo {file}: {reason(error)}") from None
