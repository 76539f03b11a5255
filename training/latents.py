"""The latents that transformer and decoder train on, made once and kept in training/work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everframe.export.taehv import Taehv

from clips import FAR, NEAR, WARM, instance, load_pool, pool_name
from common import autocast
from rollout import CHUNK, CHUNKS, Tables, redrawn
from run import WORK, progress_of
from scenes import render
from settings import AUTOENCODER, CELL, TRANSFORMER
from team import Team
from weights import first_autoencoder, trained_autoencoder, trained_transformer

PER_CLIP = (NEAR + FAR) // 4
# Of the student's sampler, those that redraw a clip for the decoder: its layout stays, its detail is theirs.
LAST_STEPS = 2, 3


def fill(path: Path, shape: tuple[int, ...], team: Team, at_once: int, make: Callable[[list[int]], Tensor]) -> None:
    """Write the float16 array of that shape. Each of the team makes its rows, so many at once; it goes on where a killed run
    stopped."""
    part = path.with_suffix(".part")
    if team.first and not part.exists():
        np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape).flush()
    team.wait()
    out = np.lib.format.open_memmap(part, mode="r+")
    for share in torch.arange(team.rank, shape[0], team.size).split(at_once):
        if rows := [i for i in share.tolist() if not out[i].any()]:
            out[rows] = make(rows).half().cpu().numpy()
        if share[0] % 100 == 0:
            print(f"{path.stem}: {share[0]}/{shape[0]}", flush=True)
    out.flush()
    team.wait()
    if team.first:
        part.rename(path)
    team.wait()


def encode_pool(instances: int, use: int, device: str, team: Team, portrait: bool = False) -> np.ndarray:
    """Latents of the pool's first `use` instances [use, 15 near + 12 far, C, h, w] float16, for the encoder as it is now."""
    path = WORK / f"latents-{pool_name(use, portrait)}-{progress_of('autoencoder')}.npy"
    if not path.exists():
        pool, ae = load_pool(instances, portrait), trained_autoencoder().to(device)

        def encode(rows: list[int]) -> Tensor:
            frames = torch.from_numpy(pool[rows]).to(device).permute(0, 1, 4, 2, 3).float() / 255
            return encode_near_and_far(ae, frames)

        shape = (use, PER_CLIP, AUTOENCODER.latent_channels, pool.shape[2] // CELL, pool.shape[3] // CELL)
        fill(path, shape, team, 1 if device == "cpu" else 8, encode)
    return np.load(path, mmap_mode="c")


def render_short(use: int, size: tuple[int, int], device: str, team: Team) -> np.ndarray:
    """Latents of so many instances' first five chunks at the size of the study's variant (transformer.py --short), by the
    first demo's autoencoder [use, 15, C, h, w] float16."""
    path = WORK / f"latents-short-{use}.npy"
    if team.first and not path.exists():
        ae = first_autoencoder().to(device)
        height, width = (16 * tokens for tokens in size)
        made = []
        for i in range(use):
            it = instance(i, wishes=False)
            frames = render(it.scene, it.variant, it.seed, torch.arange(NEAR), height, width)
            made.append(encode_clip(ae, frames.permute(0, 3, 1, 2)[None].to(device))[0].half().cpu().numpy())
        np.save(path, np.stack(made))
    team.wait()
    return np.load(path)


def encode_clip(ae: Taehv, clip: Tensor) -> Tensor:
    """Eight frames at a time, which fit the cache: four times as fast as the whole clip at once."""
    states, parts = None, []
    with torch.no_grad(), autocast(clip.device.type):
        for part in clip.split(8, 1):
            latents, states = ae.encode(part, states)
            states = [state.float() for state in states]
            parts.append(latents.float())
    return torch.cat(parts, 1)


def encode_near_and_far(ae: Taehv, frames: Tensor) -> Tensor:
    """Latents of clips [B, T, 3, H, W] as clips.py lays them out, or of their beginnings: the far part, where there is one,
    is encoded for itself, and its first frames only warm the memory."""
    near, far = encode_clip(ae, frames[:, :NEAR]), frames[:, NEAR:]
    return torch.cat([near, encode_clip(ae, far)[:, WARM // 4 :]], 1) if far.shape[1] else near


def load_texts() -> dict[str, Tensor]:
    """Every wording's token embeddings, padded [text_len, text_dim]."""
    texts = load_file(WORK / "texts.safetensors")
    return {k: padded(v) for k, v in texts.items()}


def padded(tokens: Tensor) -> Tensor:
    """A prompt's token embeddings [tokens, text_dim], with zeros behind them [text_len, text_dim]."""
    return nn.functional.pad(tokens.float(), (0, 0, 0, TRANSFORMER.text_len - len(tokens)))


def first_wording(texts: dict[str, Tensor], i: int) -> Tensor:
    """Of load_texts(), what instance i shows [text_len, text_dim]."""
    return texts[instance(i).wordings[0]]


def student_latents(coded: np.ndarray, device: str, team: Team) -> np.ndarray:
    """Of encode_pool's latents those of the near clips [n, 15, C, h, w] float16, as the distilled student ends them: what a
    stream's decoder gets, with the pixels at hand that it should make of it. Exits where the newest teacher has none."""
    teacher = progress_of("transformer")
    student_steps = progress_of("distill", teacher)
    if not student_steps:
        raise SystemExit(f"training/runs: the teacher of {teacher} steps has no student yet; distill.py makes one")
    path = WORK / f"latents-student-{pool_name(len(coded))}-{progress_of('autoencoder')}-{teacher}-{student_steps}.npy"
    if not path.exists():
        student, texts, tables = trained_transformer("distill").to(device).eval(), load_texts(), Tables(device)

        def redraw(rows: list[int]) -> Tensor:
            truth = torch.from_numpy(coded[rows, : CHUNK * CHUNKS].astype(np.float32)).to(device)
            truth = truth.unflatten(1, (CHUNKS, CHUNK)).transpose(2, 3)
            text = torch.stack([first_wording(texts, i) for i in rows]).to(device)
            ropes = [tables([CHUNK * c] * len(rows), [1] * len(rows)) for c in range(CHUNKS)]
            with autocast(device):
                chunks = redrawn(student, truth, text[:, None].expand(-1, CHUNKS, -1, -1), ropes, LAST_STEPS)
            return torch.cat(chunks, 2).transpose(1, 2)

        fill(path, (len(coded), CHUNK * CHUNKS, *coded.shape[2:]), team, 6 if device == "cpu" else 48, redraw)
    return np.load(path, mmap_mode="c")
