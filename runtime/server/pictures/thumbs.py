"""A small picture of every prompt of the bank, taken from the stream when it has shown the prompt for a while."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ....engines.bundle import Bundle
from ....engines.errors import UserError
from ....engines.files import make_folder, write_whole

log = logging.getLogger(__name__)

AFTER = 6  # chunks with the prompt: a smooth change has come to its end by then
WIDTH = 320
RENEWED = 86400.0  # seconds after which a newer one is taken


class Thumbs:
    """Files in a folder, which is made when the first one comes. Another bundle makes other pictures of the same prompts:
    they have other names."""

    def __init__(self, folder: Path, bundle: Bundle):
        self._folder, self._prompts = folder, frozenset(bundle.manifest.prompts)
        self._bundle = "".join(bundle.manifest.graphs[name].digest for name in ("step", "decode"))
        self._prompt, self._chunks = "", 0
        self._keeping: threading.Thread | None = None

    def file(self, prompt: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{self._bundle} {prompt}'.encode()).hexdigest()[:16]}.jpg"

    def tidy(self) -> None:
        """Take those of other bundles away, where that can be done: somebody else may have made them."""
        own = {self.file(prompt) for prompt in self._prompts}
        for file in self._folder.glob("*.jpg"):
            if file not in own:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)

    def there(self) -> set[str]:
        """Prompts that have a picture."""
        return {prompt for prompt in self._prompts if self.file(prompt).is_file()}

    def read(self, prompt: str) -> bytes | None:
        try:
            return self.file(prompt).read_bytes() if prompt in self._prompts else None
        except OSError:
            return None

    def seen(self, prompt: str, frames: NDArray[np.uint8]) -> None:
        """A chunk of the stream, frames [T, H, W, 3]."""
        self._chunks = self._chunks + 1 if prompt == self._prompt else 1
        self._prompt = prompt
        if self._chunks != AFTER or prompt not in self._prompts or (self._keeping and self._keeping.is_alive()):
            return
        # Whoever shows pictures does not wait for a disk.
        self._keeping = threading.Thread(target=self._renew, args=(prompt, frames[-1:].copy()), daemon=True)
        self._keeping.start()

    def _renew(self, prompt: str, frames: NDArray[np.uint8]) -> None:
        file = self.file(prompt)
        try:
            if not file.is_file() or time.time() - file.stat().st_mtime >= RENEWED:
                self.keep(prompt, frames)
        except (OSError, UserError) as error:  # a full disk must not stop the picture
            log.info("no picture of a prompt is kept: %s", error)

    def keep(self, prompt: str, frames: NDArray[np.uint8]) -> None:
        """The last of frames [T, H, W, 3] is its picture. Raises UserError."""
        make_folder(self._folder)
        write_whole(self.file(prompt), small(frames[-1]))


def small(frame: NDArray[np.uint8]) -> bytes:
    """JPEG, WIDTH wide."""
    image, out = Image.fromarray(frame), io.BytesIO()
    image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS).save(
        out, "JPEG", quality=82
    )
    return out.getvalue()
