"""Whether a process that says nothing is busy reading: a slow disk is progress, not a hang."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

from .notify import notify

log = logging.getLogger(__name__)

LOOK = 5.0  # seconds between looks
GRACE = 60  # seconds more that systemd is asked for at each
TELL = 15.0  # seconds between lines in the log


def bytes_read(pid: int | str = "self") -> int:
    """Bytes that the process has read so far, from files and by page faults; 0 where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = Path(f"/proc/{pid}/io").read_text().splitlines()
        told = dict(line.split(": ") for line in lines)
        return int(told["rchar"]) + int(told["read_bytes"])
    return 0


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """Long reading at the start: systemd is asked for more time as long as it goes on, and the log says that it does."""
    ending = threading.Event()

    def watch() -> None:
        before, waited, said = bytes_read(), 0.0, TELL
        began = before
        while not ending.wait(LOOK):
            waited, now = waited + LOOK, bytes_read()
            if now > before:
                notify(f"EXTEND_TIMEOUT_USEC={GRACE * 1_000_000}\nSTATUS={what}: {(now - began) >> 20} MiB read")
            if waited >= said:
                log.info("%s: %d MiB read", what, (now - began) >> 20)
                said += TELL
            before = now

    thread = threading.Thread(target=watch, name="start", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
