"""Files and folders that are either whole or not there: written beside their place, synced, then renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError


def reason(error: OSError) -> str:
    return error.strerror or str(error)


log = logging.getLogger(__name__)
_told: set[Path] = set()  # folders whose caches are elsewhere

PART, OLD = ".part", ".old"  # ends of the names of a folder in the making, and of one that is being replaced
YOUNG = 60.0  # seconds

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


def real(target: Path) -> Path:
    """The place that a name leads to: what a link names is replaced, not the link."""
    return Path(os.path.realpath(target))


def check_replaceable(target: Path, holds: str | None) -> None:
    """Fail early where what is there cannot be replaced as a whole, or is nothing of ours: a folder without a file of that
    name, and not an empty one. Raises UserError."""
    if target.is_dir() and os.path.ismount(real(target)):
        raise UserError(
            f"{target}: is a mount point and cannot be replaced as a whole; mount the folder above it, or write to "
            f"another name"
        )
    if target.is_dir() and (why := _held_by_others(real(target))):
        raise UserError(f"{target}: {why}, and cannot be replaced as a whole; write to another name")
    if holds is not None and target.exists():
        ours = (target / holds).is_file() or (target.is_dir() and not any(target.iterdir()))
        if not ours:
            raise UserError(f"{target}: holds no {holds} and is not replaced; remove it, or write to another name")


def _held_by_others(folder: Path) -> str | None:
    """What would keep a folder from being renamed away, or from being removed then."""
    if not os.access(folder, os.W_OK):
        return "is write-protected for this user"
    above = folder.parent.stat()
    if above.st_mode & stat.S_ISVTX and os.geteuid() not in (0, above.st_uid, folder.stat().st_uid):
        return f"is another user's, in a folder ({folder.parent}) where each renames their own only"
    return None


def user_cache() -> Path:
    """This user's folder for what is found out on this machine."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home, as in many containers
        base = Path(tempfile.gettempdir()) / f"everframe-{os.getuid()}"
    return base / "everframe"


def cache_place(file: Path) -> Path:
    """Where something that can be made again is kept: beside what it belongs to, or, where that folder cannot be written, in
    the user's cache folder (XDG_CACHE_HOME), under a name of its own for every such folder."""
    if os.access(file if file.is_dir() else file.parent, os.W_OK):
        return file
    home = user_cache() / hashlib.sha256(str(file.parent.resolve()).encode()).hexdigest()[:16]
    if file.parent not in _told:
        _told.add(file.parent)
        log.info("%s cannot be written: its cache is in %s", file.parent, home)
    return home / file.name


def check_writable(target: Path) -> None:
    """Fail early, before any work is done, when target's folder is missing or takes no new file."""
    folder = real(target).parent
    if not folder.is_dir():
        raise UserError(f"{target}: the folder {folder} does not exist")
    probe = folder / f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.probe"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UserError(f"{target}: cannot write in {folder}: {reason(error)}") from None


def check_file(target: Path) -> None:
    """As check_writable, of a name that is to be a file's."""
    if target.is_dir():
        raise UserError(f"{target}: is a folder; expected a file's name")
    check_writable(target)


