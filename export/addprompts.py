"""`everframe prompts add`: more prompts for a bundle that exists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from ..engines.bundle import MANIFEST, Bundle, describe, write_manifest
from ..engines.errors import UserError
from ..engines.files import check_replaceable
from ..engines.text import key, tidy
from .anew import anew
from .texts import TextEncoder, check_distinct, encode_all, open_encoder, read_prompts

# Of an embedding's size, that the same encoder in another precision may be off; another one is off by its size.
SAME = 0.1


def add(path: Path, prompts: Sequence[str], file: Path | None, text_encoder: str) -> int:
    """Encode prompts and add those to the bank that are not in it; returns how many. The bundle is replaced as a whole,
    its large files as hard links, so that it is never half-written.

    Raises UserError for a bad bundle or prompt file, no prompts, or an encoder that is not this model's.
    """
    bundle = Bundle.open(path)
    shots = bundle.manifest.shots
    wanted = [tidy(p) for p in prompts] + (read_prompts(file) if file else [])
    if shots is not None:
        wanted = [shots.without(prompt) for prompt in wanted]
    if not wanted or not all(wanted):
        raise UserError("prompts add: give one or more prompts, or --prompts FILE")
    check_distinct(list({key(p): p for p in wanted}.values()), "prompts add")
    known = {key(p) for p in bundle.manifest.prompts}
    new = list({key(p): p for p in wanted if key(p) not in known}.values())
    check_replaceable(path, MANIFEST)
    encoder, network, ref = open_encoder(text_encoder), bundle.manifest.network, bundle.manifest.prompt_bank
    bank = load_file(path / ref.file)
    if (made_by := bundle.manifest.provenance.get("text_encoder")) is not None:
        check_encoder(encoder, text_encoder, made_by, bundle, bank)
    told = new if shots is None else [*new, *(shots.prefix + p for p in new)]
    embeddings = encode_all(encoder, told, network.text_len)
    for embedding in embeddings.values():
        if embedding.shape[1] != network.text_dim:
            raise UserError(
                f"--text-encoder {text_encoder}: makes {embedding.shape[1]} channels, {path} wants {network.text_dim}"
            )
    bank |= {p: e.half().contiguous() for p, e in embeddings.items()}
    with anew(bundle, [ref.file]) as part:
        (part / ref.file).write_bytes(save(bank))
        manifest = bundle.manifest.model_copy(
            update={"prompt_bank": describe(part / ref.file), "prompts": [*bundle.manifest.prompts, *new]}
        )
        write_manifest(part, manifest)
    return len(new)


def check_encoder(encoder: TextEncoder, told: str, made_by: str, bundle: Bundle, bank: dict[str, Tensor]) -> None:
    """Whether the encoder is the one that made the bank, wherever it lies now and in whichever precision: by what it makes
    of the bank's first prompt. Raises UserError."""
    prompt = bundle.manifest.prompts[0]
    there = bank[prompt].float()
    here = encode_all(encoder, [prompt], bundle.manifest.network.text_len)[prompt]
    if here.shape != there.shape or not (here - there).norm() <= SAME * there.norm():
        raise UserError(
            f"--text-encoder {told}: encodes {prompt!r} otherwise than {made_by} did, which made the bank of {bundle.path}"
        )
