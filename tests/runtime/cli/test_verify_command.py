"""`everframe verify` and the streams' own proof, as users meet them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from everframe.engines.bundle import Bundle, describe, write_manifest

COMMAND = [sys.executable, "-c", "from everframe.runtime.cli import main; main()"]


def everframe(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def wrong(bundle_path: Path, tmp_path: Path) -> Path:
    """A bundle whose step graph is off, though its checksums are right."""
    path = shutil.copytree(bundle_path, tmp_path / "wrong.everframe", ignore=shutil.ignore_patterns("engines"))
    model = onnx.load(path / "step.onnx")
    weights = [w for w in model.graph.initializer if len(w.dims) >= 2 and np.prod(w.dims) > 500]
    for weight in weights:
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float16(1.2), weight.name))
    onnx.save(model, path / "step.onnx")
    raw = json.loads((path / "manifest.json").read_text())
    raw["graphs"]["step"]["model"] = describe(path / "step.onnx").model_dump()
    (path / "manifest.json").write_text(json.dumps(raw))
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "auto"])
def test_right_engines(bundle_path: Path, backend: str) -> None:
    done = everframe("verify", bundle_path, "--backend", backend)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("right: ")
    assert "latents off by" in done.stdout


def test_wrong_engines(wrong: Path, tmp_path: Path) -> None:
    done = everframe("verify", wrong)
    assert done.returncode == 1
    assert done.stdout.startswith("WRONG: ")
    told = json.loads(everframe("verify", wrong, "--json").stdout)
    assert told["holds"] is False
    assert told["deviation"]["first"] > told["bound"]["latents"]
    out = tmp_path / "out.mp4"
    refused = everframe("generate", "-b", wrong, "--seconds", 1, "-o", out)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "do not compute what the bundle means" in refused.stderr
    assert not out.exists()
    streamed = everframe("generate", "-b", wrong, "--seconds", 1, "-o", out, "--unverified")
    assert streamed.returncode == 0, streamed.stderr
    assert out.stat().st_size
    auto = everframe("verify", wrong, "--backend", "auto")
    assert auto.returncode == 2
    assert "none works here" in auto.stderr or "do not compute" in auto.stderr


def test_without_a_reference(bundle_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(bundle_path, tmp_path / "old.everframe", ignore=shutil.ignore_patterns("engines"))
    manifest = Bundle.open(path).manifest
    write_manifest(path, manifest.model_copy(update={"reference": None}))
    done = everframe("verify", path)
    assert done.returncode == 2
    assert "has no reference" in done.stderr
