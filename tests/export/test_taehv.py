"""The streaming autoencoder against a direct whole-clip computation, layer by layer with plain convolutions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from everframe.engines.errors import UserError
from everframe.engines.progress import Report
from everframe.export.sources import single
from everframe.export.taehv import Taehv, TaehvConfig
from everframe.export.taehvgraphs import DecodeGraph, EncodeGraph
from everframe.export.vaes import load_vae
from everframe.export.wanvae import MEAN, STD

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


def test_lighttae_takes_latents_as_the_wan_vae_makes_them(tmp_path: Path) -> None:
    """Decoded: the described network on latents·std + mean. Encoded: (its latents − mean)/std."""
    torch.manual_seed(0)
    config = TaehvConfig(encoder_widths=(6, 8, 8), decoder_widths=(12, 8, 6, 6))
    theirs = Taehv(config)
    theirs.decoder[-1].weight.data.mul_(10)  # type: ignore[operator, union-attr]
    theirs.decoder[-1].bias.data.fill_(0.5)  # type: ignore[operator, union-attr]
    grow = [k for k in theirs.state_dict() if k.startswith("decoder") and k.endswith("conv.weight")]
    state = {k: torch.cat([v, v]) if k == grow[0] else v for k, v in theirs.state_dict().items()}  # as published
    torch.save(state, tmp_path / "lighttaew2_1.pth")
    shutil.copy(tmp_path / "lighttaew2_1.pth", tmp_path / "taew2_1.pth")
    shutil.copy(tmp_path / "lighttaew2_1.pth", tmp_path / "tiny.pth")
    mean, std = (torch.tensor(v).double().view(1, -1, 1, 1) for v in (MEAN, STD))
    latents = torch.randn(3, 16, 2, 3)
    clip = torch.randint(0, 256, (9, 16, 24, 3), dtype=torch.uint8)
    for name, kind, light in (
        ("lighttaew2_1.pth", "auto", True),
        ("LightTAE-w2_1.pth", "auto", True),
        ("taew2_1.pth", "auto", False),
        ("tiny.pth", "lighttae", True),
        ("tiny.pth", "taehv", False),
        ("lighttaew2_1.pth", "taehv", False),
        ("taew2_1.pth", "lighttae", True),
    ):
        if not (tmp_path / name).exists():
            shutil.copy(tmp_path / "tiny.pth", tmp_path / name)
        lines: list[str] = []
        decoders, encoder, channels = load_vae(tmp_path / name, single, kind, Report(line=lines.append))  # type: ignore[arg-type]
        assert channels == 16
        assert len(lines) == (light and kind == "auto")
        decode = decoders["decode"]
        assert isinstance(decode, DecodeGraph)
        raw, other = (latents.double() * std + mean, latents.double())[:: 1 if light else -1]
        expected, wrong = (
            reference_decode({k: v.double() for k, v in theirs.state_dict().items()}, config, x) for x in (raw, other)
        )
        assert (expected.clamp(0, 1) - wrong.clamp(0, 1)).abs().max() > 0.02  # five grey levels
        with torch.no_grad():
            x = latents.transpose(0, 1)[None]
            got = decode(x, *decode.zero_states(x))[0].permute(0, 3, 1, 2)
            assert (got - 255 * expected.clamp(0, 1)).abs().max() < 0.51
            plain = EncodeGraph(theirs)(clip).double()
            wanted = (plain - mean[..., None]) / std[..., None] if light else plain
            assert (encoder(clip).double() - wanted).abs().max() < 1e-5


def test_no_lighttae_has_the_decoder_of_the_super_variant(tmp_path: Path) -> None:
    torch.save(Taehv(TaehvConfig(16, (8, 8, 8), (16, 8, 8, 8), deep=True)).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="super variant; expected --vae-kind taehv"):
        load_vae(tmp_path / "x.pth", single, "lighttae")


def test_a_folder_is_known_by_the_file_in_it(tmp_path: Path) -> None:
    """LightTAE's and TAEHV's tensors are alike."""
    state = Taehv(TaehvConfig(encoder_widths=(8, 8, 8), decoder_widths=(16, 8, 8, 8))).state_dict()
    for folder, name, light in (("taehv", "lighttaew2_1.pth", True), ("light", "taew2_1.pth", False)):
        (tmp_path / folder).mkdir()
        torch.save(state, tmp_path / folder / name)
        lines: list[str] = []
        load_vae(tmp_path / folder, single, "auto", Report(line=lines.append))
        assert len(lines) == light


@pytest.mark.parametrize("name", ["taehv.pth", "TAEHV1_5.pth", "taecvx.pth", "taeltx_2.pth", "lighttaehy1_5.pth"])
def test_another_models_tiny_autoencoder_is_not_taken_by_its_tensors(tmp_path: Path, name: str) -> None:
    """HunyuanVideo's has those of Wan 2.1's, to the shape."""
    torch.save(Taehv(TaehvConfig(encoder_widths=(8, 8, 8), decoder_widths=(16, 8, 8, 8))).state_dict(), tmp_path / name)
    (tmp_path / "taew2_1").mkdir()
    shutil.copy(tmp_path / name, tmp_path / "taew2_1")
    for path in (tmp_path / name, tmp_path / "taew2_1"):
        with pytest.raises(
            UserError, match=rf"by the name {name} HunyuanVideo's or another .*; expected taew2_1"
        ) as caught:
            load_vae(path, single)
        assert "\n" not in str(caught.value)
        assert load_vae(path, single, "taehv")[2] == 16


def test_a_tiny_autoencoder_of_either_kind(tmp_path: Path) -> None:
    torch.save(Taehv(TaehvConfig(encoder_widths=(6, 8, 8))).state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(UserError, match="--vae-kind taehv or --vae-kind lighttae"):
        load_vae(tmp_path / "tiny.pth", single)
    with pytest.raises(UserError, match=r"--vae-kind wan: .* is a TAEHV or LightTAE"):
        load_vae(tmp_path / "tiny.pth", single, "wan")
