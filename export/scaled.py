"""Weights in eight bits: plain fp8, which is only cast, and weights times a scale that stands beside them.

A scaled weight without its scale is off by a factor of its own in every layer, which no check of names would see.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from .lazy import changed, release
from .names import State, listed

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
NARROW = (*FP8, torch.int8)
MARKER = "scaled_fp8"  # an empty tensor that says that weights have scales
SCALES = (".scale_weight", ".weight_scale")
UNUSED = (".scale_input", ".input_scale", ".comfy_quant")  # of activations, for arithmetic in fp8; a format's name
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
        report.line(f"{file}: scaled fp8: {len(scales)} weights are multiplied by their scales")
    wide = {name: partial(_widened, state[scale], dtype) for name, scale in scales.items()}
    wide |= {n: lambda v: v.to(dtype) for n, v in state.items() if n not in wide and n not in away and v.dtype in FP8}
    return changed({name: value for name, value in state.items() if name not in away}, wide)


def _widened(scale: Tensor, dtype: torch.dtype, value: Tensor) -> Tensor:
    return (value.float() * scale.float().flatten().view(-1, *[1] * (value.ndim - 1))).to(dtype)


def is_narrow(folder: Path) -> bool:
    """Whether a folder's safetensors files hold weights in fp8."""
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, "pt") as opened:
                if any(opened.get_slice(name).get_dtype().startswith("F8") for name in opened.keys()):  # noqa: SIM118
                    return True
        except (OSError, SafetensorError):
            return False  # whoever reads it says what is wrong
    return False


def _check_scales(state: State, scales: dict[str, str], narrow: list[str], file: Path) -> None:
    """narrow: the names of all tensors of eight bits."""
    problems = [f"{scale} without its weight" for name, scale in scales.items() if name not in state]
    problems += [f"{name} without its scale" for name in narrow if name.endswith(".weight") and name not in scales]
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
