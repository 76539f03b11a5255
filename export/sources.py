"""Weights from anywhere, under the public names: the many layouts in which one and the same model is published.

Read are `.pt`/`.pth` files (only tensors: nothing in them is executed), safetensors files, folders of sharded
safetensors, folders in the layout of diffusers and whole repositories of either. All are memory-mapped: a tensor costs
memory when it is used.
"""

from __future__ import annotations

import itertools
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
from ..engines.progress import QUIET, Report
from ..engines.text import first_line
from .lazy import entries_of, release, shape_of
from .names import Part, State, clean, listed, part_of
from .scaled import FORMAT, check_formats, descale, header_formats
from .wan import WanConfig

HEAD_DIM = 128  # of every Wan model; a config.json overrules it
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
# Averaged weights by their plain names, then of generators, then of super-resolution networks.
DICTIONARIES = (
    *("generator_ema", "model_ema", "ema", "ema_state_dict"),
    *("generator", "generator_lora", "state_dict", "model", "params_ema", "params"),
)
RELEASES = {
    "vae": ("Wan2.1_VAE.pth", "Wan2.2_VAE.pth"),
    "text_encoder": ("models_t5_umt5-xxl-enc-bf16.pth",),
}  # in the folder of a Wan release, which holds one of them


FLAT = "flat"  # in the place of a name: the tensors themselves
# Of a .pt: a name, several of which the first that is there is taken, or None for what is known.
Dictionary = str | tuple[str, ...] | None


@dataclass(frozen=True)
class Source:
    """What a path held."""

    state: State
    config: dict[str, Any]  # of a config.json beside the weights; empty if there is none


def read(
    path: Path,
    dictionary: Dictionary = None,
    part: Part = "transformer",
    report: Report = QUIET,
    dtype: torch.dtype = torch.float32,
) -> Source:
    """All tensors of one part of a model at path, wrappers' prefixes taken off, eight bits turned into dtype.

    `dictionary` picks one of several in a .pt file. Raises UserError naming the file and what was found.
    """
    path = place_of(path, part)
    flag = "--dictionary" if part == "transformer" else ""
    state = clean(part_of(tensors(path, dictionary, report, flag), part), path)
    _check_header(path, part, state)
    return Source(
        descale(state, path, report, dtype), _config((path if path.is_dir() else path.parent) / "config.json")
    )


def _check_header(path: Path, part: Part, state: State) -> None:
    """What the files' headers say of the layers that are read: of a whole pipeline, those of one part. Raises UserError."""
    for file in files_of(path):
        said = clean(part_of(header_formats(file), part), file)
        check_formats({n: v for n, v in said.items() if f"{n.removesuffix(FORMAT)}.weight" in state}, file)


def place_of(path: Path, part: Part) -> Path:
    """Where in the folder of a whole repository (a Wan release or diffusers') a part's weights are; else path itself."""
    if path.is_dir():
        for release in RELEASES.get(part, ()):
            if (path / release).is_file():
                return path / release
        if (path / part).is_dir() and ((path / "model_index.json").is_file() or not any(path.glob("*.safetensors"))):
            return path / part
    return path


def tensors(path: Path, dictionary: Dictionary = None, report: Report = QUIET, flag: str = "") -> State:
    """All tensors of a file or folder under the names that they have there. `report` is told which of several dictionaries
    is taken, and the option that picks another, where this file has one. Raises UserError."""
    if path.is_dir():
        path = _file_in(path)
    elif not path.exists() and path.suffix in (*PICKLES, ".safetensors"):
        raise UserError(f"{path}: cannot read: no such file")
    elif not path.exists():
        raise UserError(f"{path}: no such file or folder")
    check_kind(path)
    if path.suffix in PICKLES:
        return _read_pickle(path, dictionary, report, flag)
    if dictionary and (isinstance(dictionary, str) or FLAT not in dictionary):
        raise UserError(f"{path}: holds no dictionaries, expected a .pt file for --dictionary {dictionary}")
    return _read_index(path) if path.suffix == ".json" else _read_safetensors(path)


def files_of(path: Path) -> list[Path]:
    """The files that `tensors` reads: one, or an index and all that it names."""
    path = _file_in(path) if path.is_dir() else path
    shards = sorted(set(weight_map(path).values())) if path.suffix == ".json" else []
    return [path, *(path.parent / name for name in shards)]


