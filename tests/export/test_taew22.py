"""taew2_2 and taew2_2_super against their networks written out plainly, from checkpoints in the public layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from everframe.export.sources import single
from everframe.export.taehv import Taehv, TaehvConfig
from everframe.export.vaes import load_vae

PLAIN = TaehvConfig(48, (6, 6, 6), (12, 8, 6, 6), patch=2)
SUPER = TaehvConfig(48, (6, 6, 6), (16, 12, 8, 6), patch=2, deep=True)


def published(config: TaehvConfig, file: Path) -> dict[str, Tensor]:
    """A random checkpoint, every TGrow made for two frames."""
    torch.manual_seed(0)
    model = Taehv(config)
    model.decoder[-1].weight.data.mul_(10)  # type: ignore[operator, union-attr]
    model.decoder[-1].bias.data.fill_(0.5)  # type: ignore[operator, union-attr]
    state = dict(model.state_dict())
    state["decoder.7.conv.weight"] = torch.cat(2 * [state["decoder.7.conv.weight"]])
    state["decoder.7.conv.weight"][: len(state["decoder.7.conv.weight"]) // 2].normal_()  # the half that is not taken
    torch.save(state, file)
    return {k: v.double() for k, v in state.items()}


def convolved(state: dict[str, Tensor], name: str, x: Tensor, groups: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2, groups=groups)


def before(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def grown(state: dict[str, Tensor], name: str, x: Tensor, frames: int) -> Tensor:
    y = convolved(state, name, x)
    return y[:, -x.shape[1] :] if frames == 1 else y.unflatten(1, (frames, -1)).flatten(0, 1)


def shuffled(x: Tensor) -> Tensor:
    """Channel 4c + 2i + j is colour c at row i and column j of the block."""
    n, c, h, w = x.shape
    out = torch.empty(n, c // 4, 2 * h, 2 * w, dtype=x.dtype)
    for i in range(2):
        for j in range(2):
            out[:, :, i::2, j::2] = x[:, 2 * i + j :: 4]
    return out


def plain_decode(state: dict[str, Tensor], latents: Tensor) -> Tensor:
    x = convolved(state, "decoder.1", torch.tanh(latents / 3) * 3).relu()
    for stage, frames in ((3, 1), (9, 2), (15, 2)):
        for i in range(stage, stage + 3):
            y = convolved(state, f"decoder.{i}.conv.0", torch.cat([x, before(x)], 1)).relu()
            y = convolved(state, f"decoder.{i}.conv.2", y).relu()
            x = (convolved(state, f"decoder.{i}.conv.4", y) + x).relu()
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = convolved(state, f"decoder.{stage + 5}", grown(state, f"decoder.{stage + 4}.conv", x, frames))
    return shuffled(convolved(state, "decoder.22", x.relu()))


def super_decode(state: dict[str, Tensor], latents: Tensor) -> Tensor:
    x = convolved(state, "decoder.0", latents)
    for stage, frames in ((1, 1), (8, 2), (15, 2)):
        for i in range(stage, stage + 3):
            y = convolved(state, f"decoder.{i}.conv.0", torch.cat([x, before(x)], 1), groups=2 * x.shape[1])
            y = convolved(state, f"decoder.{i}.conv.1", y).relu()
            x = x + convolved(state, f"decoder.{i}.conv.3", y)
        x = shuffled(convolved(state, f"decoder.{stage + 3}", x).relu())
        x = grown(state, f"decoder.{stage + 6}.conv", x, frames)
    return shuffled(convolved(state, "decoder.22", x))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "config", "decode"),
    [("taew2_2.pth", PLAIN, plain_decode), ("taew2_2_super.pth", SUPER, super_decode)],
)
def test_the_graphs_are_the_described_network(tmp_path: Path, name: str, config: TaehvConfig, decode) -> None:
    state = published(config, tmp_path / name)
    decoders, encoder, channels = load_vae(tmp_path / name, single)
    assert channels == 48
    latents = torch.randn(5, 48, 2, 3)
    expected = decode(state, latents.double()).permute(0, 2, 3, 1).clamp(0, 1) * 255
    first, later = decoders["decode_first"], decoders["decode"]
    chunk = latents.transpose(0, 1)[None]
    a, *states = first(chunk[:, :, :3], *first.zero_states(chunk))  # type: ignore[operator]
    b, *_ = later(chunk[:, :, 3:], *states)
    assert (len(a), len(b)) == (9, 8)
    assert a.shape[1:] == (32, 48, 3)
    assert (torch.cat([a, b]).double() - expected[3:]).abs().max() < 0.51
    assert expected.std() > 5
    clip = torch.randint(0, 256, (1, 32, 48, 3), dtype=torch.uint8)
    x = (clip.double() / 255).permute(0, 3, 1, 2).expand(4, -1, -1, -1)  # what is not shown was like the first frame
    x = torch.stack([x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], 1)
    x = convolved(state, "encoder.0", x).relu()
    for stage, frames in ((2, 2), (7, 2), (12, 1)):
        x = convolved(state, f"encoder.{stage}.conv", x.unflatten(0, (-1, frames)).flatten(1, 2))
        x = F.conv2d(x, state[f"encoder.{stage + 1}.weight"], padding=1, stride=2)
        for i in range(stage + 2, stage + 5):
            y = convolved(state, f"encoder.{i}.conv.0", torch.cat([x, before(x)], 1)).relu()
            y = convolved(state, f"encoder.{i}.conv.2", y).relu()
            x = (convolved(state, f"encoder.{i}.conv.4", y) + x).relu()
    x = convolved(state, "encoder.17", x)
    assert (encoder(clip)[0].transpose(0, 1) - x).abs().max() < 1e-5


def test_the_public_layout() -> None:
    """Names and shapes of the two files, as published."""
    shapes = {k: tuple(v.shape) for k, v in Taehv(TaehvConfig(48, patch=2)).state_dict().items()}
    assert shapes["decoder.1.weight"] == (256, 48, 3, 3)
    assert shapes["decoder.22.weight"] == (12, 64, 3, 3)
    assert shapes["encoder.0.weight"] == (64, 12, 3, 3)
    assert shapes["encoder.17.weight"] == (48, 64, 3, 3)
    config = TaehvConfig(48, decoder_widths=(512, 256, 128, 64), patch=2, deep=True)
    shapes = {k: tuple(v.shape) for k, v in Taehv(config).state_dict().items()}
    assert shapes["decoder.0.weight"] == (512, 48, 1, 1)
    assert shapes["decoder.1.conv.0.weight"] == (1024, 1, 7, 7)
    assert shapes["decoder.1.conv.1.weight"] == (2048, 1024, 1, 1)
    assert shapes["decoder.1.conv.3.weight"] == (512, 2048, 1, 1)
    assert shapes["decoder.4.weight"] == (1024, 512, 3, 3)
    assert shapes["decoder.14.conv.weight"] == (256, 128, 1, 1)
    assert shapes["decoder.22.weight"] == (12, 64, 3, 3)
