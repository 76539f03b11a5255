"""Train the demo's autoencoder on the clip pool.

    python training/autoencoder.py --minutes 25 [--device cuda]

Loss: L1 with a weight on small bright details (which a plain mean error hardly sees), L1 of spatial gradients, L1 of
frame differences. The encoder's output is normalised per channel (batch statistics, folded into its last convolution
when the weights are saved), and a little noise on it makes the decoder forgiving.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from everframe.export.taehv import DEMO, MemBlock, Taehv, TGrow, TPool

from clips import FAR, NEAR, WARM, instance, load_done
from common import RUNS, WORK, Ema, Muon, Run, autocast, evaluate_with, load_pool, psnr, save_sheet

# Few and large: on 64×64 crops every pixel sees a border, and whole frames, where most see none, got worse and worse
# (hills fell from 26.2 to 22.0 dB between steps 1000 and 2000) while the loss went down.
CROP, FRAMES, HELD_OUT = (112, 192), 8, 24
FINE = ("city", "snow", "reef")  # small bright details vanish first: these scenes are drawn twice as often


class Trained(nn.Module):
    """The autoencoder with the normalisation of its latents."""

    def __init__(self) -> None:
        super().__init__()
        self.ae = Taehv(DEMO)
        self.norm = nn.BatchNorm2d(DEMO.latent_channels, affine=False, momentum=0.01)

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised by the running statistics, in training too: those of two clips would be far off."""
        raw, _ = self.ae.encode(frames)
        raw = raw.flatten(0, 1).float()
        if self.training:
            with torch.no_grad():
                self.norm.running_mean.lerp_(raw.mean((0, 2, 3)), 0.01)  # type: ignore[union-attr]
                self.norm.running_var.lerp_(raw.var((0, 2, 3)), 0.01)  # type: ignore[union-attr]
        mean: Tensor = self.norm.running_mean  # type: ignore[assignment]
        return ((raw - mean[:, None, None]) * self.scale[:, None, None]).unflatten(0, (len(frames), -1))

    @property
    def scale(self) -> Tensor:
        return (self.norm.running_var + self.norm.eps).rsqrt()  # type: ignore[operator]

    def folded(self) -> Taehv:
        """The same encoder with the normalisation inside its last convolution."""
        ae = Taehv(DEMO)
        ae.load_state_dict(self.ae.state_dict())
        last = ae.encoder[-1]
        scale = self.scale
        last.weight.data *= scale.view(-1, 1, 1, 1)  # type: ignore[union-attr]
        last.bias.data = (last.bias.data - self.norm.running_mean) * scale  # type: ignore[union-attr, operator]
        return ae


class FilterMuon(Muon):
    """Muon on convolution filters, seen as matrices [out, in·kh·kw]."""

    def __init__(self, filters: list[nn.Parameter], lr: float):
        self.filters = filters
        self.views = [nn.Parameter(p.data.view(len(p), -1)) for p in filters]  # the same memory
        super().__init__(self.views, lr=lr)

    def step(self, closure=None):
        for p, view in zip(self.filters, self.views, strict=True):
            view.grad = None if p.grad is None else p.grad.reshape(view.shape)
        return super().step(closure)


def initialise(ae: Taehv) -> None:
    """MemBlocks start as the identity, everything between them as an orthogonal map."""
    for block in (*ae.encoder, *ae.decoder):
        if isinstance(block, MemBlock):
            first, second, last = block.conv[0], block.conv[2], block.conv[4]
            for c in (first, second):
                nn.init.kaiming_normal_(c.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            for c in (first, second, last):
                nn.init.zeros_(c.bias)  # type: ignore[arg-type]
        elif isinstance(block, TPool | TGrow):
            nn.init.orthogonal_(block.conv.weight)
        elif isinstance(block, nn.Conv2d):
            nn.init.orthogonal_(block.weight, gain=1.4)
            if block.bias is not None:
                nn.init.zeros_(block.bias)


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:, :] - x[..., :-1, :], x[..., 1:] - x[..., :-1]


