"""Train the demo's autoencoder on the clip pool: encoder and decoder together.

    python training/autoencoder.py [--minutes 60] [--device cuda]

It starts from the autoencoder of training/demo, widened where the new one is wider. Losses: see losses.py. The encoder's
output is normalised per channel (running statistics, folded into its last convolution when the weights are handed on),
and a little noise on it makes the decoder forgiving. Its own figures come from clips that it never trains on, run as a
stream runs them: the energy in the two finest octaves and the motion, as shares of the render's.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from everframe.export.taehv import Taehv

from clips import FAR, NEAR, WARM, instance, load_done, load_pool, trained, unseen
from common import FilterMuon, autocast, evaluate_with, save_sheet
from losses import motion_loss, pixel_loss, texture_loss
from measures import geometric
from reconstruct import COLUMNS, compare, stream, to_bytes
from run import HERE, RUNS, Ema, Run
from settings import AUTOENCODER
from team import Team
from weights import fold_norm
from widen import initialise, widen

# Few and large: on 64×64 crops every pixel sees a border, and whole frames, where most see none, got worse and worse
# (hills fell from 26.2 to 22.0 dB between steps 1000 and 2000) while the loss went down. Frames, height, width:
CROP = (12, 112, 160)
COLD = 4  # frames at the start of a clip whose memory is empty, as it is in no stream but at its first moment
COLD_WEIGHT = 0.3
# Where a detail's place cannot be known, pixels alone would have it left out: at 0.03 that still paid for details of more
# than some five grey levels.
TEXTURE, MOTION = 0.06, 0.03
FINE = ("sea", "fire", "reef", "snow")  # lost most of their detail in the first autoencoder: drawn twice as often
STEPS, PEAK = 4_000, 5e-4


class Trained(nn.Module):
    """The autoencoder with the normalisation of its latents."""

    def __init__(self) -> None:
        super().__init__()
        self.ae = Taehv(AUTOENCODER)
        self.norm = nn.BatchNorm2d(AUTOENCODER.latent_channels, affine=False, momentum=0.01)

    def encode(self, frames: Tensor, states: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Normalised by the running statistics, in training too: those of two clips would be far off."""
        raw, states = self.ae.encode(frames, states)
        raw = raw.flatten(0, 1).float()
        if self.training:
            with torch.no_grad():
                self.norm.running_mean.lerp_(raw.mean((0, 2, 3)), 0.01)  # type: ignore[union-attr]
                self.norm.running_var.lerp_(raw.var((0, 2, 3)), 0.01)  # type: ignore[union-attr]
        mean: Tensor = self.norm.running_mean  # type: ignore[assignment]
        return ((raw - mean[:, None, None]) * self.scale[:, None, None]).unflatten(0, (len(frames), -1)), states

    @property
    def scale(self) -> Tensor:
        return (self.norm.running_var + self.norm.eps).rsqrt()  # type: ignore[operator]

    def folded(self) -> Taehv:
        """The same autoencoder with the normalisation inside the encoder's last convolution."""
        ae = Taehv(AUTOENCODER)
        ae.load_state_dict(self.ae.state_dict())
        fold_norm(ae, self.norm.running_mean, self.norm.running_var)  # type: ignore[arg-type]
        return ae


class Clips:
    """The rendered clips to train on; the pool may still be filling. Those of fine detail are drawn twice as often.

    For a card they are kept on it, which needs 13 MB for each: out of the file, a step waited for its crops.
    """

    def __init__(self, instances: int, device: str):
        self.instances, self.device = instances, device
        self.file = load_pool(instances)
        self.held = None if device == "cpu" else torch.empty(self.file.shape, dtype=torch.uint8, device=device)
        self.there: list[int] = []  # rendered, and on the card
        self.drawn_from, self.looked = np.arange(0), -math.inf

    def look(self) -> None:
        """For what has been rendered meanwhile."""
        done, before = load_done(self.instances), set(self.there)
        self.there = [i for i in trained(len(done)) if done[i]]
        if self.held is not None:
            for i in set(self.there) - before:
                self.held[i] = torch.from_numpy(self.file[i].copy())
        self.drawn_from = np.array(self.there + [i for i in self.there if instance(i).scene in FINE])
        self.looked = time.monotonic()

    def draw(self, size: int) -> Tensor:
        """Random crops [B, T, 3, H, W]; half of them mirrored, a sixth with other colours, so that none is taken for
        granted."""
        if time.monotonic() - self.looked > 30:
            self.look()
        out = []
        count, high, wide = CROP
        for i in torch.from_numpy(self.drawn_from)[torch.randint(len(self.drawn_from), (size,))].tolist():
            near = torch.rand(()) < 0.5
            first, last = (0, NEAR - count) if near else (NEAR, NEAR + WARM + FAR - count)
            t = int(torch.randint(first, last + 1, ()))
            y, x = (int(torch.randint(0, n + 1, ())) for n in (self.file.shape[2] - high, self.file.shape[3] - wide))
            where = i, slice(t, t + count), slice(y, y + high), slice(x, x + wide)
            clip = torch.from_numpy(self.file[where].copy()) if self.held is None else self.held[where]
            if torch.rand(()) < 0.5:
                clip = clip.flip(2)
            if torch.rand(()) < 1 / 6:
                clip = clip[..., torch.randperm(3)]
            out.append(clip)
        return torch.stack(out).permute(0, 1, 4, 2, 3).float() / 255


