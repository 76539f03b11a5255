"""One server for each state folder: a lock that dies with its process, however it dies."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
from pathlib import Path
from typing import BinaryIO

from ....engines.errors import UserError
from ....engines.files import reason

log = logging.getLogger(__name__)


def hold(folder: Path) -> BinaryIO:
    """Lock the folder until the returned file is closed. Raises UserError where another process holds it."""
    file = folder / "lock"
    try:
        held = open(file, "a+b")  # noqa: SIM115 - kept open as long as the server runs; child processes do not get it
    except OSError as error:
        if error.errno != errno.EROFS:
            raise UserError(f"{file}: {reason(error)}") from None
        if not file.exists():  # nothing to lock, and nothing that two servers could write over
            return io.BytesIO()
        held = open(file, "rb")  # noqa: SIM115 - of an earlier start
    try:
        _lock(held)
    except (BlockingIOError, PermissionError):
        held.seek(0)
        owner = held.read(20).decode("ascii", "replace").strip()
        held.close()
        raise UserError(
            f"state_dir {folder}: in use by another server (process {owner}); every server needs a state_dir of its own"
        ) from None
    except OSError as error:  # a file system without locks
        log.warning("state_dir %s: cannot be locked (%s): no other server may use it", folder, reason(error))
    with contextlib.suppress(OSError):  # a full disk
        held.truncate(0)
        held.write(f"{os.getpid()}\n".encode())
        held.flush()
    return held


def _lock(file: BinaryIO) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 30)  # far behind what it says: a locked byte cannot be read by others
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
