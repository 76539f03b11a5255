"""A bundle that changes: written anew beside its place, and put there whole."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..engines.bundle import MANIFEST, Bundle, read_manifest
from ..engines.files import link_or_copy, new_folder


@contextmanager
def anew(bundle: Bundle, without: Collection[str]) -> Iterator[Path]:
    """Yield a folder with all that the bundle's has, compiled engines too, as hard links, but its manifest and the files of
    these names; on success it takes the bundle's place. Raises UserError, also where another process has changed the bundle
    since it was opened."""
    path = bundle.path
    skip = shutil.ignore_patterns(MANIFEST, *without)
    with new_folder(
        path, MANIFEST, replace=True, unchanged=lambda: read_manifest(path / MANIFEST) == bundle.manifest
    ) as part:
        shutil.copytree(path, part, ignore=skip, copy_function=link_or_copy, dirs_exist_ok=True)
        yield part
