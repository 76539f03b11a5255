"""Weights from anywhere, under the public names: the many layouts in which one and the same model is published.

Read are `.pt`/`.pth` files (only tensors: nothing in them is executed), safetensors files, folders of sharded
safetensors, and folders in the layout of diffusers. All are memory-mapped: a tensor costs memory when it is used.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..engines.errors import UserError
from ..engines.files import reason
from .wan import WanConfig

State = dict[str, Tensor]
WRAPPERS = ("module.", "model.", "_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
INSIDE = re.compile("|".join(re.escape(w) for w in WRAPPERS[2:]))
HEAD_DIM = 128  # of every Wan model; a config.json overrules it

# diffusers' names of the transformer -> the public ones. Order matters: blocks.N.scale_shift_table before the head's.
FROM_DIFFUSERS = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)


@dataclass(frozen=True)
class Source:
    """What a path held."""

    state: State
    config: dict[str, Any]  # of a config.json beside the weights; empty if there is none


def read(path: Path, dictionary: str | None = None) -> Source:
    """All tensors at path, wrappers' prefixes taken off. `dictionary` picks one of several in a .pt file.

    Raises UserError naming the file and what was found.
    """
    if path.is_dir():
        return Source(_clean(_read_folder(path)), _config(path / "config.json"))
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return Source(_clean(_read_pickle(path, dictionary)), _config(path.parent / "config.json"))
    if path.suffix == ".safetensors":
        return Source(_clean(_read_safetensors(path)), _config(path.parent / "config.json"))
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    raise UserError(f"{path}: expected a .pt, .pth or .safetensors file or a folder of safetensors files")


def _read_safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None


def _read_folder(folder: Path) -> State:
    """One or more safetensors files; an index, where there is one, must name exactly what is there."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise UserError(f"{folder}: holds no .safetensors file")
        if len(files) > 1:
            raise UserError(f"{folder}: holds {len(files)} .safetensors files and no index; name one of them")
        return _read_safetensors(files[0])
    try:
        places: dict[str, str] = json.loads(indices[0].read_text())["weight_map"]
        names = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{indices[0]}: not an index of safetensors files ({error})") from None
    state: State = {}
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{indices[0]}: {name!r} is not a plain file name")
        state |= _read_safetensors(folder / name)
    absent = sorted(set(places) - set(state))
    if absent:
        raise UserError(f"{indices[0]}: names tensors that its files do not hold: {_some(absent)}")
    return state


