"""The streaming autoencoder against a direct whole-clip computation, layer by layer with plain convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from everframe.export.taehv import Taehv, TaehvConfig

CONFIG = TaehvConfig(latent_channels=4, encoder_widths=(6, 8, 8), decoder_widths=(12, 8, 6, 6), depth=2)


def reference_decode(state: dict[str, Tensor], c: TaehvConfig, latents: Tensor) -> Tensor:
    """[T, C, h, w] -> [4T, 3, 8h, 8w], from the checkpoint's names and the description of TAEHV alone."""

    def convolve(name: str, x: Tensor, padding: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)

    x = 3 * torch.tanh(latents / 3)
    x = convolve("decoder.1", x).relu()
    at = 3
    for grow in (1, 2, 2):
        for _ in range(c.depth):
            rows = []
            for t in range(len(x)):  # frame by frame, looking one back
                past = x[t - 1] if t else torch.zeros_like(x[0])
                y = torch.cat([x[t], past])[None]
                for j in (0, 2):
                    y = convolve(f"decoder.{at}.conv.{j}", y).relu()
                rows.append((convolve(f"decoder.{at}.conv.4", y)[0] + x[t]).relu())
            x = torch.stack(rows)
            at += 1
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = convolve(f"decoder.{at + 1}.conv", x, padding=0)
        width = x.shape[1]
        x = torch.stack([y[t, i * width : (i + 1) * width] for t in range(len(y)) for i in range(grow)])
        x = convolve(f"decoder.{at + 2}", x)
        at += 3
    return convolve(f"decoder.{at + 1}", x.relu())


def model() -> Taehv:
    torch.manual_seed(0)
    return Taehv(CONFIG).double().eval().requires_grad_(False)


def test_decoder_is_the_described_network() -> None:
    ae = model()
    latents = torch.randn(5, 4, 3, 4, dtype=torch.float64)
    expected = reference_decode(ae.state_dict(), CONFIG, latents)
    got, _ = ae.decode(latents[None])
    assert got.shape == (1, 20, 3, 24, 32)
    assert torch.allclose(got[0], expected, atol=1e-12)


def test_streaming_equals_the_whole_clip() -> None:
    ae = model()
    frames = torch.rand(2, 24, 3, 24, 32, dtype=torch.float64)
    whole, _ = ae.encode(frames)
    assert whole.shape == (2, 6, 4, 3, 4)
    first, states = ae.encode(frames[:, :8])
    second, _ = ae.encode(frames[:, 8:], states)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-12)
    clip, _ = ae.decode(whole)
    states, parts = None, []
    for t in range(6):
        part, states = ae.decode(whole[:, t : t + 1], states)
        parts.append(part)
    assert torch.allclose(torch.cat(parts, 1), clip, atol=1e-12)


def test_batch_rows_do_not_mix() -> None:
    ae = model()
    frames = torch.rand(3, 8, 3, 16, 16, dtype=torch.float64)
    latents, _ = ae.encode(frames)
    for i in range(3):
        alone, _ = ae.encode(frames[i : i + 1])
        assert torch.allclose(latents[i : i + 1], alone, atol=1e-12)


def test_the_public_layout() -> None:
    """Names and shapes of taew2_1's decoder, as published."""
    shapes = {k: tuple(v.shape) for k, v in Taehv(TaehvConfig()).state_dict().items()}
    assert shapes["decoder.1.weight"] == (256, 16, 3, 3)
    assert shapes["decoder.3.conv.0.weight"] == (256, 512, 3, 3)
    assert shapes["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert shapes["decoder.8.weight"] == (128, 256, 3, 3)
    assert shapes["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.22.weight"] == (3, 64, 3, 3)
    assert "decoder.8.bias" not in shapes