def warm_and_cold(pixels: Tensor) -> Tensor:
    """The mean of what `pixel_loss` says of every frame [B, T], the first of which had an empty memory."""
    return torch.cat([COLD_WEIGHT * pixels[:, :COLD], pixels[:, COLD:]], 1).mean()


def held_out_report(run: Run, ae: Taehv, pool: np.ndarray, device: str, length: int = 24, warm: int = 8) -> None:
    """Log what reconstruct.py says of the clips held out, and draw some of them."""
    made: dict[str, list[np.ndarray]] = {}
    kept: dict[str, list[np.ndarray]] = {}
    rows = []
    for k, i in enumerate(unseen(len(pool))):
        true = torch.from_numpy(pool[i, :length].copy()).to(device).permute(0, 3, 1, 2)[None].float() / 255
        out = stream(ae, true)
        made.setdefault(instance(i).scene, []).append(to_bytes(out)[warm:])
        kept.setdefault(instance(i).scene, []).append(to_bytes(true)[warm:])
        if k % 3 == 0:
            rows.append(torch.cat([true[0, [8, 14]], out[0, [8, 14]]]).permute(0, 2, 3, 1))
    scenes = {scene: compare(made[scene], kept[scene]) for scene in made}
    together = {
        name.lower(): round(geometric([row[k] for row in scenes.values()]), 3) for k, name in enumerate(COLUMNS)
    }
    run.log(**together, scenes={scene: [round(float(v), 3) for v in row] for scene, row in scenes.items()})
    save_sheet(rows, RUNS / f"{run.name}.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=STEPS, help="over all sessions")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of this session")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=1, help="clips a step of each worker")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--peak", type=float, default=PEAK)
    parser.add_argument("--name", default="autoencoder", help="of the run: another for a trial")
    parser.add_argument("--texture", type=float, default=TEXTURE)
    parser.add_argument("--motion", type=float, default=MOTION)
    parser.add_argument("--report", type=int, default=400, help="steps between two reports on held-out clips")
    args = parser.parse_args()
    team = Team(args.workers)
    torch.manual_seed(0)
    model = Trained().to(args.device)
    initialise(model.ae)
    widen(model.ae, load_file(HERE / "demo" / "autoencoder.safetensors"))
    filters = [p for p in model.parameters() if p.ndim == 4]
    muon = FilterMuon(filters, lr=args.peak)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.ndim != 4], lr=args.peak, betas=(0.9, 0.99))
    ema = Ema(model, 0.999)
    run = Run(
        args.name,
        {"model": model, "muon": muon, "adam": adam, "ema": ema},
        {"model": ema},
        args.steps,
        args.minutes,
        team,
    )
    clips = Clips(args.instances, args.device)

    def forward(true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(args.device):
            latent, _ = model.encode(true)
            out, _ = model.ae.decode(latent + 0.06 * torch.randn_like(latent))
        out = out.float()
        pixels = warm_and_cold(pixel_loss(out, true))
        return pixels, texture_loss(out[:, COLD:], true[:, COLD:]), motion_loss(out[:, COLD:], true[:, COLD:])

    totals, counted = torch.zeros(3, device=args.device), 0
    for step in run.count([(muon, args.peak), (adam, args.peak)]):
        parts = forward(clips.draw(args.batch))
        model.zero_grad()
        (parts[0] + args.texture * parts[1] + args.motion * parts[2]).backward()
        team.average(model)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        muon.step()
        adam.step()
        ema.update(step)
        totals, counted = totals + torch.stack(parts).detach(), counted + 1
        if step % 100 == 99:
            pixels, texture, moved = team.mean(totals.cpu() / counted).double().numpy().round(5).tolist()
            run.log(loss=pixels, texture=texture, moving=moved)
            totals, counted = torch.zeros_like(totals), 0
        if step % args.report == args.report - 1 and team.first:
            evaluate_with(ema, model, lambda: held_out_report(run, model.folded(), clips.file, args.device))


if __name__ == "__main__":
    main()