def make_folder(folder: Path) -> None:
    """With those above it, unless it is there. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make the folder: {reason(error)}") from None


def remove_parts(folder: Path, name: str = "") -> None:
    """What processes that were killed while they wrote have left of a file, or of any; where the disk takes no changes, it
    stays."""
    with contextlib.suppress(OSError):
        for part in folder.glob(f".{glob.escape(name)}*{PART}"):
            part.unlink(missing_ok=True)


def write_whole(file: Path, content: bytes | Iterable[bytes | memoryview], mode: int = 0o666) -> None:
    """Write a file, or one part after the other, under a temporary name beside its place, sync and rename it; the old one
    stays until then. mode: who may read it, from the first byte on; less what the process' umask takes.

    Raises UserError when it cannot be written; nothing is left behind.
    """
    part = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        part.unlink(missing_ok=True)  # of a process that was killed, and had our numbers
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as f:
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
def new_folder(
    target: Path, holds: str | None, replace: bool = False, unchanged: Callable[[], bool] = lambda: True
) -> Iterator[Path]:
    """Yield an empty folder beside target; on success sync it and rename it to target, on any failure remove it. A target
    that is a link means what it leads to.

    holds: the file by which a folder of this kind is known: no other is replaced; None: any is, for the place is ours.
    unchanged: asked at the end, of what the new folder is made of: whether it still is what it was; without it, of two who
    replace a folder at a time the later one wins.

    Raises UserError when target exists (unless replace is given), is nothing of ours, cannot be written, or where another
    process has come first.
    """
    check_replaceable(target, holds if replace else None)
    check_writable(target)
    place = real(target)
    with own_folder(target) as part:
        if place.exists() and not replace:
            raise UserError(f"{target}: already exists; remove it or pass --force")
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                with open(file, "rb" if os.name != "nt" else "r+b") as f:
                    os.fsync(f.fileno())
        if not unchanged() or (place.exists() and not replace):
            raise UserError(f"{target}: was written by another process meanwhile, and is left as that made it")
        sync_folder(part)
        old = part.with_suffix(OLD)
        try:
            if place.exists():
                place.rename(old)
            part.rename(place)  # a crash between the two: `put_back`
            sync_folder(place.parent)
        finally:
            if not place.exists() and old.exists():
                old.rename(place)
            _remove(old)


@contextmanager
def own_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside target under a name that no other process has, locked as long as this one lives; whatever
    happens it is gone afterwards, unless it got another name. What dead processes left of theirs is removed.

    Raises UserError where it cannot be made, and for what the system refuses meanwhile.
    """
    place = real(target)
    put_back(place, sweep=True)
    # A process id alone is no name: in a container every run is process 1.
    part = place.with_name(f".{place.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
    lock = None
    try:
        part.mkdir()
        lock = _lock(part)
        yield part
    except OSError as error:  # of the file that the system names, unless that is one of this folder's, or it names none
        named = Path(error.filename) if isinstance(error.filename, str | Path) else part
        # Of two files that a copy names, the first is the source, also where the target's disk is full.
        foreign = error.filename2 is None and not named.absolute().is_relative_to(part)
        raise UserError(f"{named if foreign else f'{target}: cannot write'}: {reason(error)}") from None
    finally:  # also when the work inside was interrupted or refused
        _remove(part)
        if lock is not None:
            os.close(lock)


def put_back(target: Path, sweep: bool = False) -> None:
    """Where a process died while it replaced a folder, give that its name again. With `sweep`, remove what dead ones left
    beside it: only who is about to write there may, for a reader may not see the locks of another machine."""
    place = real(target)
    if place.exists() and not sweep:
        return
    mine = re.compile(rf"\.{re.escape(place.name)}\.\d+(-[0-9a-f]+)?({re.escape(PART)}|{re.escape(OLD)})")
    with contextlib.suppress(OSError):
        for stem in sorted({file.with_suffix("") for file in place.parent.iterdir() if mine.fullmatch(file.name)}):
            with contextlib.suppress(OSError):
                _put_back(place, stem, sweep)


def _put_back(place: Path, stem: Path, sweep: bool) -> None:
    part, old = (stem.with_name(f"{stem.name}{suffix}") for suffix in (PART, OLD))
    lock = None
    if part.exists():
        if not old.exists() and time.time() - part.stat().st_mtime < YOUNG:
            return  # its owner may be about to lock it
        lock = _lock(part)
        if lock is None:  # its owner lives, or nobody can tell
            return
    try:
        if old.exists() and not place.exists():
            old.rename(place)
        if sweep:
            _remove(part)
            _remove(old)
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Hold a folder until the returned handle is closed, or the process has died, however that was. None where another one
    holds it, and on systems and file systems without such locks."""
    if os.name == "nt":
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
