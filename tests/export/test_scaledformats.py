"""What ComfyUI says of a layer's numbers: formats that are a number times a scale are read, all others refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from everframe.engines.errors import UserError
from everframe.engines.progress import Report
from everframe.export.scaled import is_narrow
from everframe.export.sources import read

LAYERS = [f"blocks.{i}.self_attn.q" for i in range(2)]
INT8 = {"format": "int8_tensorwise"}
ROTATED = INT8 | {"convrot": True, "convrot_groupsize": 4}
READ = r"which is not read; expected float8_e4m3fn, float8_e5m2 or int8_tensorwise, not rotated$"


def marked(said: Any) -> Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def int8(state: dict[str, Tensor], rotate: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A file of scaled int8 as ComfyUI writes it, one scale a row, and what it means in float64 if nothing is rotated."""
    four = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]) / 2.0
    held, meant = dict(state), {k: v.double() for k, v in state.items()}
    for layer in LAYERS:
        weight = state[f"{layer}.weight"]
        turned = (weight.view(len(weight), -1, 4) @ four).view_as(weight) if rotate else weight
        scale = turned.abs().amax(1, keepdim=True) / 127
        held[f"{layer}.weight"], held[f"{layer}.weight_scale"] = (turned / scale).round().to(torch.int8), scale
        meant[f"{layer}.weight"] = held[f"{layer}.weight"].double() * scale.double()
    return held, meant


@pytest.fixture
def state(wan_home: Path) -> dict[str, Tensor]:
    return load_file(wan_home / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("header", [False, True])
def test_scaled_int8(state: dict[str, Tensor], tmp_path: Path, header: bool) -> None:
    held, meant = int8(state)
    said = INT8 | {"convrot": False, "full_precision_matrix_mult": True}
    markers = {f"{layer}.comfy_quant": marked(said) for layer in LAYERS}
    metadata = {"_quantization_metadata": json.dumps({"layers": dict.fromkeys(LAYERS, said)})} if header else None
    save_file(held if header else held | markers, tmp_path / "x.safetensors", metadata)
    lines: list[str] = []
    got = read(tmp_path / "x.safetensors", report=Report(line=lines.append)).state
    assert set(got) == set(meant)
    for name, value in meant.items():
        assert torch.allclose(got[name].double(), value, rtol=1e-6, atol=0), name
    assert lines == [f"{tmp_path / 'x.safetensors'}: scaled int8: 2 weights are multiplied by their scales"]


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        (ROTATED, "convrot True"),
        (INT8 | {"params": {"convrot": True}}, "convrot True"),
        ({"format": "asym_w4a8_int8"}, "format asym_w4a8_int8"),
        ({"format": "mxfp8"}, "format mxfp8"),
        ({}, "format None"),
        (INT8 | {"smoothed": 0.5}, r"smoothed 0\.5"),
        ([3], "format None"),
    ],
    ids=str,
)
def test_numbers_that_mean_something_else(
    state: dict[str, Tensor], tmp_path: Path, said: Any, words: str, header: bool, prefix: str
) -> None:
    """Rotated weights have the names, types and shapes of plain ones."""
    held, _ = int8(state, rotate=True)
    held = {prefix + k: v for k, v in held.items()}
    if not header:
        held |= {f"{prefix}{layer}.comfy_quant": marked(said) for layer in LAYERS}
    metadata = {"_quantization_metadata": json.dumps({"layers": {prefix + layer: said for layer in LAYERS}})}
    save_file(held, tmp_path / "x.safetensors", metadata if header else None)
    names = ", ".join(f"{layer}.comfy_quant" for layer in LAYERS).replace(".", r"\.")
    with pytest.raises(UserError, match=rf"x\.safetensors: {words} \({names}\), {READ}") as caught:
        read(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_a_header_that_is_of_another_part(wan_home: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    """Of a whole pipeline whose text encoder is rotated, the transformer is read."""
    text = load_file(wan_home / "text" / "text_encoder" / "model.safetensors")
    place, layer = "text_encoders.umt5xxl.transformer.", "encoder.block.0.layer.0.SelfAttention.q"
    one = {f"model.diffusion_model.{k}": v for k, v in state.items()} | {place + k: v for k, v in text.items()}
    metadata = {"_quantization_metadata": json.dumps({"layers": {place + layer: ROTATED}})}
    save_file(one, tmp_path / "x.safetensors", metadata)
    assert set(read(tmp_path / "x.safetensors").state) == set(state)
    with pytest.raises(UserError, match=READ):
        read(tmp_path / "x.safetensors", part="text_encoder")


def test_what_says_nothing(state: dict[str, Tensor], tmp_path: Path) -> None:
    held, _ = int8(state)
    file = tmp_path / "x.safetensors"
    for more, metadata, words in (
        ({f"{LAYERS[0]}.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, None, r"q\.comfy_quant: expected JSON in"),
        ({}, {"_quantization_metadata": "{"}, "_quantization_metadata is not valid JSON"),
        ({}, {"_quantization_metadata": "[]"}, "found no object 'layers'"),
        ({f"{LAYERS[0]}.weight": held[f"{LAYERS[0]}.weight"].view(torch.uint8)}, None, r"q\.weight in torch\.uint8"),
    ):
        save_file(held | more, file, metadata)
        with pytest.raises(UserError, match=words) as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_a_folder_in_int8_is_not_left_to_transformers(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    assert not is_narrow(tmp_path)
    save_file({"x": torch.zeros(2, dtype=torch.int8)}, tmp_path / "a.safetensors")
    assert is_narrow(tmp_path)
