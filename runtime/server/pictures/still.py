"""The picture that stands before a generator has made one: what was shown when the life before paused or ended."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ....engines.errors import UserError
from ....engines.files import write_whole

log = logging.getLogger(__name__)


def keep_still(file: Path, frame: NDArray[np.uint8]) -> None:
    """Write a frame [H, W, 3]; a full disk is a line in the log."""
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG", compress_level=1)
    try:
        write_whole(file, out.getvalue())
    except UserError as error:
        log.warning("the picture is not kept: %s", error)


def kept_still(file: Path, width: int, height: int) -> NDArray[np.uint8] | None:
    """The frame [H, W, 3] that was kept; None where there is none, or none of this size."""
    try:
        with Image.open(file, formats=("PNG",)) as image:
            return np.array(image.convert("RGB")) if image.size == (width, height) else None
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        log.warning("%s: not a picture; the stream begins with an even one", file)
        return None
