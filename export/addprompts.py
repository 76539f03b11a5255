"""`everframe prompts add`: more prompts for a bundle that exists."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save

from ..engines.bundle import MANIFEST, Bundle, describe, write_manifest
from ..engines.errors import UserError
from ..engines.files import check_replaceable, link_or_copy, new_folder
from ..engines.text import key
from .texts import check_distinct, clean, encode_all, open_encoder, read_prompts


def add(path: Path, prompts: Sequence[str], file: Path | None, text_encoder: str) -> int:
    """Encode prompts and add those to the bank that are not in it; returns how many. The bundle is replaced as a whole,
    its large files as hard links, so that it is never half-written.

    Raises UserError for a bad bundle or prompt file, no prompts, or an encoder that is not this model's.
    """
    bundle = Bundle.open(path)
    shots = bundle.manifest.shots
    wanted = [clean(p) for p in prompts] + (read_prompts(file) if file else [])
    if shots is not None:
        wanted = [shots.without(prompt) for prompt in wanted]
    if not wanted or not all(wanted):
        raise UserError("prompts add: give one or more prompts, or --prompts FILE")
    check_distinct(list({key(p): p for p in wanted}.values()), "prompts add")
    known = {key(p) for p in bundle.manifest.prompts}
    new = list({key(p): p for p in wanted if key(p) not in known}.values())
    check_replaceable(path)
    made_by = bundle.manifest.provenance.get("text_encoder")
    encoder = open_encoder(text_encoder)
    if made_by not in (None, encoder.name):
        raise UserError(f"--text-encoder {text_encoder}: is {encoder.name}, the bank of {path} was made by {made_by}")
    network = bundle.manifest.network
    told = new if shots is None else [*new, *(shots.prefix + p for p in new)]
    embeddings = encode_all(encoder, told, network.text_len)
    for embedding in embeddings.values():
        if embedding.shape[1] != network.text_dim:
            raise UserError(
                f"--text-encoder {text_encoder}: makes {embedding.shape[1]} channels, {path} wants {network.text_dim}"
            )
    ref = bundle.manifest.prompt_bank
    bank = load_file(path / ref.file) | {p: e.half().contiguous() for p, e in embeddings.items()}
    with new_folder(path, replace=True) as part:
        skip = shutil.ignore_patterns(MANIFEST, ref.file)
        shutil.copytree(path, part, ignore=skip, copy_function=link_or_copy, dirs_exist_ok=True)  # compiled engines too
        (part / ref.file).write_bytes(save(bank))
        manifest = bundle.manifest.model_copy(
            update={"prompt_bank": describe(part / ref.file), "prompts": [*bundle.manifest.prompts, *new]}
        )
        write_manifest(part, manifest)
    return len(new)
