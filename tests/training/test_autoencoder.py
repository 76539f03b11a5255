"""The autoencoder that starts from a narrower one, and the losses that it is trained by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from everframe.export.taehv import Taehv, TaehvConfig

from losses import LEVEL, STEADY, motion_loss, pixel_loss, steadiness_loss, texture_loss
from widen import initialise, widen

NARROW = TaehvConfig(latent_channels=4, encoder_widths=(6, 8, 8), decoder_widths=(12, 8, 6, 6), depth=1, lead=0)
WIDE = TaehvConfig(latent_channels=4, encoder_widths=(8, 8, 14), decoder_widths=(16, 10, 6, 9), depth=1, lead=0)


def test_widened_it_computes_the_same() -> None:
    torch.manual_seed(0)
    narrow, wide = Taehv(NARROW), Taehv(WIDE)
    initialise(wide)
    widen(wide, narrow.state_dict())
    frames = torch.rand(1, 12, 3, 16, 24)
    latents, states = narrow.encode(frames)
    again, _ = wide.encode(frames)
    assert torch.allclose(latents, again, atol=1e-5)
    assert torch.allclose(narrow.decode(latents)[0], wide.decode(latents)[0], atol=1e-5)
    assert len(states) == 3


def test_the_new_channels_learn() -> None:
    torch.manual_seed(0)
    wide = Taehv(WIDE)
    initialise(wide)
    widen(wide, Taehv(NARROW).state_dict())
    out, _ = wide.decode(wide.encode(torch.rand(1, 8, 3, 16, 24))[0])
    out.square().mean().backward()
    last = wide.decoder[-1].weight.grad
    assert isinstance(last, torch.Tensor)
    assert (last[:, 6:].abs().amax((0, 2, 3)) > 0).all()


def clip(seed: int = 0) -> torch.Tensor:
    """Noise so strong that a grey level is nothing beside it."""
    generator = torch.Generator().manual_seed(seed)
    return 0.5 + 2 * torch.randn(2, 6, 3, 64, 64, generator=generator)


def test_no_loss_where_nothing_is_lost() -> None:
    true = clip()
    assert texture_loss(true, true) == 0
    assert motion_loss(true, true) == 0
    assert steadiness_loss(true, true) == 0
    assert pixel_loss(true, true).shape == (2, 6)
    assert pixel_loss(true, true).sum() == 0


def test_texture_counts_energy_not_phase() -> None:
    true, other = clip(0), clip(1)  # as much noise, at other places
    soft = F.avg_pool2d(true.flatten(0, 1), 3, 1, 1).unflatten(0, (2, 6))
    assert texture_loss(other, true) < 0.4 * texture_loss(soft, true)
    assert pixel_loss(other, true).mean() > pixel_loss(soft, true).mean()


def test_texture_of_half_the_amplitude() -> None:
    true = clip()
    assert texture_loss(0.5 + 0.5 * (true - 0.5), true).item() == pytest.approx(3 * 0.5, abs=0.05)  # three octaves


def test_a_still_has_lost_its_motion() -> None:
    true = clip()
    still = true[:, :1].expand_as(true)
    assert motion_loss(still, true).item() == pytest.approx(2, abs=0.05)  # two octaves, all of each
    assert texture_loss(still, true) < 0.6


def test_what_drifts_must_not_halt_and_jump() -> None:
    """Pictures that brighten by two grey levels a frame, and the same drawn in jumps of four every second frame: every
    difference is two levels off, in every octave."""
    frames = torch.arange(9.0).view(1, 9, 1, 1, 1) * torch.ones(1, 1, 3, 64, 96)
    drifting, jumping = 2 * LEVEL * frames, 4 * LEVEL * (frames / 2).floor()
    assert steadiness_loss(jumping, drifting).item() == pytest.approx(STEADY * 2 / (2 + 1), rel=1e-3)


def test_what_stands_still_must_not_tremble() -> None:
    """The same tremble beside what moves by much is little."""
    true = clip(0)
    still = true[:, :1].expand_as(true)
    tremble = 0.02 * torch.randn(true.shape, generator=torch.Generator().manual_seed(1))
    assert steadiness_loss(still + tremble, still) > 20 * steadiness_loss(true + tremble, true)


def test_the_wrong_way_is_worse_than_standstill_and_a_fine_tremble_counts_in_its_octave_alone() -> None:
    true = clip(0)
    wrong, still = true.flip(1), true[:, :1].expand_as(true)
    assert steadiness_loss(wrong, true) > 1.3 * steadiness_loss(still, true)
    flat = torch.full((1, 2, 3, 64, 96), 0.5)
    board = (-1.0) ** (torch.arange(64)[:, None] + torch.arange(96))  # of mean 0 in every cell of two pixels by two
    turned = torch.stack([board, -board])[None, :, None].expand(1, 2, 3, 64, 96)
    brighter = torch.tensor([0.0, 2]).view(1, 2, 1, 1, 1)
    one, many = (steadiness_loss(flat + LEVEL * by, flat).item() for by in (turned, brighter))
    assert one == pytest.approx(2, rel=1e-3)
    assert many == pytest.approx(2 * STEADY, rel=1e-3)


def test_gaudy_is_not_grey() -> None:
    """The same energy in every channel of RGB, once together and once apart."""
    grey = clip()[:, :, :1].expand(-1, -1, 3, -1, -1)
    assert texture_loss(clip(1), grey) > 1.5
    assert texture_loss(clip(1)[:, :, :1].expand_as(grey), grey) < 0.6
