"""Logging: standard error (journald keeps and rotates it), the newest lines in memory, and by choice a bounded file."""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
from collections import deque
from collections.abc import Iterable

from ....engines.errors import UserError
from ....engines.files import reason
from ..config import Logging
from ..discretion import Veil

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FILES = 5


class Tail(logging.Handler):
    """The newest lines, for the operator's page."""

    def __init__(self, lines: int = 500):
        super().__init__()
        self._lines: deque[str] = deque(maxlen=lines)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(self.format(record)[:2000])
        except Exception:  # a line whose words do not fit its values must not end the thread that wrote it
            self.handleError(record)

    def newest(self, count: int) -> list[str]:
        return list(self._lines)[-count:]


def set_up(settings: Logging, secrets: Iterable[str] = ()) -> Tail:
    """Configure the root logger; no line shows the secrets. Raises UserError when the file cannot be opened."""
    tail = Tail()
    handlers: list[logging.Handler] = [logging.StreamHandler(), tail]
    if settings.file is not None:
        try:
            # Whatever the machine's own encoding is: prompts are in any script, and a line must not be lost for that.
            file = logging.handlers.RotatingFileHandler(
                settings.file,
                maxBytes=settings.max_mb << 20,
                backupCount=FILES - 1,
                encoding="utf-8",
                errors="backslashreplace",
            )
            handlers.append(file)
        except OSError as error:
            raise UserError(f"logging.file {settings.file}: {reason(error)}") from None
    logging.raiseExceptions = False  # a full disk must not print a traceback at every line
    root, veil = logging.getLogger(), Veil(FORMAT, secrets)
    root.setLevel(settings.level.upper())
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    for handler in handlers:
        handler.setFormatter(veil)
        root.addHandler(handler)
    # uvicorn.error tells every WebSocket that comes and goes, with its address.
    for noisy in ("uvicorn.access", "uvicorn.error", "websockets", "PIL", "asyncio", "libav"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_no_end)
    return tail


def _is_no_end(record: logging.LogRecord) -> bool:
    """A request that is cut off when the server stops is no error of the application's, which uvicorn takes it for."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)
