"""LoRAs as they circulate: their namings, their scales, and merging any number of them into the transformer.

A layer's change is strength · scale · B·A. The scale is alpha/rank (PEFT's rslora: alpha/√rank), and where alpha stands
depends on who wrote the file: a tensor `.alpha` beside each pair (Kohya, ComfyUI), adapter_config.json beside the file
(PEFT), the metadata of the safetensors file (diffusers), or nowhere.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..engines.errors import UserError
from ..engines.progress import QUIET, Report
from .lazy import changed, shape_of
from .names import State, flattened_layers, listed, public_name
from .sources import files_of, json_object, tensors

PREFIXES = ("base_model.", "model.", "diffusion_model.", "transformer.", "pipe.", "dit.", "unet.", "generator.")
PEFT = "base_model.model."
FLAT = ("lora_unet_", "lora_transformer_", "lycoris_")
CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"  # where diffusers keeps an adapter_config
# What a tensor is, by the end of its name. PEFT puts an adapter's name before `.weight`.
ROLES = (
    ("A", re.compile(r"\.(?:lora_A|lora_down|lora\.down)(?:\.\w+)?\.weight$")),
    ("B", re.compile(r"\.(?:lora_B|lora_up|lora\.up)(?:\.\w+)?\.weight$")),
    ("B bias", re.compile(r"\.(?:lora_B|lora_up)(?:\.\w+)?\.bias$")),
    ("alpha", re.compile(r"\.alpha$")),
    ("weight", re.compile(r"\.diff$")),
    ("bias", re.compile(r"\.diff_b$")),
)
REFUSED = (
    (re.compile(r"dora_scale$|lora_magnitude_vector"), "DoRA"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.lora_mid\."), "LoCon with a middle tensor"),
    (re.compile(r"\.oft_|\.oft_blocks|\.boft_"), "OFT"),
    (re.compile(r"\.vera_lambda"), "VeRA"),
    (re.compile(r"\.ia3_l"), "IA3"),
    (re.compile(r"\.(?:a1|a2|b1|b2)\.weight$"), "GLoRA"),
    (re.compile(r"\.set_weight$|\.reshape_weight$"), "whole weights (set_weight, reshape_weight)"),
)
MODULATION = re.compile(r"\.diff_m$")  # a block's own parameter, which no layer holds
# Ways to begin that change the model's own weights: such an adapter is right on the changed weights alone
MOVED = ("pissa", "olora", "corda", "loftq")


@dataclass(frozen=True)
class Lora:
    """What --lora names. alpha: said by the user, or by the recipe of its own; it overrules what the file says."""

    path: Path
    strength: float = 1.0
    alpha: float | None = None
    whence: str = "--lora-alpha"  # of alpha, in words


@dataclass
class Change:
    """What a file holds for one layer, by role."""

    parts: dict[str, Tensor] = field(default_factory=dict)
    theirs: tuple[str, ...] = ()  # the layer's names, for the patterns of an adapter_config


@dataclass(frozen=True)
class Adapter:
    """What an adapter_config says of scales."""

    where: str
    rank: int | None
    alpha: float | None
    alphas: dict[str, float]
    ranks: dict[str, float]
    root: bool  # rslora: alpha/√rank


def parse_lora(text: str, alpha: float | None = None) -> Lora:
    """'FILE' or 'FILE:0.8'. Raises UserError for a strength that is no number."""
    if alpha == 0:
        raise UserError("--lora-alpha 0: would merge nothing; expected another number")
    head, colon, tail = text.rpartition(":")
    if not colon or not head or Path(text).exists():
        return Lora(Path(text), alpha=alpha)
    try:
        strength = float(tail)
    except ValueError:
        if not Path(head).exists():  # a colon of the path's own
            return Lora(Path(text), alpha=alpha)
        strength = math.nan
    if not math.isfinite(strength):
        raise UserError(f"--lora {text}: strength {tail!r}; expected FILE or FILE:NUMBER, for example {head}:0.8")
    return Lora(Path(head), strength, alpha)


def merge_loras(state: State, loras: tuple[Lora, ...], report: Report = QUIET) -> State:
    """The transformer's weights (public names) with every LoRA merged in, when they are asked for; what is changed becomes
    float32, and raises UserError then where it is not finite.

    Raises UserError for a file that is no LoRA of this model, or of a kind that is not merged.
    """
    for lora in loras:
        found = tensors(lora.path, report=report)
        state = merge_lora(state, found, lora, adapter_of(lora.path), report)
    return state


def merge_lora(state: State, found: State, lora: Lora, adapter: Adapter | None = None, report: Report = QUIET) -> State:
    """As `merge_loras`, of one file whose tensors are `found` under the names that they have there."""
    changes = _changes(found, state, lora.path)
    adds: dict[str, list[Callable[[], Tensor]]] = {}
    problems, alphas = [], set()
    for layer, change in changes.items():
        if problem := _problem(layer, change, state):
            problems.append(problem)
            continue
        scale, whence = _scale(change, lora, adapter)
        alphas.add(whence)
        for name, delta in _deltas(layer, change, scale, state):
            adds.setdefault(name, []).append(delta)
    if problems or not changes:
        raise UserError(f"{lora.path}: no LoRA of this model: {listed(problems) or 'holds no lora_A, lora_B pairs'}")
    told = " and ".join(sorted(alphas - {""})) or "full deltas"
    report.line(f"{lora.path}: {len(changes)} layers merged, strength {lora.strength:g}, {told}")
    return changed(state, {name: partial(_added, name, deltas, lora) for name, deltas in adds.items()})


def _added(name: str, deltas: list[Callable[[], Tensor]], lora: Lora, value: Tensor) -> Tensor:
    for delta in deltas:
        value = value.float() + lora.strength * delta().reshape(value.shape)
    if not torch.isfinite(value).all():
        raise UserError(f"{lora.path}: no LoRA of this model: {listed([f'{name}: not finite'])}")
    return value


def _changes(found: State, state: State, file: Path) -> dict[str, Change]:
    """Public layer name -> what the file holds for it. Raises UserError for what is neither."""
    for pattern, kind in REFUSED:
        if names := [n for n in found if pattern.search(n)]:
            raise UserError(f"{file}: {kind}, which is not merged ({listed(names[:1])}); expected LoRA")
    flat = flattened_layers(state) if any(n.startswith(FLAT) for n in found) else {}
    changes: dict[str, Change] = {}
    strange = []
    for name, value in found.items():
        name = MODULATION.sub(".modulation.diff", name)
        role, layer = next(((r, name[: m.start()]) for r, p in ROLES if (m := p.search(name))), ("", name))
        if not role:
            strange.append(f"unexpected {name}")
            continue
        theirs, layer = _layer(layer, flat)
        change = changes.setdefault(layer, Change(theirs=theirs))
        if role in change.parts:
            strange.append(f"{layer} twice")
        change.parts[role] = value
    if strange:
        raise UserError(f"{file}: no LoRA of this model: {listed(strange)}")
    return changes


def _layer(name: str, flat: dict[str, str]) -> tuple[tuple[str, ...], str]:
    """A layer as the file calls it -> its names for patterns, and its public name. PEFT matches all that stands behind its
    own prefix; where that is not there, what was matched is the name with other prefixes or without."""
    for prefix in FLAT:
        if name.startswith(prefix):
            short = name.removeprefix(prefix).lstrip("_")  # VideoX-Fun writes two underscores
            return (short,), flat.get(short, short)
    whole, own = name.removeprefix(PEFT), name.startswith(PEFT)
    while any(name.startswith(p) for p in PREFIXES):
        name = name.removeprefix(next(p for p in PREFIXES if name.startswith(p)))
    return (whole,) if own else (name, whole), public_name(f"{name}.weight").removesuffix(".weight")


def _targets(layer: str, state: State) -> tuple[str, str]:
    """The names of a layer's weight and bias. A parameter without a layer (modulation) is its own weight."""
    bare = public_name(layer)
    return (bare if bare in state else f"{layer}.weight"), f"{layer}.bias"


