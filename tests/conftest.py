from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from everframe.engines.bundle import Bundle
from everframe.export.command import Overrides, export_checkpoint

from helpers import write_checkpoint
from wanfiles import write_wan_files

KEEP = Overrides()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "test")


@pytest.fixture(scope="session")
def bundle_path(checkpoint: Path) -> Path:
    path = checkpoint.parent / "test.everframe"
    export_checkpoint(checkpoint, path, KEEP, chunks=10, force=False, console=Console(quiet=True))
    return path


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def wan_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan_files(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="session")
def portable_path(checkpoint: Path) -> Path:
    path = checkpoint.parent / "portable.everframe"
    changes = Overrides(form="portable")
    export_checkpoint(checkpoint, path, changes, chunks=10, force=False, console=Console(quiet=True))
    return path