def loss_of(out: Tensor, true: Tensor) -> Tensor:
    """out, true [B, T, 3, H, W]."""
    flat = true.flatten(0, 1)
    detail = (flat - F.avg_pool2d(F.pad(flat, (4, 4, 4, 4), mode="replicate"), 9, 1)).abs().mean(1, keepdim=True)
    weight = (1 + 20 * detail).unflatten(0, true.shape[:2])
    error = out - true
    dy, dx = gradients(error)
    dt = error[:, 1:] - error[:, :-1]
    return (error.abs() * weight).mean() + 0.7 * (dy.abs().mean() + dx.abs().mean()) + 0.3 * dt.abs().mean()


def batch(pool: np.ndarray, ready: np.ndarray, size: int, device: str) -> Tensor:
    out = []
    for i in torch.from_numpy(ready)[torch.randint(len(ready), (size,))].tolist():
        near = torch.rand(()) < 0.5
        low, high = (0, NEAR - FRAMES) if near else (NEAR, NEAR + WARM + FAR - FRAMES)
        t = int(torch.randint(low, high + 1, ()))
        y, x = (int(torch.randint(0, n + 1, ())) for n in (pool.shape[2] - CROP[0], pool.shape[3] - CROP[1]))
        out.append(torch.from_numpy(pool[i, t : t + FRAMES, y : y + CROP[0], x : x + CROP[1]].copy()))
    return torch.stack(out).to(device).permute(0, 1, 4, 2, 3).float() / 255


def held_out_report(run: Run, model: Trained, pool: np.ndarray, device: str) -> None:
    figures: dict[str, list[float]] = {}
    rows = []
    for k in range(HELD_OUT):
        i = len(pool) - HELD_OUT + k
        frames = torch.from_numpy(pool[i, 16:36].copy()).to(device).permute(0, 3, 1, 2)[None].float() / 255
        with torch.no_grad():
            out = model.ae.decode(model.encode(frames))[0].clamp(0, 1)
        figures.setdefault(instance(i).scene, []).append(psnr(out[:, 4:], frames[:, 4:]))
        if k % 3 == 0:
            rows.append(torch.cat([frames[0, [8, 12]], out[0, [8, 12]]]).permute(0, 2, 3, 1))
    run.log(psnr={k: round(float(np.mean(v)), 2) for k, v in figures.items()})
    save_sheet(rows, RUNS / "autoencoder.png")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--instances", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--peak", type=float, default=2e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Trained().to(args.device)
    initialise(model.ae)
    filters = [p for p in model.parameters() if p.ndim == 4]
    muon = FilterMuon(filters, lr=args.peak)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.ndim != 4], lr=args.peak, betas=(0.9, 0.99))
    ema = Ema(model, 0.998)
    run = Run("autoencoder", {"model": model, "muon": muon, "adam": adam, "ema": ema}, args.minutes)  # type: ignore[dict-item]
    pool = load_pool(f"clips-{args.instances}.npy")

    @torch.compile
    def forward(true: Tensor) -> Tensor:
        with autocast(args.device):
            latent = model.encode(true)
            out, _ = model.ae.decode(latent + 0.06 * torch.randn_like(latent))
        return loss_of(out.float(), true)

    total, ready = 0.0, np.arange(0)
    for step in run.steps([muon, adam], peak=args.peak, warmup=60):
        if step % 50 == 0:
            done = np.flatnonzero(load_done(args.instances))  # the pool may still be filling
            ready = done[done < len(pool) - HELD_OUT]
            ready = np.concatenate([ready, [i for i in ready if instance(int(i)).scene in FINE]]).astype(np.int64)
        true = batch(pool, ready, args.batch, args.device)
        loss = forward(true)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        muon.step()
        adam.step()
        ema.update(step)
        total += loss.item()
        if step % 100 == 99:
            run.log(loss=round(total / 100, 5))
            total = 0.0
        if step % 500 == 499:
            evaluate_with(ema, model, lambda: held_out_report(run, model, pool, args.device))

    def finish() -> None:
        held_out_report(run, model, pool, args.device)
        weights = {k: v.half().contiguous() for k, v in model.folded().state_dict().items()}
        save_file(weights, WORK / "autoencoder.safetensors")

    evaluate_with(ema, model, finish)


if __name__ == "__main__":
    main()
