"""Where engines run: on the cards of this machine, or where it has none, on stand-ins with the names of each real binding.

On a machine with a card nothing here needs torch or the tests beside this folder: `make test-gpu WHEELS=…` runs it alone,
with the shipped demo and the bundles that EVERFRAME_GPU_BUNDLES names (separated by colons).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everframe.engines.build import build_engines
from everframe.engines.bundle import Bundle
from everframe.engines.doctor import installed
from everframe.engines.errors import UserError
from everframe.engines.inspection import installed_backends
from everframe.engines.machine import find_gpu
from everframe.engines.tensorrt import TrtBackend
from everframe.engines.trtbuild import BuildOptions, load_module, takes_lengths
from everframe.runtime import open_bundle

# A machine that has a card and cannot use it fails: skipped tests would pass for tests that were run.
CARD = any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvhost-gpu", "/proc/driver/nvidia"))
BUILT: dict[tuple, Path] = {}
REPORT = Path(os.environ.get("EVERFRAME_GPU_REPORT", "gpu.json"))
if CARD:
    NAMES = sorted(installed_backends())
else:
    try:
        from stand_in import BACKEND, NAMES, StandIn
    except ModuleNotFoundError:  # this folder alone, on a machine without a card
        NAMES = []


@dataclass
class Card:
    """A backend that runs engines here. stand: in the place of a real card."""

    name: str
    backend: str
    stand: Any = None

    @property
    def portable_only(self) -> bool:
        return not takes_lengths(self.backend, load_module(self.backend).__version__)

    def open(self) -> TrtBackend:
        return TrtBackend(self.backend)

    def built(self, source: Path, folder: Path, post: str | None = None, **options: Any) -> Bundle:
        """A copy of the bundle with engines for this card; beside a real one, which takes minutes for it, made once."""
        key = (self.name, source, post, *options.items())
        if CARD and key in BUILT:
            return Bundle.open(BUILT[key])
        copy = Path(shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("engines")))
        if self.stand:
            self.stand.folder = copy
        build_engines(copy, BuildOptions(backend=self.backend, **options), post=post)
        BUILT[key] = copy
        return Bundle.open(copy)


# The bindings of one backend in `make test`, the others' in `make test-slow`.
QUICK = [name if CARD or name.startswith("rtx") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


OF_THE_OLDER = ("test_twelve_chunks_against_the_cpu", "test_prompt_changes", "test_the_portable_form_s_too")


@pytest.fixture(params=QUICK or ["none"])
def card(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    """Every backend that is here. Fails where there is a card and none of them can use it."""
    if CARD:
        assert request.param != "none", "there is a card, and neither tensorrt-rtx nor tensorrt is installed"
        made = Card(request.param, request.param)
        try:
            made.open()
        except UserError as error:
            pytest.fail(str(error))
        yield made
        return
    if request.param == "none":
        pytest.skip("no NVIDIA GPU here, and no stand-in beside these tests")
    if request.param == "classic-10.7" and request.node.originalname not in OF_THE_OLDER:
        pytest.skip("its names that are used here are those of 10.3: a few tests show it")
    stand = StandIn(request.param)  # pyright: ignore[reportPossiblyUnboundVariable]
    stand.install(monkeypatch)
    yield Card(request.param, BACKEND[request.param], stand)  # pyright: ignore[reportPossiblyUnboundVariable]
    assert not stand.faults


# Beside a card: the demo and what the environment names; else the small ones of the tests.
NAMED = [word for word in os.environ.get("EVERFRAME_GPU_BUNDLES", "").split(":") if word]
SOURCES = [str(open_bundle().path), *NAMED] if CARD or not NAMES else ["bundle_path", "portable_path"]


@pytest.fixture(params=SOURCES, ids=[Path(source).stem for source in SOURCES])
def source(request: pytest.FixtureRequest, card: Card) -> Path:
    """A bundle in every form that the card's TensorRT can build."""
    if card.name == "classic-11.4" and request.param == "portable_path" and not CARD:
        pytest.skip("one stand-in for each form of the newest bindings is enough")
    path = Path(request.param) if CARD else request.getfixturevalue(request.param)
    if card.portable_only and Bundle.open(path).manifest.form == "in-place":
        if CARD and all(Bundle.open(Path(one)).manifest.form == "in-place" for one in SOURCES):
            pytest.fail(f"{card.name} runs the portable form only: name such a bundle in EVERFRAME_GPU_BUNDLES")
        pytest.skip("TensorRT before 11.1 has no attention with lengths: portable form only")
    return path


@pytest.fixture
def built(source: Path, card: Card, tmp_path: Path) -> Bundle:
    return card.built(source, tmp_path)


@pytest.fixture(scope="session")
def report() -> Iterator[dict[str, Any]]:
    """What the tests measured, written as one JSON at the end; beside a card only."""
    found: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "everframe": version("everframe"),
    }
    yield found
    if CARD:
        gpu, note = find_gpu()
        found["card"], found["packages"] = asdict(gpu) if gpu else note, installed()
        with contextlib.suppress(OSError):  # a container may be without it
            asked = "--query-gpu=name,driver_version,memory.total,power.limit"
            command = ["nvidia-smi", asked, "--format=csv,noheader"]
            found["nvidia-smi"] = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        REPORT.write_text(json.dumps(found, indent=1, default=float) + "\n")


def error_of(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of the difference, in deviations of the first."""
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)) / a.std())
