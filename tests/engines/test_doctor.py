"""What doctor says of machines that were never here, and of this one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest

from everframe.engines import inspection
from everframe.engines.doctor import advice, installed, roads_of
from everframe.engines.machine import Gpu

CARD = Gpu("NVIDIA GeForce RTX 4090", "sm_89", 24564, 24000, "13.0", "13.0")
ORIN = Gpu("Orin", "sm_87", 7620, 5000, "12.6", "12.6")
OLD = Gpu("NVIDIA GeForce RTX 2070", "sm_75", 8192, 8000, "13.0", "13.0")
RTX = ("tensorrt-rtx", "tensorrt")
ALL = {"onnxruntime": "1.32", "tensorrt-rtx": "1.7", "tensorrt": "11.4", "cuda-python": "13.0"}


@pytest.mark.parametrize(
    ("packages", "gpu", "providers", "is_jetson", "ready"),
    [
        ({"onnxruntime": "1.32"}, None, [], False, {"onnxruntime on the CPU"}),
        (ALL, None, ["CUDAExecutionProvider"], False, {"onnxruntime on the CPU"}),
        (ALL, CARD, [], False, {"onnxruntime on the CPU", *RTX}),
        (ALL, CARD, ["CUDAExecutionProvider"], False, {"onnxruntime on the CPU", "onnxruntime on the GPU", *RTX}),
        (ALL, ORIN, [], True, {"onnxruntime on the CPU", "tensorrt"}),
        ({"tensorrt-rtx": "1.7"}, CARD, [], False, {"onnxruntime on the CPU"}),
        (ALL, replace(CARD, compute_capability="sm_90"), [], False, {"onnxruntime on the CPU", "tensorrt"}),
    ],
)  # fmt: skip
def test_roads(packages: dict, gpu: Gpu | None, providers: list[str], is_jetson: bool, ready: set[str]) -> None:
    roads = roads_of(packages, gpu, "none found", providers, is_jetson)
    assert {r.backend for r in roads if r.ready} == ready
    for road in roads:
        if not road.ready:
            assert any(word in road.note for word in ("pip install", "no GPU", "use classic TensorRT"))


def test_advice() -> None:
    assert "CPU" in advice(None, None, ALL, [])
    assert advice(CARD, None, ALL, ["RTX 4090"]).startswith("form in-place, precision fp16 or bf16")
    assert "portable" in advice(ORIN, "R36", ALL | {"tensorrt": "10.3.0"}, [])
    assert "INT8" in advice(ORIN, "R36", ALL, [])
    assert "bf16" not in advice(OLD, None, ALL, [])


@pytest.mark.slow  # every backend makes some chunks
def test_the_command_on_this_machine() -> None:
    run = [sys.executable, "-c", "from everframe.runtime.cli import main; main()", "doctor"]
    done = subprocess.run([*run, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["packages"]["onnxruntime"]
    assert "libx264" in said["encoders"]
    assert said["roads"][0]["ready"]
    assert "advice" in subprocess.run(run, capture_output=True, text=True).stdout


def test_two_onnxruntimes_side_by_side_are_noticed() -> None:
    both = {"onnxruntime": "1.32", "onnxruntime-gpu": "1.32"}
    road = roads_of(both, None, "none found", [], False)[0]
    assert not road.ready
    assert "pip uninstall -y onnxruntime; pip install --force-reinstall onnxruntime-gpu" in road.note
    assert "pip uninstall -y onnxruntime-gpu; pip install --force-reinstall onnxruntime" in road.note


def test_packages_for_one_cuda_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """tensorrt_cu13 without the package that would install it."""
    real = inspection.version

    def version(name: str) -> str:
        if name == "tensorrt_cu13":
            return "11.4.0"
        if name == "tensorrt":
            raise PackageNotFoundError
        return real(name)

    monkeypatch.setattr(inspection, "version", version)
    assert installed()["tensorrt"] == "11.4.0"