def _read_pickle(file: Path, dictionary: str | None) -> State:
    """weights_only: a file that holds anything but tensors and plain containers is refused, not run."""
    try:
        with open(file, "rb") as f:
            archive = f.read(2) == b"PK"  # files older than PyTorch 1.6 are none, and cannot be mapped
        if archive and not zipfile.is_zipfile(file):
            raise UserError(f"{file}: not a whole PyTorch file: its end is missing")
        content = torch.load(file, weights_only=True, mmap=archive, map_location="cpu")
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: holds more than tensors, which is not loaded: {_first_line(error)}") from None
    except (RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{file}: not a whole PyTorch file: {_first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected a dictionary of tensors")
    if _is_state(content):
        return content
    choices = {k: v for k, v in content.items() if isinstance(v, dict) and _is_state(v)}
    wanted = [dictionary] if dictionary else ["generator_ema", "generator", "generator_lora", "state_dict", "model"]
    for name in wanted:
        if name in choices:
            return choices[name]
    found = ", ".join(map(str, content)) or "nothing"
    raise UserError(f"{file}: found {found}; expected tensors or one of {', '.join(wanted)}")


def _is_state(content: dict[Any, Any]) -> bool:
    return bool(content) and all(isinstance(v, Tensor) for v in content.values())


def _config(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not valid JSON ({error})") from None
    return content if isinstance(content, dict) else {}


def _clean(state: State) -> State:
    out: State = {}
    for name, value in state.items():
        short = name
        while any(short.startswith(w) for w in WRAPPERS):
            short = short.removeprefix(next(w for w in WRAPPERS if short.startswith(w)))
        out[INSIDE.sub("", short)] = value
    return out


def public_names(state: State) -> State:
    """The transformer's tensors under their public names, whichever of the two namings they came in."""
    if not any(name.startswith("condition_embedder.") for name in state):
        return state
    out: State = {}
    for name, value in state.items():
        for pattern, replacement in FROM_DIFFUSERS:
            name = re.sub(pattern, replacement, name)
        out[name] = value
    return out


def wan_config(state: State, given: dict[str, Any], file: Path) -> WanConfig:
    """The transformer's numbers, from its tensors' shapes and, where shapes do not tell, from config.json (in the naming
    of Wan or of diffusers). Raises UserError when a tensor that tells is missing or they contradict each other."""
    try:
        dim, channels = state["patch_embedding.weight"].shape[:2]
        ffn, text = state["blocks.0.ffn.0.weight"].shape[0], state["text_embedding.0.weight"].shape[1]
        freq = state["time_embedding.0.weight"].shape[1]
    except KeyError as error:
        raise UserError(
            f"{file}: not a Wan transformer: missing {error.args[0]} (found {_some(sorted(state))})"
        ) from None
    layers = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    heads = given.get("num_heads", given.get("num_attention_heads", dim // HEAD_DIM))
    if not isinstance(heads, int) or heads < 1 or dim % heads or dim // heads % 2:
        raise UserError(f"{file}: {heads} heads for dim {dim}; expected a number that divides it into even parts")
    stated = {"dim": dim, "ffn_dim": ffn, "num_layers": layers, "text_dim": text, "freq_dim": freq}
    wrong = [f"{k} {given[k]} but {v} in the weights" for k, v in stated.items() if given.get(k, v) != v]
    if wrong:
        raise UserError(f"{file}: its config.json says {'; '.join(wrong)}")
    return WanConfig(
        dim=dim,
        ffn_dim=ffn,
        heads=heads,
        layers=layers,
        latent_channels=channels,
        text_dim=text,
        text_len=given.get("text_len", 512),
        freq_dim=freq,
        eps=given.get("eps", 1e-6),
    )


def merge_lora(state: State, lora: State, alpha: float | None, file: Path) -> State:
    """W + (alpha/rank)·B·A for every pair in a PEFT LoRA file; alpha defaults to the rank (LongLive: both 256).

    Raises UserError for a pair that is not whole or has no weight to go to.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, value in lora.items():
        match = re.fullmatch(r"(?:base_model\.)?(?:model\.)*(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
        if match:
            pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = value
        else:
            strange.append(f"unexpected {name}")
    problems = strange
    merged = dict(state)
    for name, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            problems.append(f"{name}: only one half of the pair")
        elif name not in state:
            problems.append(f"{name}: not in the model")
        elif (len(pair["B"]), pair["A"].shape[1]) != tuple(state[name].shape) or pair["B"].shape[1] != len(pair["A"]):
            problems.append(f"{name}: {list(pair['B'].shape)}·{list(pair['A'].shape)} for {list(state[name].shape)}")
        else:
            scale = (len(pair["A"]) if alpha is None else alpha) / len(pair["A"])
            change = scale * (pair["B"].float() @ pair["A"].float())
            merged[name] = (state[name].float() + change).to(state[name].dtype)
    if problems or not pairs:
        raise UserError(f"{file}: no LoRA of this model: {_some(problems) or 'holds no lora_A, lora_B pairs'}")
    return merged


def single(name: str) -> torch.dtype:
    return torch.float32


def half(name: str) -> torch.dtype:
    """FP16 but where its range or precision would hurt: norms, modulation, and the time embedding that is baked."""
    return (
        torch.float32 if re.search(r"norm|gamma|modulation|^time_|residual\.[03]\.|head\.0\.", name) else torch.float16
    )


def fit(
    model: nn.Module,
    state: State,
    file: Path,
    dtype: Callable[[str], torch.dtype] = single,
    convert: Callable[[State], State] = lambda state: state,
) -> None:
    """Put the weights into a model made on the meta device, one tensor at a time, each converted and cast to its dtype.

    Raises UserError with every missing, unexpected and misshapen key in one message, or naming tensors that are not
    finite.
    """
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    problems = [f"missing {k}" for k in wanted if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in wanted]
    problems += [
        f"{k}: found {list(v.shape)}, expected {list(wanted[k])}"
        for k, v in state.items()
        if k in wanted and v.shape != wanted[k]
    ]
    if problems:
        raise UserError(f"{file}: does not fit its model: {'; '.join(problems)}")
    cast: State = {}
    bad = []
    for name, value in convert(state).items():
        cast[name] = value.to(dtype(name), copy=True)
        if not torch.isfinite(cast[name]).all():
            bad.append(name)
    if bad:
        raise UserError(f"{file}: NaN, infinite or too large for {dtype(bad[0])}: {_some(bad)}")
    model.load_state_dict(cast, assign=True)
    model.eval().requires_grad_(False)


def vae_names(state: State) -> State:
    """The Wan VAE's tensors under their public names, from those or from diffusers'."""
    if not any(name.startswith(("quant_conv.", "post_quant_conv.")) for name in state):
        return state
    return {_vae_name(name): value for name, value in state.items()}


def _vae_name(name: str) -> str:
    stages = 4  # residual blocks and the up-sampler of a decoder stage
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"\.conv_in\.", ".conv1."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.conv_out\.", ".head.2."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".middle.{2 * int(m[1])}."),
        (r"\.down_blocks\.", ".downsamples."),
        (r"\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f".upsamples.{stages * int(m[1]) + int(m[2])}."),
        (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".upsamples.{stages * int(m[1]) + stages - 1}."),
        (r"\.norm1\.", ".residual.0."),
        (r"(\.(?:middle|downsamples|upsamples)\.\d+)\.conv1\.", r"\1.residual.2."),
        (r"\.norm2\.", ".residual.3."),
        (r"(\.(?:middle|downsamples|upsamples)\.\d+)\.conv2\.", r"\1.residual.6."),
        (r"\.conv_shortcut\.", ".shortcut."),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
