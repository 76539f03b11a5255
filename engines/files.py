"""Files and folders that are either whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


def reason(error: OSError) -> str:
    return error.strerror or str(error)


log = logging.getLogger(__name__)
_told: set[Path] = set()  # folders whose caches are elsewhere

# What a system says of a folder that cannot be synced: not there (Windows, some network file systems) or not allowed.
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF, errno.EISDIR)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last, where its file system can. The files themselves are synced, so one that cannot loses
    at most the rename in a power cut."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in UNSYNCED:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(handle)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file that will not change, or a copy: on another file system, on one without hard links, or of
    somebody else's file. A target that is there stays."""
    if os.path.exists(target):
        return
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)


def check_replaceable(target: Path) -> None:
    """Fail early where a folder cannot be replaced as a whole. Raises UserError."""
    if target.is_dir() and os.path.ismount(target):
        raise UserError(
            f"{target}: is a mount point and cannot be replaced as a whole; mount the folder above it, or write to "
            f"another name"
        )


def cache_place(file: Path) -> Path:
    """Where something that can be made again is kept: beside what it belongs to, or, where that folder cannot be written, in
    the user's cache folder (XDG_CACHE_HOME), under a name of its own for every such folder."""
    if os.access(file.parent, os.W_OK):
        return file
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in many containers
        base = Path(tempfile.gettempdir()) / f"everframe-{os.getuid()}"
    home = base / "everframe" / hashlib.sha256(str(file.parent.resolve()).encode()).hexdigest()[:16]
    if file.parent not in _told:
        _told.add(file.parent)
        log.info("%s cannot be written: its cache is in %s", file.parent, home)
    return home / file.name


def check_writable(target: Path) -> None:
    """Fail early, before any work is done, when target's folder is missing or takes no new file."""
    folder = target.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{target}: the folder {folder} does not exist")
    probe = folder / f".{target.name}.{os.getpid()}.probe"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UserError(f"{target}: cannot write in {folder}: {reason(error)}") from None


def make_folder(folder: Path) -> None:
    """With those above it, unless it is there. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {reason(error)}") from None


def write_whole(file: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file, or one part after the other, under a temporary name beside its place, sync and rename it; the old one
    stays until then.

    Raises UserError when it cannot be written; nothing is left behind.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with open(part, "wb") as f:
            for part_of_it in [content] if isinstance(content, bytes) else content:
                f.write(part_of_it)
            f.flush()
            os.fsync(f.fileno())
        part.replace(file)
        sync_folder(file.absolute().parent)
    except OSError as error:
        raise UserError(f"{file}: cannot write: {reason(error)}") from None
    finally:
        with contextlib.suppress(OSError):  # a disk that takes nothing any more says so here too, and was told above
            part.unlink(missing_ok=True)  # it has its name by now, unless something went wrong


def record_key(facts: Any) -> str:
    """SHA-256 of anything that JSON holds: what a record is found by."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def kept_records(file: Path) -> dict[str, Any]:
    """What `keep_record` kept, by key; nothing where that cannot be read."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep_record(file: Path, key: str, record: Any) -> None:
    """Add a record to a JSON file, or put it in place of an older one. What cannot be kept is found out again next time."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(kept_records(file) | {key: record}, indent=1).encode())
    except (OSError, UserError) as error:
        log.info("not kept for the next start: %s", error)


@contextmanager
def new_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside target; on success sync it and rename it to target, on any failure remove it.

    Raises UserError when target exists (unless replace is given) or cannot be written.
    """
    if target.exists() and not replace:
        raise UserError(f"{target}: already exists; remove it or pass --force")
    check_replaceable(target)
    check_writable(target)
    part = target.absolute().with_name(f".{target.name}.{os.getpid()}.part")
    old = part.with_suffix(".old")
    part.mkdir()
    try:
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
        sync_folder(part)
        if target.exists():
            target.rename(old)
        part.rename(target)
        sync_folder(target.absolute().parent)
    except OSError as error:
        raise UserError(f"{target}: cannot write: {reason(error)}") from None
    finally:  # also when the work inside was interrupted or refused
        shutil.rmtree(part, ignore_errors=True)
        if not target.exists() and old.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)
