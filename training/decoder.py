"""Train the decoder alone against a patch discriminator, on latents that stay as they are.

    python training/decoder.py [--minutes 60] [--device cuda]         after the distillation

The encoder is frozen, so the transformer's latents stay valid whatever is done here. The losses: pixels, texture and
motion as before, the discriminator's features, and its verdict. Half of the clips are as the student ends them; of
those, pixels are compared without their finest octaves. What comes after takes the decoder that this makes.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everframe.export.taehv import Taehv

from autoencoder import MOTION, TEXTURE, held_out_report
from clips import NEAR, WARM, load_pool, trained
from common import FilterMuon, autocast, evaluate_with
from discriminator import Discriminator, adversarial_loss, discriminator_loss, matching_loss
from latents import encode_pool, student_latents
from losses import motion_loss, pixel_loss, texture_loss
from run import Ema, Run, progress_of
from team import Team
from weights import trained_autoencoder

STEPS, PEAK, DISCRIMINATOR_PEAK = 1_200, 3e-4, 6e-4
LENGTH = 3  # latent frames of a piece; the first only warms the memory
ADVERSARIAL, MATCHING = 0.03, 0.02
CALM = 150  # steps in which the discriminator learns alone


class Pairs:
    """Pieces of clips as latents, with the pixels that they stand for; of the near clips alone, where the latents have no
    others. Whole pictures: in a crop, the decoder's padding stands where the picture goes on."""

    def __init__(self, latents: np.ndarray, pool: np.ndarray, device: str):
        self.latents, self.pool, self.device = latents, pool, device
        near, far = NEAR // 4, latents.shape[1] - NEAR // 4
        self.firsts = [*range(near - LENGTH + 1), *range(near, near + far - LENGTH + 1)]
        self.trained = torch.tensor(trained(min(len(latents), len(pool))))

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """latents [B, LENGTH, C, h, w], frames [B, 4·LENGTH, 3, 8h, 8w]"""
        made, kept = [], []
        for i in self.trained[torch.randint(len(self.trained), (size,))].tolist():
            first = self.firsts[int(torch.randint(len(self.firsts), ()))]
            frame = 4 * first + (WARM if first >= NEAR // 4 else 0)  # the far clip's pixels have so many in front
            made.append(torch.from_numpy(self.latents[i, first : first + LENGTH].astype(np.float32)))
            kept.append(torch.from_numpy(self.pool[i, frame : frame + 4 * LENGTH].copy()))
        frames = torch.stack(kept).to(self.device).permute(0, 1, 4, 2, 3).float() / 255
        return torch.stack(made).to(self.device), frames


def soft(frames: Tensor) -> Tensor:
    """Pictures without their finest octaves: of what the student has drawn itself, nobody knows where it should stand."""
    return F.avg_pool2d(frames.flatten(0, 1), 4).unflatten(0, frames.shape[:2])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS, help="over all sessions")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--use", type=int, default=960)
    parser.add_argument("--batch", type=int, default=1, help="clips a step of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--report", type=int, default=500)
    args = parser.parse_args()
    pool = load_pool(args.instances)
    team = Team(args.workers)
    encoded = encode_pool(args.instances, args.use, args.device, team)
    redone = student_latents(encoded, args.device, team)
    rendered, redrawn = (Pairs(kind, pool, args.device) for kind in (encoded, redone))
    torch.manual_seed(0)
    ae: Taehv = trained_autoencoder(plain=True).to(args.device)
    decoder, judge = ae.decoder.train(), Discriminator().to(args.device)
    muon = FilterMuon([p for p in decoder.parameters() if p.ndim == 4], lr=PEAK)
    adam = torch.optim.AdamW([p for p in decoder.parameters() if p.ndim != 4], lr=PEAK, betas=(0.9, 0.99))
    against = torch.optim.AdamW(judge.parameters(), lr=DISCRIMINATOR_PEAK, betas=(0.5, 0.99), weight_decay=0.0)
    ema = Ema(decoder, 0.998)
    run = Run(
        "decoder",
        {"decoder": decoder, "judge": judge, "muon": muon, "adam": adam, "against": against, "ema": ema},
        {"decoder": ema, "judge": judge},
        args.steps,
        args.minutes,
        team,
        of=progress_of("autoencoder"),
    )

    def decode(latents: Tensor) -> Tensor:
        with autocast(args.device):
            out, _ = ae.decode(latents)
        return out.float()[:, 4:]

    def report() -> None:
        held_out_report(run, ae, pool, args.device)

    totals = np.zeros(7)
    for step in run.count([(muon, PEAK), (adam, PEAK), (against, DISCRIMINATOR_PEAK)], warmup=50):
        pairs = redrawn if step % 2 else rendered
        latents, frames = pairs.draw(args.batch)
        true = frames[:, 4:]
        out = decode(latents + 0.03 * torch.randn_like(latents))
        calm = min(1.0, max(0.0, (step - CALM) / CALM))

        said = discriminator_loss(judge(true), judge(out.detach()))
        against.zero_grad()
        said.backward()
        team.average(judge)
        against.step()

        judge.requires_grad_(False)
        features = judge(out)
        verdict = adversarial_loss(features)
        pixels = [soft(v) for v in (out, true)] if pairs is redrawn else [out, true]
        parts = [pixel_loss(*pixels).mean(), TEXTURE * texture_loss(out, true), MOTION * motion_loss(out, true)]
        match = matching_loss(features, judge(true))
        loss = sum(parts, calm * (ADVERSARIAL * verdict + MATCHING * match))
        muon.zero_grad()
        adam.zero_grad()
        loss.backward()
        judge.requires_grad_(True)
        team.average(decoder)
        nn.utils.clip_grad_norm_(decoder.parameters(), 0.5)
        muon.step()
        adam.step()
        ema.update(step)
        totals += [*(part.item() for part in parts), match.item(), verdict.item(), said.item(), 1]
        if step % 100 == 99:
            names = ("loss", "texture", "moving", "matching", "verdict", "discriminator")
            run.log(**dict(zip(names, (totals[:6] / totals[6]).round(4).tolist(), strict=True)))
            totals[:] = 0
        if step % args.report == args.report - 1 and team.first:
            evaluate_with(ema, decoder, report)


if __name__ == "__main__":
    main()
