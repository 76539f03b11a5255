"""The Wan 2.2 VAE against diffusers' AutoencoderKLWan with the 2.2 configuration and the same random weights."""

from __future__ import annotations

# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportOptionalMemberAccess=false
# (diffusers' types do not tell what its calls return)
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from everframe.export.families import MEAN_22, STD_22
from everframe.export.names import vae_names
from everframe.export.sources import fit, single
from everframe.export.vaes import load_vae
from everframe.export.wanvae import WanDecodeGraph, WanEncodeGraph, WanVaeConfig
from everframe.export.wanvae22 import WAN_22_VAE, Wan22Vae, averaged, duplicated

from wanfiles import encoded, wan22_vae

SMALL = WanVaeConfig(dim=8, decoder_dim=12, latent_channels=48, mean=MEAN_22, std=STD_22, patch=2)


@pytest.fixture(scope="module")
def theirs() -> AutoencoderKLWan:
    torch.manual_seed(0)
    model = wan22_vae(base_dim=8, decoder_base_dim=12).double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "gamma" in name:
                p.mul_(1 + 0.2 * torch.randn_like(p))
    return model


@pytest.fixture(scope="module")
def ours(theirs: AutoencoderKLWan) -> Wan22Vae:
    model = Wan22Vae(SMALL)
    fit(model, vae_names(theirs.state_dict()), Path("vae"), lambda name: torch.float64)
    return model


def raw(latents: Tensor) -> Tensor:
    """The pipeline's step before diffusers' decode."""
    mean, std = (torch.tensor(v).double().view(1, -1, 1, 1, 1) for v in (MEAN_22, STD_22))
    return latents * std + mean


@torch.no_grad()
@pytest.mark.parametrize("sizes", [[3] * 2, [1] * 5, [2, 3, 1]])
def test_streamed_decode_is_the_whole_clip_decode(theirs: AutoencoderKLWan, ours: Wan22Vae, sizes: list[int]) -> None:
    latents = torch.randn(1, 48, sum(sizes), 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = theirs.decode(raw(latents)).sample
    states, parts = ours.zero_states(latents), []
    for i, part in enumerate(latents.split(sizes, 2)):
        frames, states = ours.decode(part, states, first=i == 0)
        assert all(s.shape == z.shape for s, z in zip(states, ours.zero_states(latents), strict=True))
        parts.append(frames)
    frames = torch.cat(parts, 2)
    assert frames.shape == (1, 3, 4 * sum(sizes) - 3, 32, 48)
    assert (frames.clamp(-1, 1) - expected).abs().max() < 1e-5  # mean and std are float32 constants
    assert expected.std() > 1e-3
    assert (expected.abs() < 1).double().mean() > 0.5


@torch.no_grad()
def test_in_single_precision_from_the_published_file(theirs: AutoencoderKLWan, tmp_path: Path) -> None:
    """`Wan2.2_VAE.pth` under its own names, and diffusers' folder: the graphs against the whole clip."""
    theirs.float().save_pretrained(tmp_path / "vae")
    torch.save(vae_names(theirs.state_dict()), tmp_path / "Wan2.2_VAE.pth")
    theirs.double()
    latents = torch.randn(1, 48, 4, 2, 2, generator=torch.Generator().manual_seed(2))
    expected = (theirs.decode(raw(latents.double())).sample[0].permute(1, 2, 3, 0) + 1) * 127.5
    for name in ("vae", "Wan2.2_VAE.pth"):
        decoders, _, channels = load_vae(tmp_path / name, single)
        first, later = decoders["decode_first"], decoders["decode"]
        assert isinstance(first, WanDecodeGraph)
        a, *states = first(latents[:, :, :2], *first.zero_states(latents))
        b, *_ = later(latents[:, :, 2:], *states)
        assert channels == 48
        assert (len(a), len(b)) == (5, 8)
        assert a.dtype == torch.uint8
        assert (torch.cat([a, b]).double() - expected).abs().max() < 0.5 + 1e-2


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 13])
def test_encode(theirs: AutoencoderKLWan, ours: Wan22Vae, frames: int) -> None:
    clip = torch.randint(0, 256, (frames, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    expected = theirs.encode((clip.double() / 127.5 - 1).permute(3, 0, 1, 2)[None]).latent_dist.mode()
    pieces = [min(5, frames), *[4] * ((frames - 5) // 4)]
    streamed = encoded(ours, (clip.double() / 127.5 - 1).permute(3, 0, 1, 2)[None], pieces)
    for latents in (WanEncodeGraph(ours)(clip), streamed):
        assert latents.shape == (1, 48, 1 + (frames - 1) // 4, 2, 3)
        assert (raw(latents.double()) - expected).abs().max() < 1e-5


def test_the_ways_around_a_stage_by_index() -> None:
    """Each output value by the published formula."""
    x = torch.randn(1, 8, 3, 4, 6)
    for channels, time in ((8, 2), (4, 1)):
        y = duplicated(x, channels, time, False)
        r = channels * 4 * time // 8
        for o, t, i, j in ((0, 0, 0, 0), (channels - 1, 3 * time - 1, 7, 11), (2, 1, 3, 4)):
            source = (o * 4 * time + 4 * (t % time) + 2 * (i % 2) + j % 2) // r
            assert y[0, o, t, i, j] == x[0, source, t // time, i // 2, j // 2]
        assert torch.equal(duplicated(x, channels, time, True), y[:, :, time - 1 :])
    y = averaged(x, 16, 2, 2)  # four frames: a zero one, then three
    block = torch.cat([torch.zeros(8, 1, 4, 6), x[0]], 1)[:, 2:4, 2:4, 4:6].reshape(-1)  # channel, frame, row, column
    assert torch.allclose(y[0, :, 1, 1, 2], block.view(16, -1).mean(1))


def test_the_public_layout() -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in Wan22Vae(WAN_22_VAE).state_dict().items()}
    assert shapes["decoder.conv1.weight"] == (1024, 48, 3, 3, 3)
    assert shapes["decoder.middle.1.to_qkv.weight"] == (3072, 1024, 1, 1)
    assert shapes["decoder.upsamples.0.upsamples.3.time_conv.weight"] == (2048, 1024, 3, 1, 1)
    assert shapes["decoder.upsamples.2.upsamples.0.shortcut.weight"] == (512, 1024, 1, 1, 1)
    assert shapes["decoder.upsamples.2.upsamples.3.resample.1.weight"] == (512, 512, 3, 3)
    assert "decoder.upsamples.2.upsamples.3.time_conv.weight" not in shapes
    assert shapes["decoder.upsamples.3.upsamples.0.shortcut.weight"] == (256, 512, 1, 1, 1)
    assert shapes["decoder.head.0.gamma"] == (256, 1, 1, 1)
    assert shapes["decoder.head.2.weight"] == (12, 256, 3, 3, 3)
    decoder = sum(torch.Size(v).numel() for k, v in shapes.items() if k.startswith("decoder."))
    assert round(decoder / 1e6) == 555
