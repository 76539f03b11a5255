"""The Wan VAE against diffusers' AutoencoderKLWan with the same random weights: whole clips there, chunks here."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false
# (diffusers' types do not tell what its calls return)
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from everframe.engines.errors import UserError
from everframe.export.names import vae_names
from everframe.export.sources import fit
from everframe.export.taehv import Taehv, TaehvConfig, public_weights
from everframe.export.taehvgraphs import DecodeGraph
from everframe.export.wanvae import WanDecodeGraph, WanEncodeGraph, WanVae, WanVaeConfig

from wanfiles import encoded

SMALL = WanVaeConfig(dim=8)


@pytest.fixture(scope="module")
def theirs() -> AutoencoderKLWan:
    torch.manual_seed(0)
    model = AutoencoderKLWan(base_dim=8).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "gamma" in name:
                p.mul_(1 + 0.2 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def ours(theirs: AutoencoderKLWan) -> WanVae:
    model = WanVae(SMALL)
    fit(model, vae_names(theirs.state_dict()), Path("vae"), lambda name: torch.float64)
    return model


def raw(latents: Tensor) -> Tensor:
    """The pipeline's step before diffusers' decode."""
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (SMALL.mean, SMALL.std))
    return latents * std.double() + mean.double()


def streamed(model: WanVae, latents: Tensor, sizes: list[int]) -> Tensor:
    states, parts = model.zero_states(latents), []
    for i, part in enumerate(latents.split(sizes, 2)):
        frames, states = model.decode(part, states, first=i == 0)
        assert all(s.shape == z.shape for s, z in zip(states, model.zero_states(latents), strict=True))
        parts.append(frames)
    return torch.cat(parts, 2)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[3] * 7, [1] * 7, [2, 3, 2]])
def test_streamed_decode_is_the_whole_clip_decode(theirs: AutoencoderKLWan, ours: WanVae, sizes: list[int]) -> None:
    latents = torch.randn(1, 16, sum(sizes), 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = theirs.decode(raw(latents)).sample
    frames = streamed(ours, latents, sizes)
    assert frames.shape == (1, 3, 4 * sum(sizes) - 3, 32, 48)
    # diffusers clamps; mean and std are float32 constants
    assert (frames.clamp(-1, 1) - expected).abs().max() < 1e-6 * 10
    assert expected.std() > 1e-3


@torch.no_grad()
def test_in_single_precision_too(theirs: AutoencoderKLWan) -> None:
    model = WanVae(SMALL)
    fit(model, vae_names(theirs.state_dict()), Path("vae"))
    latents = torch.randn(1, 16, 21, 4, 4, generator=torch.Generator().manual_seed(2))
    expected = theirs.decode(raw(latents.double())).sample
    assert (streamed(model, latents, [3] * 7).clamp(-1, 1) - expected).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("pieces", [[1], [9], [21], [1, 4, 4], [5, 8, 4], [9, 12]], ids=str)
def test_streamed_encode_is_the_whole_clip_encode(theirs: AutoencoderKLWan, ours: WanVae, pieces: list[int]) -> None:
    frames = sum(pieces)
    clip = torch.rand(1, 3, frames, 32, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 2 - 1
    expected = theirs.encode(clip).latent_dist.mode()
    latents = encoded(ours, clip, pieces)
    assert latents.shape == (1, 16, 1 + (frames - 1) // 4, 4, 6)
    assert (raw(latents.double()) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_graphs_speak_uint8(ours: WanVae) -> None:
    latents = torch.randn(1, 16, 6, 2, 4, generator=torch.Generator().manual_seed(4))
    first, later = WanDecodeGraph(ours, True), WanDecodeGraph(ours, False)
    a, *states = first(latents[:, :, :3], *first.zero_states(latents))
    b, *_ = later(latents[:, :, 3:], *states)
    expected = (ours.decode(latents)[0][0].permute(1, 2, 3, 0).clamp(-1, 1) + 1) * 127.5
    assert a.dtype == torch.uint8
    assert (len(a), len(b)) == (9, 12)
    assert (torch.cat([a, b]).double() - expected).abs().max() <= 0.5 + 1e-4
    clip = torch.randint(0, 256, (9, 16, 32, 3), dtype=torch.uint8)
    expected, _ = ours.encode((clip.double() / 127.5 - 1).permute(3, 0, 1, 2)[None])
    assert (WanEncodeGraph(ours)(clip) - expected).abs().max() < 1e-5


def test_every_wrong_key_is_named_at_once(theirs: AutoencoderKLWan) -> None:
    state = dict(vae_names(theirs.state_dict()))
    state["decoder.head.2.bias"] = torch.zeros(4)
    del state["decoder.conv1.bias"]
    state["decoder.extra"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        fit(WanVae(SMALL), state, Path("vae.pth"))
    for word in ("vae.pth", "missing decoder.conv1.bias", "unexpected decoder.extra", "decoder.head.2.bias: found [4]"):
        assert word in str(caught.value)


@torch.no_grad()
def test_public_taehv_layout() -> None:
    """A checkpoint with all TGrow made for two frames, as published, against its decoder written out plainly."""
    config = TaehvConfig(latent_channels=4, encoder_widths=(8, 8, 8), decoder_widths=(12, 8, 8, 8))
    torch.manual_seed(0)
    state = {k: v.double() for k, v in Taehv(config).state_dict().items()}
    stages = (3, 9, 15)  # index of the first MemBlock of each stage in the flat list
    grow = f"decoder.{stages[0] + 4}.conv.weight"
    state[grow] = torch.randn(24, 12, 1, 1, dtype=torch.float64)
    model = Taehv(config)
    fit(model, public_weights(state, config), Path("taew2_1.pth"), lambda name: torch.float64)
    latents = torch.randn(1, 6, 4, 3, 5, dtype=torch.float64)

    def conv(x: Tensor, name: str, bias: bool = True) -> Tensor:
        weight = state[f"{name}.weight"]
        return torch.nn.functional.conv2d(
            x, weight, state[f"{name}.bias"] if bias else None, padding=weight.shape[-1] // 2
        )

    x = torch.tanh(latents[0] / 3) * 3  # frames are the batch
    x = conv(x, "decoder.1").relu()
    for stage, frames in zip(stages, (1, 2, 2), strict=True):
        for i in range(stage, stage + 3):
            past = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
            y = conv(torch.cat([x, past], 1), f"decoder.{i}.conv.0").relu()
            x = (conv(conv(y, f"decoder.{i}.conv.2").relu(), f"decoder.{i}.conv.4") + x).relu()
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        y = conv(x, f"decoder.{stage + 4}.conv", bias=False)
        width = x.shape[1]
        x = y[:, -width:] if frames == 1 else torch.stack([y[:, :width], y[:, width:]], 1).flatten(0, 1)
        x = conv(x, f"decoder.{stage + 5}", bias=False)
    x = conv(x.relu(), "decoder.22")
    expected = x.permute(0, 2, 3, 1).clamp(0, 1) * 255
    first, later = DecodeGraph(model, True), DecodeGraph(model)
    a, *states = first(latents[:, :3].transpose(1, 2), *first.zero_states(latents.transpose(1, 2)))
    b, *_ = later(latents[:, 3:].transpose(1, 2), *states)
    frames = torch.cat([a, b]).double()
    assert (len(a), len(b)) == (9, 12)
    assert (frames - expected[3:]).abs().max() <= 0.5 + 1e-6
