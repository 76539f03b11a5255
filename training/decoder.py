"""Train the decoder alone against a patch discriminator, on latents that stay as they are.

    python training/decoder.py [--minutes 60] [--device cuda]         after the distillation

The encoder is frozen, so the transformer's latents stay valid whatever is done here. The losses: pixels, texture and
motion as before, the discriminator's features, and its verdict. Half of the clips are as the student ends them; of
those, pixels are compared without their finest octaves. A third of the others has other colours, and cards of any colour
over it, encoded as they are drawn: a decoder that saw these scenes alone drew a flat red of 220 as 208. The first frame of
a piece counts too, but less: like a stream's, it has an empty memory. Frame differences are compared coarsely: without,
a latent's four frames changed too little, and the next latent's began with a jump. What comes after takes the
decoder that this makes.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everframe.export.taehv import Taehv

from autoencoder import COLD, MOTION, TEXTURE, held_out_report, warm_and_cold
from clips import NEAR, WARM, load_pool, trained
from common import FilterMuon, autocast, evaluate_with
from discriminator import Discriminator, adversarial_loss, discriminator_loss, matching_loss
from latents import encode_clip, encode_pool, student_latents
from losses import motion_loss, pixel_loss, steadiness_loss, texture_loss
from run import Ema, Run, progress_of
from team import Team
from weights import trained_autoencoder

STEPS, PEAK, AGAINST = 2_400, 3e-4, 2.0  # the last: the discriminator's rate over the decoder's
LENGTH = 4  # latent frames of a piece; of the first, pixels alone are compared, and count less: its memory is empty
ADVERSARIAL, MATCHING = 0.03, 0.02
STEADINESS = 0.05  # by --peak 1e-4: steps of 3e-4 undo as much of it as they teach
CALM = 150  # steps in which the discriminator learns alone
RECOLOURED, CARDS = 1 / 3, 3  # share of the clips as they were rendered; of these, how many cards there are at most


def recoloured(clip: Tensor) -> Tensor:
    """A clip [T, 3, H, W] in other colours, half of them inverted, half mirrored, and some flat cards before it."""
    clip = clip[:, torch.randperm(3)]
    if torch.rand(()) < 0.5:
        clip = clip.flip(3)
    if torch.rand(()) < 0.5:
        clip = 1 - clip
    size = torch.tensor(clip.shape[2:])
    for _ in range(int(torch.randint(1, CARDS + 1, ()))):
        high, wide = (size * (0.1 + 0.5 * torch.rand(2))).int().tolist()
        y, x = (torch.rand(2) * (size - torch.tensor([high, wide]))).int().tolist()
        pure = torch.rand(3) < 0.5  # white and black among them
        colour = torch.where(pure, torch.randint(2, (3,)), torch.rand(3))
        clip[:, :, y : y + high, x : x + wide] = colour.to(clip).view(3, 1, 1)
    return clip


class Pairs:
    """Pieces of clips as latents, with the pixels that they stand for; of the near clips alone, where the latents have no
    others. Whole pictures: in a crop, the decoder's padding stands where the picture goes on. ae: encodes the share of them
    that is recoloured; without it, none is."""

    def __init__(self, latents: np.ndarray, pool: np.ndarray, device: str, ae: Taehv | None = None):
        self.latents, self.pool, self.device, self.ae = latents, pool, device, ae
        near, far = NEAR // 4, latents.shape[1] - NEAR // 4
        self.firsts = [*range(near - LENGTH + 1), *range(near, near + far - LENGTH + 1)]
        self.trained = torch.tensor(trained(min(len(latents), len(pool))))

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """latents [B, LENGTH, C, h, w], frames [B, 4·LENGTH, 3, 8h, 8w]"""
        made, kept = [], []
        for i in self.trained[torch.randint(len(self.trained), (size,))].tolist():
            first = self.firsts[int(torch.randint(len(self.firsts), ()))]
            frame = 4 * first + (WARM if first >= NEAR // 4 else 0)  # the far clip's pixels have so many in front
            before = min(frame, WARM)  # frames that warm the encoder's memory
            clip = torch.from_numpy(self.pool[i, frame - before : frame + 4 * LENGTH].copy()).to(self.device)
            clip = clip.permute(0, 3, 1, 2).float() / 255
            if self.ae is not None and torch.rand(()) < RECOLOURED:
                clip = recoloured(clip)
                made.append(encode_clip(self.ae, clip[None])[0, before // 4 :])
            else:
                made.append(
                    torch.from_numpy(self.latents[i, first : first + LENGTH].astype(np.float32)).to(self.device)
                )
            kept.append(clip[before:])
        return torch.stack(made), torch.stack(kept)


def soft(frames: Tensor) -> Tensor:
    """Pictures without their finest octaves: in what a student has drawn, nobody knows where these should be; and what jumps
    from one latent frame to the next is coarse."""
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
    parser.add_argument("--peak", type=float, default=PEAK)
    parser.add_argument("--report", type=int, default=500)
    args = parser.parse_args()
    pool = load_pool(args.instances)
    team = Team(args.workers)
    encoded = encode_pool(args.instances, args.use, args.device, team)
    redone = student_latents(encoded, args.device, team)
    ae: Taehv = trained_autoencoder(plain=True).to(args.device)
    rendered, redrawn = Pairs(encoded, pool, args.device, ae), Pairs(redone, pool, args.device)
    torch.manual_seed(0)
    decoder, judge = ae.decoder.train(), Discriminator().to(args.device)
    muon = FilterMuon([p for p in decoder.parameters() if p.ndim == 4], lr=args.peak)
    adam = torch.optim.AdamW([p for p in decoder.parameters() if p.ndim != 4], lr=args.peak, betas=(0.9, 0.99))
    against = torch.optim.AdamW(judge.parameters(), lr=AGAINST * args.peak, betas=(0.5, 0.99), weight_decay=0.0)
    ema = Ema(decoder, 0.995)
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
        return out.float()

    def report() -> None:
        held_out_report(run, ae, pool, args.device)

    totals = np.zeros(8)
    for step in run.count([(muon, args.peak), (adam, args.peak), (against, AGAINST * args.peak)], warmup=50):
        pairs = redrawn if step % 2 else rendered
        latents, frames = pairs.draw(args.batch)
        whole = decode(latents)
        out, true = whole[:, COLD:], frames[:, COLD:]
        calm = min(1.0, max(0.0, (step - CALM) / CALM))

        said = discriminator_loss(judge(true), judge(out.detach()))
        against.zero_grad()
        said.backward()
        team.average(judge)
        against.step()

        judge.requires_grad_(False)
        features = judge(out)
        verdict = adversarial_loss(features)
        shown = [soft(v) for v in (whole, frames)] if pairs is redrawn else [whole, frames]
        parts = [warm_and_cold(pixel_loss(*shown)), TEXTURE * texture_loss(out, true), MOTION * motion_loss(out, true)]
        parts.append(STEADINESS * steadiness_loss(*(soft(v[:, COLD - 1 :]) for v in (whole, frames))))
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
            names = ("loss", "texture", "moving", "steadiness", "matching", "verdict", "discriminator")
            run.log(**dict(zip(names, (totals[:7] / totals[7]).round(4).tolist(), strict=True)))
            totals[:] = 0
        if step % args.report == args.report - 1 and team.first:
            evaluate_with(ema, decoder, report)


if __name__ == "__main__":
    main()
