"""The latents that transformer and decoder train on, made once and kept in training/work."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everframe.export.taehv import Taehv

from clips import FAR, NEAR, WARM, instance
from common import autocast, load_pool
from rollout import CHUNK, CHUNKS, Tables, redrawn
from run import WORK, progress_of
from scenes import PROMPTS, render
from settings import AUTOENCODER, TRANSFORMER
from team import Team
from weights import first_autoencoder, trained_autoencoder, trained_transformer

PER_CLIP = (NEAR + FAR) // 4
LAST_STEPS = (
    2,
    3,
)  # of the student's sampler, that redraw a clip for the decoder: its layout stays, its detail is theirs


def encode_pool(instances: int, use: int, device: str, team: Team) -> np.ndarray:
    """Latents of the pool's first `use` instances [use, 15 near + 12 far, C, h, w] float16, for the encoder as it is now.
    Each of the team encodes its share."""
    path = WORK / f"latents-{use}-{progress_of('autoencoder')}.npy"
    part = path.with_suffix(".part")
    if not path.exists():
        pool = load_pool(f"clips-{instances}.npy")
        shape = (use, PER_CLIP, AUTOENCODER.latent_channels, pool.shape[2] // 8, pool.shape[3] // 8)
        if team.first and not part.exists():
            np.lib.format.open_memmap(part, mode="w+", dtype=np.float16, shape=shape).flush()
        team.wait()
        out = np.lib.format.open_memmap(part, mode="r+")  # goes on where a killed run stopped
        ae = trained_autoencoder().to(device)
        for i in range(team.rank, use, team.size):
            if out[i].any():
                continue
            frames = torch.from_numpy(pool[i].copy()).to(device).permute(0, 3, 1, 2)[None].float() / 255
            near, far = (encode_clip(ae, clip) for clip in (frames[:, :NEAR], frames[:, NEAR:]))
            out[i] = torch.cat([near[0], far[0, WARM // 4 :]]).cpu().numpy()
            if i % 100 == 0:
                print(f"encoded {i}/{use}", flush=True)
        out.flush()
        team.wait()
        if team.first:
            part.rename(path)
    team.wait()
    return np.load(path, mmap_mode="r")


def render_short(use: int, size: tuple[int, int], device: str, team: Team) -> np.ndarray:
    """Latents of so many instances' first five chunks at the size of the study's variant (transformer.py --short), by the
    first demo's autoencoder [use, 15, C, h, w] float16."""
    path = WORK / f"latents-short-{use}.npy"
    if team.first and not path.exists():
        ae = first_autoencoder().to(device)
        height, width = (16 * tokens for tokens in size)
        made = []
        for i in range(use):
            it = instance(i)
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


def load_texts() -> dict[str, Tensor]:
    """Every wording's token embeddings, padded [text_len, text_dim]."""
    texts = load_file(WORK / "texts.safetensors")
    return {k: nn.functional.pad(v.float(), (0, 0, 0, TRANSFORMER.text_len - len(v))) for k, v in texts.items()}


def student_latents(pool: np.ndarray, device: str, team: Team) -> np.ndarray:
    """Of the pool's latents those of the near clips [n, 15, C, h, w] float16, as the distilled student ends them: what a
    stream's decoder gets, with the pixels at hand that it should make of it. Each of the team makes its share."""
    teacher = progress_of("transformer")
    path = WORK / f"latents-student-{len(pool)}-{teacher}-{progress_of('distill', teacher)}.npy"
    shares = [path.with_suffix(f".{rank}.npy") for rank in range(team.size)]
    if not path.exists():
        student, texts, tables = trained_transformer("distill").to(device).eval(), load_texts(), Tables(device)
        made = []
        for part in torch.arange(team.rank, len(pool), team.size).split(6):
            its = [instance(i) for i in part.tolist()]
            text = torch.stack([texts[PROMPTS[it.scene][it.variant][0]] for it in its])[:, None].to(device)
            near = torch.from_numpy(pool[part.numpy(), : CHUNK * CHUNKS].astype(np.float32)).to(device)
            ropes = [tables([CHUNK * c] * len(part), [1] * len(part)) for c in range(CHUNKS)]
            with autocast(device):
                chunks = redrawn(
                    student,
                    near.unflatten(1, (CHUNKS, CHUNK)).transpose(2, 3),
                    text.expand(-1, CHUNKS, -1, -1),
                    ropes,
                    LAST_STEPS,
                )
            made.append(torch.cat(chunks, 2).transpose(1, 2).half().cpu().numpy())
        np.save(shares[team.rank], np.concatenate(made))
        team.wait()
        if team.first:
            together = np.empty((len(pool), *made[0].shape[1:]), np.float16)
            for rank, share in enumerate(shares):
                together[rank :: team.size] = np.load(share)
                share.unlink()
            np.save(path.with_suffix(".part.npy"), together)
            path.with_suffix(".part.npy").rename(path)
    team.wait()
    return np.load(path, mmap_mode="r")
