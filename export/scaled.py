"""Weights in eight bits: plain fp8, which is only cast, and weights times a scale that stands beside them.

A scaled weight without its scale is off by a factor of its own in every layer, which no check of names would see.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from ..engines.text import first_line
from .lazy import changed, release
from .names import State, listed

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
NARROW = (*FP8, torch.int8)
MARKER = "scaled_fp8"  # an empty tensor that says that weights have scales
SCALES = (".scale_weight", ".weight_scale")
FORMAT = ".comfy_quant"  # ComfyUI's: what a layer's numbers mean, JSON in bytes; or all layers' in the file's header
METADATA = "_quantization_metadata"
UNUSED = (".scale_input", ".input_scale", FORMAT)  # the scales are of activations, for arithmetic in fp8
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
# What may stand beside a format without changing what a weight times its scale is.
HARMLESS = ("format", "full_precision_matrix_mult", "convrot_groupsize", "per_channel", "orig_dtype", "orig_shape")
EXPECTED = f"expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, not rotated"
OTHER = {  # scales of formats that hold more than one number a row
    ".weight_scale_inv": "fp8 scaled by blocks",
    ".weight_scale_2": "NVFP4",
    ".absmax": "bitsandbytes' 4 bits",
    ".quant_map": "bitsandbytes' 4 bits",
    ".qweight": "GPTQ or AWQ",
}


def descale(state: State, file: Path, report: Report = QUIET, dtype: torch.dtype = torch.float32) -> State:
    """Every weight of eight bits in dtype, times its scale where the file has scales; all others as they are.

    Raises UserError where a scale is missing, has no weight or another shape than one number or one a row, and for
    formats that are not read.
    """
    for suffix, kind in OTHER.items():
        if names := [n for n in state if n.endswith(suffix)]:
            raise UserError(f"{file}: {kind} ({listed(names)}), which is not read; expected fp16, bf16, float32 or fp8")
    check_formats({n: _json_of(state[n], n, file) for n in state if n.endswith(FORMAT)}, file)
    scales = {name.removesuffix(s) + ".weight": name for name in state for s in SCALES if name.endswith(s)}
    narrow = [name for name, value in state.items() if value.dtype in NARROW and not name.endswith(UNUSED)]
    if scales:
        _check_scales(state, scales, narrow, file)
    elif MARKER in state or _look_scaled(state, narrow):
        raise UserError(
            f"{file}: scaled fp8 without its scales: expected a .scale_weight or .weight_scale for each weight"
        )
    elif narrow:
        if whole := [n for n in narrow if state[n].dtype == torch.int8]:
            raise UserError(f"{file}: whole numbers without scales: {listed(whole)}")
        report.line(f"{file}: plain fp8: {len(narrow)} tensors have the 2 or 3 mantissa bits of fp8")
    else:
        return state
    away = {*scales.values(), MARKER, *(n for n in state if n.endswith(UNUSED))}
    if scales:
        whole = {state[name].dtype == torch.int8 for name in scales}
        kind = " and ".join(k for k, there in (("fp8", False in whole), ("int8", True in whole)) if there)
        report.line(f"{file}: scaled {kind}: {len(scales)} weights are multiplied by their scales")
    wide = {name: partial(_widened, state[scale], dtype) for name, scale in scales.items()}
    wide |= {n: lambda v: v.to(dtype) for n, v in state.items() if n not in wide and n not in away and v.dtype in FP8}
    return changed({name: value for name, value in state.items() if name not in away}, wide)


def _widened(scale: Tensor, dtype: torch.dtype, value: Tensor) -> Tensor:
    return (value.float() * scale.float().flatten().view(-1, *[1] * (value.ndim - 1))).to(dtype)


def check_formats(said: Mapping[str, Any], file: Path) -> None:
    """said: what a file says of its layers' numbers, by layer. Rotated ones have the names, shapes and scales of others, and
    would be read as noise. Raises UserError for whatever is more than numbers times a scale."""
    other: dict[str, list[str]] = {}
    for name, settings in said.items():
        nested = [v for v in settings.values() if isinstance(v, dict)] if isinstance(settings, dict) else []
        told = settings | {k: v for inner in nested for k, v in inner.items()} if isinstance(settings, dict) else {}
        if told.get("format") not in FORMATS:
            other.setdefault(f"format {listed([told.get('format')])}", []).append(name)
        for key, value in told.items():
            if key not in HARMLESS and value and not isinstance(value, dict):
                other.setdefault(f"{listed([key])} {listed([value])}", []).append(name)
    if other:
        kind, names = next(iter(other.items()))
        raise UserError(f"{file}: {kind} ({listed(names)}), which is not read; {EXPECTED}")


def header_formats(file: Path) -> dict[str, Any]:
    """What the header of a safetensors file says of its layers' numbers, under the names of `.comfy_quant` tensors. Raises
    UserError."""
    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(METADATA)
    if text is None:
        return {}
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {METADATA} is not valid JSON ({first_line(error)})") from None
    layers = said.get("layers") if isinstance(said, dict) else None
    if not isinstance(layers, dict):
        raise UserError(f"{file}: {METADATA}: found no object 'layers'; expected a format for each layer")
    return {f"{layer}{FORMAT}": settings for layer, settings in layers.items()}


def _json_of(value: Tensor, name: str, file: Path) -> Any:
    try:
        return json.loads(bytes(value.flatten().tolist()))
    except (ValueError, TypeError, RecursionError):
        raise UserError(f"{file}: {listed([name])}: expected JSON in bytes; {EXPECTED}") from None


def is_narrow(folder: Path) -> bool:
    """Whether a folder's safetensors files hold weights in eight bits."""
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                if any(opened.get_slice(name).get_dtype().startswith(("F8", "I8")) for name in opened.keys()):  # noqa: SIM118
                    return True
        except (OSError, SafetensorError):
            return False  # whoever reads it says what is wrong
    return False


def _check_scales(state: State, scales: dict[str, str], narrow: list[str], file: Path) -> None:
    """narrow: the names of all tensors of eight bits."""
    problems = [f"{scale} without its weight" for name, scale in scales.items() if name not in state]
    problems += [f"{name} without its scale" for name in narrow if name.endswith(".weight") and name not in scales]
    problems += [  # fp8 in a container of bytes, as some write it: times a scale it would be noise
        f"{name} in {state[name].dtype}"
        for name in scales
        if name in state and state[name].dtype not in NARROW and not state[name].is_floating_point()
    ]
    problems += [
        f"{scales[name]} {list(state[scales[name]].shape)} for {list(state[name].shape)}"
        for name in scales
        if name in state and not _fits(state[scales[name]], state[name])
    ]
    if problems:
        raise UserError(f"{file}: scaled fp8 whose scales do not fit: {listed(problems)}")


def _fits(scale: Tensor, weight: Tensor) -> bool:
    return scale.numel() == 1 or (scale.numel() == len(weight) == scale.shape[0])


def _look_scaled(state: State, narrow: list[str]) -> bool:
    """Whether most weights reach the largest number of their type: scaling makes them, training never does."""
    weights = [state[n] for n in narrow if state[n].dtype in FP8 and state[n].ndim > 1]
    full = []
    for weight in weights:
        full.append(bool(weight.float().abs().max() == torch.finfo(weight.dtype).max))
        release(weight)
    return sum(full) > len(full) / 2
