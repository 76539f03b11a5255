"""A bundle is hashed once: by the web process at its start.

The generator takes it as it was seen then; a file that has changed since is hashed again, and another manifest is another
bundle, which wants a new start of the whole server.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ....engines.bundle import MANIFEST, Bundle, verify
from ....engines.errors import UserError
from ....engines.files import put_back, reason
from ...demo import DEMO_BUNDLE, open_bundle
from .work import told

log = logging.getLogger(__name__)

Mark = tuple[int, int, int]  # size, time of change in ns, inode


def mark_of(file: Path) -> Mark | None:
    with contextlib.suppress(OSError):
        s = file.stat()
        return s.st_size, s.st_mtime_ns, s.st_ino
    return None


@dataclass(frozen=True)
class Seen:
    """A verified bundle, what its files looked like, and the hash of its manifest."""

    bundle: Bundle
    manifest: str
    marks: dict[str, Mark | None]

    @property
    def path(self) -> Path:
        return self.bundle.path

    def open(self) -> Bundle:
        """The bundle again, in whichever process. Raises UserError where its files are not what they were."""
        if digest_of(self.path) != self.manifest:
            raise UserError(f"{self.path}: another bundle than the one that this server started with")
        for ref in self.bundle.manifest.files():
            file = self.path / ref.file
            if self.marks[ref.file] is None or mark_of(file) != self.marks[ref.file]:
                verify(file, ref)
        return self.bundle


def digest_of(folder: Path) -> str:
    """Hash of a bundle's manifest. Raises UserError."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{folder / MANIFEST}: cannot read: {reason(error)}") from None


def see(path: Path | None) -> Seen:
    """Open and verify a bundle; without a path, the demo. Raises UserError."""
    folder = DEMO_BUNDLE if path is None else path
    put_back(folder)  # before it is looked at, not while it is opened
    digest = digest_of(folder) if folder.is_dir() else ""
    before = _marks(folder)  # what changes while it is being verified was not verified
    with told(f"verifying {folder}"):
        bundle = open_bundle(path)
    marks = {ref.file: before.get(ref.file) for ref in bundle.manifest.files()}
    changed = [name for name, mark in marks.items() if mark != mark_of(folder / name)]
    if changed or digest_of(folder) != digest:
        raise UserError(f"{folder / (changed or [MANIFEST])[0]}: was changed while it was verified")
    return Seen(bundle, digest, marks)


def _marks(folder: Path) -> dict[str, Mark | None]:
    """Of every file below it."""
    return {str(file.relative_to(folder)): mark_of(file) for file in folder.rglob("*")} if folder.is_dir() else {}


class Replacement:
    """Whether another bundle lies where ours was, whole, different, and fit: fits raises UserError for one that is not."""

    def __init__(self, seen: Seen, fits: Callable[[Bundle], None]):
        self._seen, self._fits = seen, fits
        self._judged: object = None  # what the folder looked like when it was last read
        self._before: object = None

    def there(self) -> Seen | None:
        """The other one, verified, once it stands still between two looks; one that is refused is told once. Cheap while
        nothing changes."""
        look = self._look()
        if not look or look == self._judged:
            return None
        if look != self._before:  # still being written, perhaps
            self._before = look
            return None
        self._judged = look
        try:
            if digest_of(self._seen.path) == self._seen.manifest:
                return None
            found = see(self._seen.path)
            self._fits(found.bundle)
        except UserError as error:
            log.warning("%s: replaced by one that cannot be used; going on: %s", self._seen.path, error)
            return None
        log.warning("%s: another bundle has taken its place; starting anew with it", self._seen.path)
        return found

    def _look(self) -> list[tuple[str, Mark | None]]:
        with contextlib.suppress(OSError):
            return sorted((file.name, mark_of(file)) for file in self._seen.path.iterdir())
        return []
