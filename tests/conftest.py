from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from everframe.engines.bundle import Bundle
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.export.wanexport import export_wan

from helpers import write_checkpoint
from wanfiles import source22, write_wan22_files, write_wan_files

KEEP = Overrides()


def pytest_configure() -> None:
    """With pytest -n, a core for each worker and all it starts. Two pools of spinning threads on the same cores take
    twice as long for the same work."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, …
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "test")


@pytest.fixture(scope="session")
def bundle_path(checkpoint: Path) -> Path:
    path = checkpoint.parent / "test.everframe"
    export_checkpoint(checkpoint, path, KEEP, chunks=10, force=False)
    return path


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def wan_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan_files(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="session")
def wan22_home(wan_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan22_files(tmp_path_factory.mktemp("wan22"), wan_home)


@pytest.fixture(scope="session")
def wan22_paths(wan22_home: Path) -> dict[str, Path]:
    """Bundles of the 5B's family with an encoder, by their form: one with either autoencoder."""
    vaes = {"in-place": "Wan2.2_VAE.pth", "portable": "taew2_2.pth"}
    paths = {form: wan22_home / f"{form}.everframe" for form in vaes}
    for form, path in paths.items():
        export_wan(
            source22(wan22_home, form=form, vae=wan22_home / vaes[form], encoder=True), path, chunks=8, force=False
        )
    return paths


@pytest.fixture(scope="session")
def following_paths(checkpoint: Path) -> dict[str, Path]:
    """Bundles whose sinks follow the window, by their form."""
    paths = {form: checkpoint.parent / f"following-{form}.everframe" for form in ("in-place", "portable")}
    for form, path in paths.items():
        export_checkpoint(checkpoint, path, Overrides(form=form, rope="relative"), chunks=10, force=False)  # type: ignore[arg-type]
    return paths


@pytest.fixture(scope="session")
def portable_path(checkpoint: Path) -> Path:
    path = checkpoint.parent / "portable.everframe"
    changes = Overrides(form="portable")
    export_checkpoint(checkpoint, path, changes, chunks=10, force=False)
    return path
