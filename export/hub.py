"""Files from the Hugging Face hub. Cache, resuming, progress, offline mode, HF_ENDPOINT and tokens are huggingface_hub's
own; what it does not do is done here: all sizes are told and the disk is asked before the first byte, and what came is
held against the hub's hash.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from ..engines.text import first_line
from .recipes import HubFile

T = TypeVar("T")
SPARE = 1 << 30  # bytes that stay free


@dataclass(frozen=True)
class Found:
    """A file as the hub has it now, or as the cache does where the hub can't be asked."""

    file: HubFile
    path: str  # of the file itself or of one beside it
    commit: str
    etag: str
    size: int
    cached: Path | None

    @property
    def name(self) -> str:
        return f"{self.file.repo}/{self.path}"

    @property
    def to_fetch(self) -> int:
        """Bytes. A file of this content may be in the cache already, by another commit."""
        folder = repo_folder_name(repo_id=self.file.repo, repo_type="model")
        blob = Path(constants.HF_HUB_CACHE, folder, "blobs", self.etag)
        return 0 if self.cached or blob.is_file() else self.size

    @property
    def pinned(self) -> str | None:
        """The hash that the table says of it."""
        return self.file.sha256 if self.path == self.file.path else None


def survey(files: Iterable[HubFile]) -> list[Found]:
    """Size, commit and hash of each file, and whether it is here already. Raises UserError naming the file."""
    return [_look(file, path) for file in files for path in (file.path, *file.beside)]


def tell(found: Iterable[Found], report: Report) -> None:
    """A line for each file, and one for the sum."""
    found = list(found)
    for one in found:
        state = f"{one.to_fetch / 1e6:.1f} MB" if one.to_fetch else "here"
        report.line(f"{one.name} at {one.commit[:10] or 'unknown'}: {state}; licence: {one.file.licence}")
    report.line(f"to fetch: {sum(one.to_fetch for one in found) / 1e6:.1f} MB")


def fetch(files: dict[str, HubFile], report: Report = QUIET) -> dict[str, Path]:
    """Every file's path in the cache, by its key. Raises UserError, one line that names the file, for no network, no
    access, no space, and what is not what the hub says it is."""
    found = {key: survey([file]) for key, file in files.items()}
    every = [one for several in found.values() for one in several]
    tell(every, report)
    _check_space(sum(one.to_fetch for one in every))
    paths = {key: [_kept(one) if one.cached else _download(one) for one in several] for key, several in found.items()}
    return {key: several[0] for key, several in paths.items()}


def _look(file: HubFile, path: str) -> Found:
    here = try_to_load_from_cache(file.repo, path, revision=file.revision)
    cached = Path(here) if isinstance(here, str) else None
    if cached and (constants.HF_HUB_OFFLINE or re.fullmatch(r"[0-9a-f]{40}", file.revision)):
        return Found(file, path, commit_of(cached), "", cached.stat().st_size, cached)
    url = hf_hub_url(file.repo, path, revision=file.revision)
    try:
        said = _asked(file, path, lambda: get_hf_file_metadata(url))
    except UnreachableError:
        if cached is None:
            raise
        return Found(file, path, commit_of(cached), "", cached.stat().st_size, cached)
    commit, etag, size = said.commit_hash, said.etag, said.size
    if not commit or not etag or size is None:
        raise UserError(
            f"{file.repo}/{path}: {constants.ENDPOINT} does not answer as a hub does (no commit, hash or size)"
        )
    here = try_to_load_from_cache(file.repo, path, revision=commit)
    return Found(file, path, commit, etag, size, Path(here) if isinstance(here, str) else None)


def commit_of(path: Path) -> str:
    """The commit in whose snapshot a cached file is; empty if the path tells none."""
    match = re.search(r"models--[^/\\]+[/\\]snapshots[/\\]([^/\\]+)", str(path))
    return match[1] if match else ""


def _check_space(needed: int) -> None:
    folder = Path(constants.HF_HUB_CACHE)
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed and needed + SPARE > free:
        raise UserError(
            f"{folder}: {needed / 1e9:.1f} GB to fetch, {free / 1e9:.1f} GB free, {SPARE / 1e9:.1f} of which stay so; "
            "HF_HOME names another folder"
        )


def _kept(one: Found) -> Path:
    """The cached file. Whoever may write there may have changed it, and what came whole may have rotted since: where the
    table says a hash, it is held against that."""
    assert one.cached is not None
    if one.pinned:
        _check_hash(one, one.cached, one.pinned)
    return one.cached


def _download(one: Found) -> Path:
    # By the revision's name, so that the cache knows it when there is no network. What it names may have moved since it was
    # looked at: a cached file's name is the hash that the hub said with it.
    path = Path(
        _asked(one.file, one.path, lambda: hf_hub_download(one.file.repo, one.path, revision=one.file.revision))
    )
    said = path.resolve().name if path.is_symlink() else one.etag
    _check_hash(one, path, one.pinned or said)
    return path


def _check_hash(one: Found, path: Path, expected: str) -> None:
    """Raises UserError for a file that is not what it should be, which is removed."""
    got = _hash(path, expected)
    if got is not None and got != expected:
        path.resolve().unlink()  # so that the next try does not find it in the cache
        path.unlink(missing_ok=True)
        raise UserError(f"{one.name}: has the hash {got[:12]}…, expected {expected[:12]}…; it was removed: try again")


def _hash(file: Path, expected: str) -> str | None:
    """The file's hash of the kind that is expected: SHA-256 of large files, git's SHA-1 of small ones; None for others."""
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", expected):
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    else:
        return None
    with open(file, "rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class UnreachableError(UserError):
    """The hub did not answer."""


def _asked(file: HubFile, path: str, ask: Callable[[], T]) -> T:
    """What the hub's client says, its errors as one line. Which classes it raises differs between its versions (requests,
    httpx), so the status tells what is wrong, and a missing one that there was no answer."""
    where = f"{file.repo}/{path}"
    try:
        return ask()
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise UserError(
                f"{where}: {constants.ENDPOINT} says {status}: gated, private or not there; accept its licence at "
                f"{constants.ENDPOINT}/{file.repo} and log in (hf auth login, or HF_TOKEN)"
            ) from None
        if status == 404:
            raise UserError(f"{where}: not at {constants.ENDPOINT} in revision {file.revision}") from None
        if status is not None:
            raise UnreachableError(f"{where}: {constants.ENDPOINT} says {status}") from None
        if isinstance(error, OSError) and error.errno and error.strerror:
            raise UserError(f"{where}: {error.strerror}: {error.filename or constants.HF_HUB_CACHE}") from None
        raise UnreachableError(f"{where}: cannot be fetched from {constants.ENDPOINT}: {first_line(error)}") from None
