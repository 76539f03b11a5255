"""Quotas of cgroups, as trees of files that a kernel would show and, where this machine allows it, a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from everframe.engines import machine
from everframe.engines.errors import UserError
from everframe.engines.machine import Cores, cgroup_quota, thread_count

from simulated_cuda import SimulatedRuntime

V1 = Path("/sys/fs/cgroup/cpu")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def v1(quota: str) -> dict[str, str]:
    return {"cpu/c/cpu.cfs_quota_us": quota, "cpu/c/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),  # the parent limits
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None),
        ("0::/../../host/path\n", {"cpu.max": "200000 100000\n"}, 2.0),  # a container sees its root alone
        ("4:cpu,cpuacct:/c\n1:name=systemd:/\n", v1("50000"), 0.5),
        ("4:cpu:/c\n", v1("-1"), None),
        ("4:memory:/c\n", v1("50000"), None),
        ("0::/a\n", {"a/cpu.max": "rubbish"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_quota(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    proc = tmp_path / "cgroup"
    proc.write_text(cgroup)
    assert cgroup_quota(proc, tree(tmp_path / "fs", files)) == quota
    assert cgroup_quota(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("cores", "usable", "throttled"),
    [
        (Cores(8, 8, None), 8, False),
        (Cores(8, 2, None), 2, False),
        (Cores(8, 8, 0.5), 1, True),
        (Cores(8, 4, 2.7), 2, True),
        (Cores(2, 2, 4.0), 2, False),
    ],
)
def test_usable(cores: Cores, usable: int, throttled: bool) -> None:
    assert cores.usable == usable
    assert cores.throttled == throttled


def test_threads() -> None:
    assert thread_count(3) == 3
    for absurd in (-1, 10**6):
        with pytest.raises(UserError, match="expected 0"):
            thread_count(absurd)


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0 or not os.access(V1, os.W_OK), reason="no cgroup v1 to make"
)
def test_half_a_core_for_real() -> None:
    group = V1 / f"everframe-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_quota_us").write_text("50000")
        code = "from everframe.engines.ort import usable_cores as u; print(u())"
        script = f'echo $$ > {group}/tasks && exec {sys.executable} -c "{code}"'
        done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "1"
    finally:
        group.rmdir()


@pytest.mark.parametrize(
    ("before", "index", "after"),
    [(None, None, None), (None, 1, "1"), ("2,3", 1, "3"), ("GPU-8f,GPU-9a", 0, "GPU-8f"), ("2", None, "2")],
)
def test_the_chosen_gpu(
    monkeypatch: pytest.MonkeyPatch, before: str | None, index: int | None, after: str | None
) -> None:
    for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    machine.choose_gpu(index)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == after
    ordered = index is not None and before is None  # numbers that were given mean what they meant
    assert os.environ.get("CUDA_DEVICE_ORDER") == ("PCI_BUS_ID" if ordered else None)
    nvml = SimpleNamespace(nvmlDeviceGetHandleByIndex=lambda i: i, nvmlDeviceGetHandleByUUID=lambda uuid: uuid)
    assert machine.nvml_card(nvml) == (0 if after is None else int(after) if after.isdecimal() else after)


@pytest.mark.parametrize(
    ("seen", "told"), [("4,5", "--gpu 2: CUDA_VISIBLE_DEVICES has 2, 4,5"), ("", "--gpu 2: .* has 0")]
)
def test_a_gpu_beyond_those_that_are_visible(monkeypatch: pytest.MonkeyPatch, seen: str, told: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    with pytest.raises(UserError, match=told):
        machine.choose_gpu(2)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("cudaMemGetInfo", "cudaErrorMemoryAllocation"),
        ("cudaGetDeviceProperties", "cudaErrorDevicesUnavailable"),
        ("cudaGetDeviceCount", "cudaErrorNoDevice"),
    ],
)
def test_a_card_that_cannot_be_asked(asked: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is full, or another process's alone: cuda-python answers with a code and None for every result."""
    bindings = pytest.importorskip("cuda.bindings")
    runtime = SimulatedRuntime()
    failure = SimpleNamespace(name=code)
    monkeypatch.setattr(bindings, "runtime", runtime, raising=False)
    assert machine.find_gpu()[0] is not None
    monkeypatch.setattr(type(runtime), asked, lambda self, *args: (failure, None, None))
    assert machine.find_gpu() == (None, f"none that CUDA can use (CUDA: {asked}: {code})")


def test_the_peak_is_this_process_s_own() -> None:
    """getrusage's begins, in a process that a larger one started, with that one's."""
    child = "from everframe.engines.machine import *; print(peak_memory() >= resident_memory(), peak_memory())"
    parent = (
        "import subprocess, sys; held = bytearray(600 << 20); held[::4096] = bytes(len(held[::4096]));"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    more, peak = done.stdout.split()
    assert more == "True"
    assert int(peak) < 400 << 20