def _file_in(folder: Path) -> Path:
    """The folder's one file of weights, or the index of several."""
    names = [f for f in sorted(folder.iterdir()) if f.is_file()]
    indices = [f for f in names if f.name.endswith(".safetensors.index.json")]
    files = [f for f in names if f.suffix == ".safetensors"]
    if not indices and not files:
        files = [f for f in names if f.suffix in PICKLES]
    found = indices or files
    if not found:
        raise UserError(f"{folder}: holds no .safetensors file")
    if len(found) > 1:
        what = "indices of safetensors files" if indices else f"{found[0].suffix} files and no index"
        raise UserError(f"{folder}: holds {len(found)} {what}; name one of them: {listed(f.name for f in found)}")
    return found[0]


def check_kind(file: Path) -> None:
    """Raises UserError for what is no weights of a kind that is read, whatever its name says."""
    try:
        with open(file, "rb") as f:
            start = f.read(64)
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    if start.startswith(b"GGUF") or file.suffix == ".gguf":
        raise UserError(f"{file}: GGUF, which is not read; expected safetensors or .pth in fp16, bf16, float32 or fp8")
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{file}: a Git LFS pointer in place of the file: git lfs pull")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise UserError(f"{file}: a web page in place of the file; download it again")
    if file.suffix not in (*PICKLES, ".safetensors") and not file.name.endswith(".safetensors.index.json"):
        raise UserError(f"{file}: expected a .pt, .pth or .safetensors file or a folder of safetensors files")


def _read_safetensors(file: Path) -> State:
    try:
        return load_file(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file: {error}") from None


def _read_index(index: Path) -> State:
    """The files that an index names, each tensor from the file that it is said to be in: another may hold an older one of
    the same name. They must hold every name of the index, and no other."""
    places = weight_map(index)
    state: dict[str, Tensor] = {}
    extra: list[str] = []
    for name in sorted(set(places.values())):
        check_kind(index.parent / name)
        held = _read_safetensors(index.parent / name)
        state |= {tensor: value for tensor, value in held.items() if places.get(tensor) == name}
        extra += [f"{tensor} in {name}" for tensor in held if tensor not in places]
    if absent := sorted(set(places) - set(state)):
        raise UserError(f"{index}: names tensors that its files do not hold: {listed(absent)}")
    if extra:
        raise UserError(f"{index}: its files hold tensors that it does not name: {listed(extra)}")
    return state


def weight_map(index: Path) -> dict[str, str]:
    """Which tensor is in which file beside an index. Raises UserError."""
    places = json_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: not an index of safetensors files (no weight_map)")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index}: {name!r} is not a plain file name")
    return places


