"""`everframe doctor`: what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .inspection import ORT_CPU, ORT_GPU, installed_backends
from .machine import Gpu, find_cores, find_gpu, jetpack
from .openvino import installed_devices
from .trtbuild import takes_lengths

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "cuda-python",
    "onnx",
    "torch",
    "av",
    "tokenizers",
)
RTX_TARGETS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")  # of TensorRT-RTX 1.7: no Hopper, no B200


@dataclass(frozen=True)
class Road:
    """One backend: ready, or what is missing and the line that gets it."""

    backend: str
    ready: bool
    note: str


@dataclass(frozen=True)
class Diagnosis:
    system: dict[str, str]
    packages: dict[str, str]
    gpu: Gpu | None
    gpu_note: str
    providers: list[str]
    encoders: list[str]
    roads: list[Road]
    advice: str


def installed() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | installed_backends()


def diagnose(encoders: list[str], planned: Sequence[str]) -> Diagnosis:
    """encoders: video encoders that open here; planned: cards that the planner knows."""
    import onnxruntime

    packages, (gpu, note), tegra = installed(), find_gpu(), jetpack()
    providers = onnxruntime.get_available_providers()
    system = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {find_cores()}",
        "jetpack": tegra or "no Jetson",
    }
    roads = roads_of(packages, gpu, note, providers, tegra is not None, installed_devices())
    words = advice(gpu, tegra, packages, planned)
    return Diagnosis(system, packages, gpu, note, providers, encoders, roads, words)


def roads_of(
    packages: dict[str, str],
    gpu: Gpu | None,
    note: str,
    providers: list[str],
    is_jetson: bool,
    openvino_devices: Sequence[str] = (),
) -> list[Road]:
    """Every backend with what it lacks here. A pure function of what was found."""
    both = {"onnxruntime", "onnxruntime-gpu"} <= set(packages)
    word = f"onnxruntime {packages.get('onnxruntime') or packages.get('onnxruntime-gpu', '?')}"
    if both:  # they write over each other's files: which one runs depends on the order in which they were installed
        word += f" and onnxruntime-gpu side by side; for a GPU: {ORT_GPU}; else: {ORT_CPU}"
    roads = [Road("onnxruntime on the CPU", not both, word)]
    cuda = "CUDAExecutionProvider" in providers and "cuda-python" in packages
    lacking = [] if gpu else [f"no GPU ({note})"]
    roads.append(
        Road(
            "onnxruntime on the GPU",
            cuda and gpu is not None,
            "; ".join([*lacking, *([] if cuda else [ORT_GPU])]) or "CUDAExecutionProvider",
        )
    )
    devices = ", ".join(openvino_devices)
    missing = [] if "openvino" in packages else ["pip install 'everframe[openvino]'"]
    roads.append(Road("openvino", not missing and bool(devices), "; ".join(missing) or f"devices {devices or 'none'}"))
    for backend, pip in (
        ("tensorrt-rtx", "pip install 'everframe[rtx]'"),
        ("tensorrt", "pip install tensorrt cuda-python"),
    ):
        missing = [] if backend in packages else [pip]
        if backend in packages and "cuda-python" not in packages:
            missing.append("pip install cuda-python")
        if backend == "tensorrt-rtx" and is_jetson:
            missing = ["not for Jetson: use classic TensorRT"]
        elif backend == "tensorrt-rtx" and gpu is not None and gpu.compute_capability not in RTX_TARGETS:
            missing = [f"has no {gpu.compute_capability}: use classic TensorRT"]
        builds = f"builds engines ({packages[backend]})" if backend in packages else ""
        words = "; ".join(part for part in (builds, *missing, *lacking) if part)
        roads.append(Road(backend, not missing and not lacking, words))
    return roads


def advice(gpu: Gpu | None, tegra: str | None, packages: dict[str, str], planned: Sequence[str]) -> str:
    """Which form and precision suit this machine."""
    if gpu is None:
        return "run the bundle as it is, with ONNX Runtime on the CPU"
    version = packages.get("tensorrt", "")
    lengths = not version or takes_lengths("tensorrt", version)
    form = "in-place" if lengths else "portable (this TensorRT has no in-place cache)"
    major = int(gpu.compute_capability.removeprefix("sm_")) // 10
    half = "fp16 or bf16" if major >= 8 else "fp16"
    small = gpu.memory_mib < 9000 or tegra is not None
    known = ", in the table of everframe plan" if any(name.split()[-1] in gpu.name for name in planned) else ""
    return f"form {form}, precision {half}{', INT8 for larger sizes' if small else ''}{known}"


def lines(found: Diagnosis) -> list[str]:
    """The diagnosis for people."""
    gpu = found.gpu
    told = found.gpu_note
    if gpu:
        told = f"{gpu.name}, {gpu.compute_capability}, {gpu.free_mib} of {gpu.memory_mib} MiB free, "
        told += f"driver for CUDA {gpu.driver}"
    return [
        *(f"{name:16} {value}" for name, value in (found.system | found.packages).items()),
        f"{'GPU':16} {told}",
        f"{'video encoders':16} {', '.join(found.encoders)}",
        *(f"{'ready  ' if road.ready else 'missing'} {road.backend}: {road.note}" for road in found.roads),
        f"advice: {found.advice}",
    ]


def as_record(diagnosis: Diagnosis) -> dict[str, Any]:
    return asdict(diagnosis)
