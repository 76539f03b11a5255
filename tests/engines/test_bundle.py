"""A bundle that is missing, truncated, altered or foreign is refused in one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError


@pytest.fixture
def copy(bundle_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle_path, tmp_path / "copy.everframe"))


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_opens_what_export_wrote(bundle_path: Path) -> None:
    manifest = Bundle.open(bundle_path).manifest
    assert set(manifest.graphs) == {"step", "prompt", "decode", "recache"}
    step = {s.name: s for s in manifest.graphs["step"].inputs}
    assert step["k_1"].shape == [1, 2, 96, 32]
    assert step["rope_cos"].shape == [2, 3, 6]
    outputs = {s.name: s for s in manifest.graphs["decode"].outputs}
    assert (outputs["frames"].shape, outputs["frames"].dtype) == ([12, 32, 64, 3], "uint8")
    assert sorted(f.name for f in bundle_path.iterdir() if f.is_file()) == [
        "decode.onnx",
        "manifest.json",
        "prompt.onnx",
        "prompts.safetensors",
        "recache.onnx",
        "reference.safetensors",
        "step.onnx",
    ]


def test_missing_folder(tmp_path: Path) -> None:
    assert "nowhere" in refusal(tmp_path / "nowhere")


def test_missing_manifest(tmp_path: Path) -> None:
    assert "manifest.json" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["step.onnx", "decode.onnx", "prompts.safetensors"])
def test_missing_truncated_and_altered_files(copy: Path, name: str) -> None:
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    assert name in (line := refusal(copy))
    assert f"{len(data) - 1} bytes" in line
    assert str(len(data)) in line
    (copy / name).write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    assert name in (line := refusal(copy))
    assert "SHA-256" in line
    (copy / name).unlink()
    assert name in refusal(copy)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_unknown_format(copy: Path, version: object) -> None:
    edit(copy, lambda m: m.update(format=version))
    line = refusal(copy)
    assert f"format {version!r}" in line
    assert "reads format 1" in line


def test_manifest_that_is_no_json(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"format": 1,')
    assert "not valid JSON" in refusal(copy)
    (copy / "manifest.json").write_text("[]")
    assert "format None" in refusal(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["geometry"].update(width="256"), ["geometry.width", '"256"']),
        (lambda m: m["geometry"].update(width=100), ["geometry", "100x32", "multiples of 16"]),
        (lambda m: m["geometry"].update(window=13), ["geometry", "13", "whole chunks"]),
        (lambda m: m["geometry"].update(fps=0), ["geometry.fps", "0"]),
        (lambda m: m["rope"].update(mode="circular"), ["rope.mode", "circular"]),
        (lambda m: m["rope"].update(epsilon=[0.5]), ["epsilon", "1 values for 2 heads"]),
        (lambda m: m["graphs"].pop("decode"), ["graphs", "decode"]),
        (lambda m: m["graphs"]["step"]["model"].update(file="../../etc/passwd"), ["graphs.step", "../../etc/passwd"]),
        (lambda m: m.update(surprise=1), ["surprise"]),
        (lambda m: m["geometry"].update(width=10**9), ["geometry.width", "32768"]),
        (lambda m: m["geometry"].update(window=3 * 10**12), ["geometry.window"]),
        (lambda m: m["network"].update(layers=10**30), ["network.layers"]),
        (lambda m: m["graphs"]["step"]["inputs"][0].update(shape=[10**9, 10**9]), ["graphs.step.inputs", "larger"]),
        (lambda m: m["geometry"].update(fps=float("nan")), ["geometry.fps"]),
        (lambda m: m["schedule"].update(shift=float("inf")), ["schedule"]),
        (lambda m: m.update(prompts=[]), ["prompts"]),
        (lambda m: m["rope"].update(epsilon=[[0.1, 0.2]] * 9), ["rope.epsilon", "9 lists for"]),
        (lambda m: m["rope"].update(epsilon=[[0.1]]), ["rope.epsilon", "1 values for 2 heads"]),
        (lambda m: m.update(recache="none"), ["recache", "'none'", "expected 'window'"]),
        (lambda m: m["graphs"].pop("recache"), ["recache", "'window'"]),
        (lambda m: m.update(shots={"offset": 8, "prefix": "Next."}), ["shots", "expected 'none'"]),
        (lambda m: m["geometry"].update(sink_ema=0.99), ["geometry.sink_ema", "a graph 'sinks'"]),
        (lambda m: m["graphs"].update(sinks=m["graphs"]["decode"]), ["geometry.sink_ema"]),
        (lambda m: m["graphs"].update(text=m["graphs"]["prompt"]), ["tokenizer"]),
        (lambda m: m["graphs"].update(upscale=m["graphs"]["prompt"]), ["graphs.upscale", "the decoder's frames"]),
        (lambda m: m["graphs"].update(upscale_first=m["graphs"]["prompt"]), ["upscale_first"]),
    ],
)
def test_wrong_fields(copy: Path, change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    edit(copy, change)
    line = refusal(copy)
    for word in ["manifest.json", *words]:
        assert word in line