def json_object(file: Path) -> dict[str, Any]:
    """What a JSON file of somebody else's holds, which is to be an object. Raises UserError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:  # no text, no JSON, or brackets without end
        raise UserError(f"{file}: not valid JSON ({first_line(error)})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected an object, found {type(content).__name__}")
    return content


def _read_pickle(file: Path, dictionary: Dictionary, report: Report, flag: str) -> State:
    """weights_only: a file that holds anything but tensors and plain containers is refused, not run."""
    try:
        with open(file, "rb") as f:
            archive = f.read(2) == b"PK"  # files older than PyTorch 1.6 are none, and cannot be mapped
        whole = not archive or zipfile.is_zipfile(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    if not whole:
        raise UserError(f"{file}: not a whole PyTorch file: its end is missing")
    try:
        content = torch.load(file, weights_only=True, mmap=archive, map_location="cpu")
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{file}: holds more than tensors, which is not loaded: {first_line(error)}") from None
    except Exception as error:  # a damaged pickle is a program with other orders: it may fail in any way
        raise UserError(f"{file}: not a whole PyTorch file: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, expected a dictionary of tensors")
    return _chosen(content, file, dictionary, report, flag)


def _chosen(content: dict[Any, Any], file: Path, dictionary: Dictionary, report: Report, flag: str) -> State:
    """The dictionary that is asked for, else the tensors themselves, else the first that is known by name."""
    choices = {k: v for k, v in content.items() if isinstance(v, dict) and _is_state(v)}
    wanted = (dictionary,) if isinstance(dictionary, str) else dictionary or (FLAT, *DICTIONARIES)
    if FLAT in wanted and _is_state(content):
        return content
    wanted = tuple(name for name in wanted if name != FLAT)
    taken = next((name for name in wanted if name in choices), None)
    if taken is None:
        found = listed(content) or "nothing"
        raise UserError(f"{file}: found {found}; expected tensors or one of {', '.join(wanted)}")
    if dictionary is None and len(choices) > 1:
        held, rest = (" and ".join(choices), "the other") if len(choices) == 2 else (listed(choices), "another")
        report.line(f"{file}: holds {held}: {taken} is taken" + (f"; {flag} picks {rest}" if flag else ""))
    return choices[taken]


def _is_state(content: dict[Any, Any]) -> bool:
    return bool(content) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _config(file: Path) -> dict[str, Any]:
    """A config.json of Wan's or of diffusers' models; that of another model in the same folder tells nothing here."""
    if not file.is_file():
        return {}
    content = json_object(file)
    of_wan = "architectures" not in content and "Wan" in str(content.get("_class_name", "Wan"))
    return content if of_wan else {}


def wan_config(state: State, given: dict[str, Any], file: Path) -> WanConfig:
    """The transformer's numbers, from its tensors' shapes and, where shapes do not tell, from config.json (in the naming
    of Wan or of diffusers). Raises UserError when a tensor that tells is missing or they contradict each other, and for a
    config.json of a checkpoint of our own, which tells what shapes do not in other places."""
    if isinstance(given.get("transformer"), dict) and "autoencoder" in given:
        folder = file if file.is_dir() else file.parent
        raise UserError(f"{file}: is of a checkpoint of Everframe's own: everframe export {folder}")
    try:
        dim, channels = shape_of(state, "patch_embedding.weight")[:2]
        ffn, text = shape_of(state, "blocks.0.ffn.0.weight")[0], shape_of(state, "text_embedding.0.weight")[1]
        freq = shape_of(state, "time_embedding.0.weight")[1]
    except KeyError as error:
        found = listed(sorted(state))
        raise UserError(f"{file}: not a Wan transformer: missing {error.args[0]} (found {found})") from None
    except (ValueError, IndexError):
        raise UserError(f"{file}: not a Wan transformer: its embeddings have other numbers of axes") from None
    layers = 1 + max(int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name)))
    heads = given.get("num_heads", given.get("num_attention_heads", dim // HEAD_DIM))
    stated = {"dim": dim, "ffn_dim": ffn, "num_layers": layers, "text_dim": text, "freq_dim": freq}
    wrong = [f"{k} {given[k]} but {v} in the weights" for k, v in stated.items() if given.get(k, v) != v]
    if wrong:
        raise UserError(f"{file}: its config.json says {'; '.join(wrong)}")
    try:
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
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


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
    keep: Callable[[str, Tensor], Tensor] = lambda name, weight: weight,
) -> None:
    """Put the weights into a model made on the meta device, one tensor at a time, each converted and cast to its dtype, and
    put where `keep` puts it.

    Raises UserError as `check_fits`, or naming tensors that are not finite.
    """
    check_fits(model, state, file)
    entries = entries_of(state)
    cast: dict[str, Tensor] = {}
    bad = []
    for name, value in convert(state).items():
        weight = value.to(dtype(name), copy=True)
        release(entries[name])
        if not torch.isfinite(weight).all():
            bad.append(name)
        cast[name] = keep(name, weight)
    if bad:
        raise UserError(f"{file}: NaN, infinite or too large for {dtype(bad[0])}: {listed(bad)}")
    model.load_state_dict(cast, assign=True)
    model.eval().requires_grad_(False)


def check_fits(model: nn.Module, state: State, file: Path) -> None:
    """By names and shapes: no tensor is made. Raises UserError with missing, unexpected and misshapen keys in one message,
    eight at most."""
    entries, wanted = entries_of(state), {k: v.shape for k, v in model.state_dict().items()}
    missing = [f"missing {k}" for k in wanted if k not in state]
    more = [f"unexpected {k}" for k in state if k not in wanted]
    other = [
        f"{k}: found {list(v.shape)}, expected {list(wanted[k])}"
        for k, v in entries.items()
        if k in wanted and v.shape != wanted[k]
    ]
    if missing or more or other:  # in turn, so that a line that is cut tells of each kind
        problems = [p for three in itertools.zip_longest(missing, more, other) for p in three if p]
        raise UserError(f"{file}: does not fit its model: {listed(problems)}")
    if whole := [k for k, v in entries.items() if isinstance(v, Tensor) and not v.is_floating_point()]:
        raise UserError(f"{file}: whole numbers where weights should be: {listed(whole)}")
