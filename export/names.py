"""Names of tensors: the many under which one and the same model is published -> the public ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from ..engines.errors import UserError
from ..engines.text import few
from .lazy import renamed

State = Mapping[str, Tensor]
Part = Literal["transformer", "vae", "text_encoder"]
WRAPPERS = (
    *("module.", "model.", "_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module."),
    *("diffusion_model.", "transformer."),
)
INSIDE = re.compile("|".join(re.escape(w) for w in WRAPPERS[2:5]))
# In a file that holds a whole pipeline, what stands before the names of each part
PARTS: dict[Part, tuple[str, ...]] = {
    "transformer": ("model.diffusion_model.",),
    "vae": ("first_stage_model.", "vae."),
    # The last one is of what ComfyUI puts beside the encoder: its tokenizer
    "text_encoder": ("text_encoders.umt5xxl.transformer.", "text_encoders.umt5xxl.", "text_encoders."),
}
LONGEST = 120  # characters of a name in a message

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
DIFFUSERS_LAYERS = (
    *(f"attn{i}.{n}" for i in (1, 2) for n in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")),
    *("norm2", "ffn.net.0.proj", "ffn.net.2"),
)
DIFFUSERS_ENDS = (
    *(f"condition_embedder.{n}_embedder.linear_{i}" for n in ("time", "text") for i in (1, 2)),
    *("condition_embedder.time_proj", "proj_out", "patch_embedding"),
)


def clean(state: Mapping[str, Tensor], where: object) -> State:
    """The tensors without the names of what wrapped their model. Raises UserError where two would have one name."""
    out: dict[str, Tensor] = {}
    for name, value in state.items():
        short = name
        while any(short.startswith(w) for w in WRAPPERS):
            short = short.removeprefix(next(w for w in WRAPPERS if short.startswith(w)))
        short = INSIDE.sub("", short)
        if short in out:
            raise UserError(f"{where}: holds {listed([short])} twice, once as {listed([name])}")
        out[short] = value
    return out


def part_of(state: State, part: Part) -> State:
    """Of a file that holds a whole pipeline, the tensors of one part; any other file's as they are."""
    mine = {name.removeprefix(p): v for name, v in state.items() if (p := _prefix(name, PARTS[part]))}
    every = tuple(p for prefixes in PARTS.values() for p in prefixes)
    return mine if mine and all(_prefix(name, every) for name in state) else state


def _prefix(name: str, prefixes: tuple[str, ...]) -> str:
    return next((p for p in prefixes if name.startswith(p)), "")


def public_names(state: State) -> State:
    """The transformer's tensors under their public names, whichever of the two namings they came in."""
    if not any(name.startswith("condition_embedder.") for name in state):
        return state
    return renamed(state, public_name)


def public_name(name: str) -> str:
    """'blocks.0.attn1.to_q.weight' -> 'blocks.0.self_attn.q.weight'; public names stay what they are."""
    return _replaced(name, FROM_DIFFUSERS)


def flattened_layers(state: Iterable[str]) -> dict[str, str]:
    """'blocks_0_attn1_to_q', as trainers write it who cannot have dots in names -> 'blocks.0.self_attn.q'.

    state: public names of the transformer's tensors. Both namings' layers are there.
    """
    modules = {name.rpartition(".")[0] for name in state}
    blocks = sorted({m[0] for name in modules if (m := re.match(r"blocks\.\d+", name))})
    theirs = [f"{block}.{layer}" for block in blocks for layer in DIFFUSERS_LAYERS] + list(DIFFUSERS_ENDS)
    public = {name.replace(".", "_"): public_name(f"{name}.weight").removesuffix(".weight") for name in theirs}
    return public | {name.replace(".", "_"): name for name in modules}


def vae_names(state: State) -> State:
    """The Wan VAE's tensors under their public names, from those or from diffusers'."""
    if not any(name.startswith(("quant_conv.", "post_quant_conv.")) for name in state):
        return state
    staged = any(".upsampler." in name for name in state)
    rules = (*STAGED_FROM_DIFFUSERS, *VAE_FROM_DIFFUSERS) if staged else VAE_FROM_DIFFUSERS
    return {_replaced(name, rules): value for name, value in state.items()}


STAGES = 4  # residual blocks and the up-sampler of a decoder stage
Rule = tuple[str, str | Callable[[re.Match[str]], str]]
VAE_FROM_DIFFUSERS: tuple[Rule, ...] = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.(\d)\.", lambda m: f".middle.{2 * int(m[1])}."),
    (r"\.down_blocks\.", ".downsamples."),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)\.", lambda m: f".upsamples.{STAGES * int(m[1]) + int(m[2])}."),
    (r"\.up_blocks\.(\d)\.upsamplers\.0\.", lambda m: f".upsamples.{STAGES * int(m[1]) + STAGES - 1}."),
    (r"\.norm1\.", ".residual.0."),
    (r"(\.(?:middle|downsamples|upsamples)\.\d+)\.conv1\.", r"\1.residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"(\.(?:middle|downsamples|upsamples)\.\d+)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
# Wan 2.2's stages, before those: residual blocks (two in the encoder, three in the decoder), then what changes the size.
STAGED_FROM_DIFFUSERS: tuple[Rule, ...] = (
    (r"\.down_blocks\.(\d)\.resnets\.(\d)\.", r".downsamples.\1.downsamples.\2."),
    (r"\.down_blocks\.(\d)\.downsampler\.", r".downsamples.\1.downsamples.2."),
    (r"\.up_blocks\.(\d)\.resnets\.(\d)\.", r".upsamples.\1.upsamples.\2."),
    (r"\.up_blocks\.(\d)\.upsampler\.", r".upsamples.\1.upsamples.3."),
)


def _replaced(name: str, rules: Iterable[Rule]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def listed(names: Iterable[Any]) -> str:
    """Names in a message: eight at most, none longer than a line."""
    return few([n if len(n) <= LONGEST else f"{n[: LONGEST // 2]}…{n[-LONGEST // 4 :]}" for n in map(str, names)])
