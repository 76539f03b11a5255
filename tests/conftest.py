from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from filelock import FileLock

from everframe.engines.bundle import Bundle
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.export.wanexport import export_wan

from helpers import write_checkpoint
from wanfiles import source, source22, write_wan22_files, write_wan_files

KEEP = Overrides()


def pytest_configure() -> None:
    """With pytest -n, a core for each worker and all it starts. Two pools of spinning threads on the same cores take
    twice as long for the same work."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # gw0, gw1, …
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker[2:]) % len(cores)]})
        torch.set_num_threads(1)


def exported(home: Path, name: str, export: Callable[[Path], object]) -> Path:
    """A bundle that one worker of pytest -n exports, and every one has a copy of: exporting is most of what tests cost."""
    worker, path = os.environ.get("PYTEST_XDIST_WORKER"), home / name
    if not worker:
        export(path)
        return path
    common = next(one for one in home.parents if one.name.startswith("popen-")).parent / name
    with FileLock(f"{common}.lock"):
        if not common.exists():
            (making := common.parent / f"making-{name}").mkdir()
            export(making / name)
            (making / name).rename(common)
    return Path(shutil.copytree(common, path))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "test")


@pytest.fixture(scope="session")
def bundle_path(checkpoint: Path) -> Path:
    return exported(
        checkpoint.parent, "test.everframe", lambda to: export_checkpoint(checkpoint, to, KEEP, chunks=10, force=False)
    )


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.open(bundle_path)


@pytest.fixture(scope="session")
def wan_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan_files(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="session")
def whole_wan_path(wan_home: Path) -> Path:
    """Head dim 128, half precision, the Wan VAE with its first-chunk graph, the encoder, and the text encoder."""
    given = source(wan_home, encoder=True, precision="fp16", text_graph=True)
    return exported(wan_home, "whole-wan.everframe", lambda to: export_wan(given, to, chunks=0, force=False))


@pytest.fixture(scope="session")
def speaking_path(wan_home: Path) -> Path:
    """A bundle with its text encoder, which takes any prompt."""
    given = source(wan_home, text_graph=True, vae=wan_home / "taew2_1.pth")
    return exported(wan_home, "speaking.everframe", lambda to: export_wan(given, to, chunks=0, force=False))


@pytest.fixture(scope="session")
def wan22_home(wan_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan22_files(tmp_path_factory.mktemp("wan22"), wan_home)


@pytest.fixture(scope="session")
def wan22_paths(wan22_home: Path) -> dict[str, Path]:
    """Bundles of the 5B's family with an encoder, by their form: one with either autoencoder."""

    def path(form: Literal["in-place", "portable"], vae: str) -> Path:
        source = source22(wan22_home, form=form, vae=wan22_home / vae, encoder=True)
        return exported(wan22_home, f"wan22-{form}.everframe", lambda to: export_wan(source, to, chunks=8, force=False))

    return {"in-place": path("in-place", "Wan2.2_VAE.pth"), "portable": path("portable", "taew2_2.pth")}


@pytest.fixture(scope="session")
def following_paths(checkpoint: Path) -> dict[str, Path]:
    """Bundles whose sinks follow the window, by their form."""

    def path(form: Literal["in-place", "portable"]) -> Path:
        changes = Overrides(form=form, rope="relative")
        name = f"following-{form}.everframe"
        return exported(
            checkpoint.parent, name, lambda to: export_checkpoint(checkpoint, to, changes, chunks=10, force=False)
        )

    return {"in-place": path("in-place"), "portable": path("portable")}


@pytest.fixture(scope="session")
def portable_path(checkpoint: Path) -> Path:
    changes, name = Overrides(form="portable"), "portable.everframe"
    return exported(
        checkpoint.parent, name, lambda to: export_checkpoint(checkpoint, to, changes, chunks=10, force=False)
    )