def _problem(layer: str, change: Change, state: State) -> str:
    """Why a change can't be merged; empty if it can."""
    parts = change.parts
    weight, bias = _targets(layer, state)
    pair, shape = {"A", "B"} & set(parts), list(shape_of(state, weight)) if weight in state else []
    if len(pair) == 1:
        return f"{layer}: only one half of the pair"
    if set(parts) == {"alpha"} or ("B bias" in parts and not pair):
        return f"{layer}: {' and '.join(parts)} without a pair"
    if (pair or "weight" in parts) and weight not in state:
        return f"{weight}: not in the model"
    if ("bias" in parts or "B bias" in parts) and bias not in state:
        return f"{bias}: not in the model"
    if pair:
        a, b = parts["A"], parts["B"]
        whole = (
            a.ndim > 1
            and b.ndim > 1
            and len(a) > 0
            and len(b) == shape[0]
            and a[0].numel() * len(b) == math.prod(shape)
        )
        if not whole or b[0].numel() != len(a) or len(a) == 0:
            return f"{weight}: {list(b.shape)}·{list(a.shape)} for {shape}"
    for role, name in (("weight", weight), ("bias", bias), ("B bias", bias)):
        if role in parts and parts[role].numel() != shape_of(state, name).numel():
            return f"{name}: {list(parts[role].shape)} for {list(shape_of(state, name))}"
    if "alpha" in parts and parts["alpha"].numel() != 1:
        return f"{layer}.alpha: {list(parts['alpha'].shape)}, expected one number"
    return ""


