"""`everframe doctor`: what this machine can run, and what is missing for the rest."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .plan import DEVICES

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-rtx",
    "tensorrt",
    "cuda-python",
    "onnx",
    "torch",
    "av",
    "tokenizers",
)
TEGRA = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class Gpu:
    name: str
    compute_capability: str  # sm_86
    memory_mib: int
    free_mib: int
    driver: str
    runtime: str


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
    return found


def find_gpu() -> tuple[Gpu | None, str]:
    """The first GPU through cuda-python, or why there is none."""
    try:
        from cuda.bindings import runtime  # type: ignore[attr-defined]
    except ImportError:
        node = any(Path("/dev").glob("nvidia[0-9]*")) or TEGRA.exists()
        return None, "there is one, but cuda-python is not installed" if node else "none found"
    try:
        code, count = runtime.cudaGetDeviceCount()
        if code != runtime.cudaError_t.cudaSuccess or not count:
            return None, f"none that CUDA can use ({code.name})"
        properties = runtime.cudaGetDeviceProperties(0)[1]
        free, total = runtime.cudaMemGetInfo()[1:]
        driver, toolkit = runtime.cudaDriverGetVersion()[1], runtime.cudaRuntimeGetVersion()[1]
    except RuntimeError as error:
        return None, f"none: {error}"
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    known = (f"{v // 1000}.{v % 1000 // 10}" for v in (driver, toolkit))
    return Gpu(name, f"sm_{properties.major}{properties.minor}", total >> 20, free >> 20, *known), ""


def jetpack() -> str | None:
    """The L4T release line of a Jetson, None elsewhere."""
    return TEGRA.read_text().splitlines()[0].strip("# ") if TEGRA.is_file() else None


def working_encoders() -> list[str]:
    from .video import ENCODERS, choose_encoder

    return [name for name in ENCODERS if choose_encoder(name, 256, 144)[0] == name]


def diagnose() -> Diagnosis:
    import onnxruntime

    packages, (gpu, note), tegra = installed(), find_gpu(), jetpack()
    providers = onnxruntime.get_available_providers()
    system = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "jetpack": tegra or "no Jetson",
    }
    roads = roads_of(packages, gpu, note, providers, tegra is not None)
    return Diagnosis(system, packages, gpu, note, providers, working_encoders(), roads, advice(gpu, tegra, packages))


def roads_of(packages: dict[str, str], gpu: Gpu | None, note: str, providers: list[str], is_jetson: bool) -> list[Road]:
    """Every backend with what it lacks here. A pure function of what was found."""
    roads = [Road("onnxruntime on the CPU", True, f"onnxruntime {packages.get('onnxruntime', '?')}")]
    cuda = "CUDAExecutionProvider" in providers
    lacking = [] if gpu else [f"no GPU ({note})"]
    roads.append(
        Road(
            "onnxruntime on the GPU",
            cuda and gpu is not None,
            "; ".join([*lacking, *([] if cuda else ["pip install 'everframe[gpu]'"])]) or "CUDAExecutionProvider",
        )
    )
    for backend, pip in (
        ("tensorrt-rtx", "pip install 'everframe[rtx]'"),
        ("tensorrt", "pip install tensorrt cuda-python"),
    ):
        missing = [] if backend in packages else [pip]
        if backend in packages and "cuda-python" not in packages:
            missing.append("pip install cuda-python")
        if backend == "tensorrt-rtx" and is_jetson:
            missing = ["not for Jetson: use classic TensorRT"]
        builds = f"builds engines ({packages[backend]})" if backend in packages else ""
        words = "; ".join(part for part in (builds, *missing, *lacking) if part)
        roads.append(Road(backend, not missing and not lacking, words))
    return roads


def advice(gpu: Gpu | None, tegra: str | None, packages: dict[str, str]) -> str:
    """Which form and precision suit this machine."""
    if gpu is None:
        return "run the bundle as it is, with ONNX Runtime on the CPU"
    old = packages.get("tensorrt", "").startswith(("8.", "10."))
    form = "portable (this TensorRT has no in-place cache)" if old else "in-place"
    major = int(gpu.compute_capability.removeprefix("sm_")) // 10
    half = "fp16 or bf16" if major >= 8 else "fp16"
    small = gpu.memory_mib < 9000 or tegra is not None
    known = ", in the table of everframe plan" if any(d.name.split()[-1] in gpu.name for d in DEVICES) else ""
    return f"form {form}, precision {half}{', INT8 for larger sizes' if small else ''}{known}"


def as_record(diagnosis: Diagnosis) -> dict[str, Any]:
    return asdict(diagnosis)
