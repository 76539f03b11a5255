"""OpenVINO beside ONNX Runtime: the same frames from both forms, while the ring fills and long after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.choose import open_backend
from everframe.engines.errors import UserError
from everframe.runtime import Chunk, Stream, Transition

from helpers import PROMPTS

pytest.importorskip("openvino")

CHANGES: dict[int, tuple[str, Transition]] = {
    2: (PROMPTS[1], "swap"),
    5: (PROMPTS[2], "smooth"),
    7: (PROMPTS[0], "flush"),
    9: (PROMPTS[1], "cut"),
}


def chunks(bundle: Bundle, backend: str, overlap: bool, threads: int = 1) -> list[Chunk]:
    made = []
    with Stream(
        bundle, seed=5, overlap=overlap, backend=open_backend(backend, EngineOptions(threads=threads))
    ) as stream:
        for i in range(14):
            if i in CHANGES:
                stream.set_prompt(*CHANGES[i])
            made.append(stream.next_chunk())
    return made


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("form", ["in-place", "portable"])
def test_the_same_frames_as_onnx_runtime(bundle_path: Path, portable_path: Path, form: str, overlap: bool) -> None:
    bundle = Bundle.open(bundle_path if form == "in-place" else portable_path)
    threads = 2 if overlap else 1
    ours, theirs = (chunks(bundle, name, overlap, threads) for name in ("openvino", "onnxruntime"))
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.prompt == b.prompt
        assert np.abs(a.latent - b.latent).max() <= 1e-4 * np.abs(b.latent).max(), i
        assert np.abs(a.frames.astype(int) - b.frames).max() <= 1, i


def test_streams_share_engines(bundle_path: Path) -> None:
    bundle, backend = Bundle.open(bundle_path), open_backend("openvino", EngineOptions(threads=1))
    assert backend.load(bundle, "step") is not backend.load(bundle, "prompt")
    with Stream(bundle, seed=1, backend=backend) as a, Stream(bundle, seed=2, backend=backend) as b:
        mixed = [(a.next_chunk().frames, b.next_chunk().frames) for _ in range(6)]
    for seed in (1, 2):
        with Stream(bundle, seed=seed, backend=open_backend("openvino", EngineOptions(threads=1))) as alone:
            for frames in mixed:
                assert (alone.next_chunk().frames == frames[seed - 1]).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (EngineOptions(device="gpu7"), ["--device", "gpu7", "CPU"]),
        (EngineOptions(precision="int3"), ["--precision", "int3", "bf16"]),
        (EngineOptions(threads=10**6), ["threads"]),
    ],
)
def test_what_is_not_there(options: EngineOptions, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        open_backend("openvino", options)
    for word in words:
        assert word in str(caught.value)