def _deltas(layer: str, change: Change, scale: float, state: State) -> list[tuple[str, Callable[[], Tensor]]]:
    """What is added to which tensor at strength 1, in float32, when it is asked for."""
    parts, (weight, bias) = change.parts, _targets(layer, state)
    out: list[tuple[str, Callable[[], Tensor]]] = []
    if "A" in parts:
        out.append((weight, lambda: scale * (parts["B"].float().flatten(1) @ parts["A"].float().flatten(1))))
    if "B bias" in parts:
        out.append((bias, lambda: scale * parts["B bias"].float()))
    out += [(name, parts[role].float) for role, name in (("weight", weight), ("bias", bias)) if role in parts]
    return out


def _scale(change: Change, lora: Lora, adapter: Adapter | None) -> tuple[float, str]:
    """The scale of a pair, and in words where it comes from; 1 and nothing where there is no pair."""
    if "A" not in change.parts:
        return 1.0, ""
    rank = len(change.parts["A"])
    if lora.alpha is not None:
        return _by_rank(lora.alpha, rank, f"alpha {lora.alpha:g} of {lora.whence}", change, adapter)
    if "alpha" in change.parts:
        return float(change.parts["alpha"]) / rank, "alpha of the file's own tensors"
    if adapter is None or adapter.alpha is None:
        return 1.0, "no alpha in file or adapter_config.json: taken as the rank (--lora-alpha if it is another)"
    said = _matching(adapter.ranks, change.theirs, adapter.rank)
    if said is not None and said != rank:
        raise UserError(f"{adapter.where}: rank {said:g} for {change.theirs[-1]}, but its tensors have {rank}")
    alpha = _matching(adapter.alphas, change.theirs, adapter.alpha)
    words = f"alpha {adapter.alpha:g}{' with alpha_pattern' if adapter.alphas else ''} of {adapter.where}"
    return _by_rank(alpha, rank, words, change, adapter)


def _by_rank(alpha: float, rank: int, words: str, change: Change, adapter: Adapter | None) -> tuple[float, str]:
    """An alpha says nothing of how the rank counts, whoever names it: that is the adapter's. A file with alphas of its own
    is of another kind."""
    if adapter is not None and adapter.root and "alpha" not in change.parts:
        return alpha / math.sqrt(rank), f"{words}, rslora"
    return alpha / rank, words


def _matching(patterns: dict[str, float], names: tuple[str, ...], default: Any) -> Any:
    """The first pattern that a layer's name ends with, as PEFT reads them (regular expressions); of its first name that
    matches any."""
    return next((v for name in names for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), default)


def adapter_of(path: Path) -> Adapter | None:
    """The adapter_config beside a LoRA or in its metadata; None if it has none. Raises UserError for one that can't be
    read, contradicts itself, or says that the adapter is no plain LoRA."""
    held = files_of(path)[0]  # of a folder, what `tensors` reads there
    file = held.parent / CONFIG
    where, said = str(file), None
    if held.suffix == ".safetensors":
        where, said = f"{held}'s metadata", _metadata(held)
    if said is None and file.is_file():
        where, said = str(file), json_object(file)
    if said is None:
        return None
    _check_kind(said, where)
    rank = _number(said, "r", where)
    if rank is not None and rank != int(rank):
        raise UserError(f"{where}: r {rank:g}; expected a whole number")
    if not isinstance(said.get("use_rslora", False), bool):
        raise UserError(f"{where}: use_rslora {said['use_rslora']!r}; expected true or false")
    return Adapter(
        where=CONFIG if where == str(file) else "the file's metadata",
        rank=None if rank is None else int(rank),
        alpha=_number(said, "lora_alpha", where),
        alphas=_pattern(said, "alpha_pattern", where),
        ranks=_pattern(said, "rank_pattern", where),
        root=said.get("use_rslora") is True,
    )


def _metadata(file: Path) -> dict[str, Any] | None:
    """diffusers' copy of the adapter_config, its fields without the component's name."""
    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(METADATA)
        said = json.loads(text) if text else None
    except (OSError, SafetensorError):
        return None  # reading the tensors says what is wrong
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {METADATA} is not valid JSON ({error})") from None
    if not isinstance(said, dict):
        return None
    return {k.removeprefix("transformer."): v for k, v in said.items()}


def _check_kind(said: dict[str, Any], where: str) -> None:
    kind = said.get("peft_type", "LORA")
    if kind != "LORA":
        raise UserError(f"{where}: peft_type {kind!r}, which is not merged; expected LORA")
    if said.get("use_dora"):
        raise UserError(f"{where}: use_dora: DoRA, which is not merged; expected LoRA")
    for name in ("fan_in_fan_out", "use_qalora", "alora_invocation_tokens", "layer_replication"):
        if said.get(name):
            raise UserError(f"{where}: {name}, which is not merged; expected plain LoRA")
    start = str(said.get("init_lora_weights", ""))
    if start.lower().startswith(MOVED):
        raise UserError(f"{where}: init_lora_weights {start}: made for changed weights; expected it converted to LoRA")


def _number(said: dict[str, Any], name: str, where: str) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain or not -1e9 <= value <= 1e9:
        raise UserError(f"{where}: {name} {value!r}; expected a number")
    return float(value)


def _pattern(said: dict[str, Any], name: str, where: str) -> dict[str, float]:
    value = said.get(name) or {}
    if not isinstance(value, dict):
        raise UserError(f"{where}: {name} {value!r}; expected an object of numbers")
    for key in value:
        if _number(value, key, f"{where}: {name}") is None:
            raise UserError(f"{where}: {name}: {key} null; expected a number")
        try:
            re.compile(key)
        except re.error as error:
            raise UserError(f"{where}: {name}: {key!r} is no regular expression ({error})") from None
    return {k: float(v) for k, v in value.items()}
