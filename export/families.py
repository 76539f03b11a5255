"""What members of the Wan family differ in beside their widths: latents, autoencoder, sampler, and what a published causal
model of each was trained with. Everything that a checkpoint does not say itself is here, and nowhere else.

Numbers of the 5B: its VAE's means and deviations, and LongLive 2.0's configuration (NVlabs/LongLive, `main`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SHOT_PREFIX = "The scene transitions. "  # LongLive 2.0's mark of the first chunk of a shot; it stays in what is encoded
SHOT_OFFSET = 8  # latent frames by which positions jump at a cut there
Sampler = Literal["renoise", "unipc"]  # see export.schedule

# Per latent channel, of the raw latents of the public VAEs; the transformers work on (raw − mean)/std.
MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
MEAN_22 = (
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
    0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
    -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
    -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
)  # fmt: skip
STD_22 = (
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
    0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
    0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """Numbers that a generator's latent channels tell; frames are latent frames. From `size` on: defaults of an export."""

    name: str
    latent_channels: int
    space_scale: int  # pixels per latent pixel
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sampler: Sampler
    shots: bool  # a cut begins a shot of the same stream, see engines.bundle.Shots
    recache: Literal["window", "chunks", "none"]  # what a smooth prompt change does
    size: str
    fps: int
    chunk: int
    window: int
    sink: int


WAN_21 = Family("wan2.1", 16, 8, MEAN, STD, "renoise", False, "window", "832x480", 16, 3, 12, 3)
WAN_22 = Family("wan2.2-5b", 48, 16, MEAN_22, STD_22, "unipc", True, "none", "1280x704", 24, 8, 32, 8)
FAMILIES = {family.name: family for family in (WAN_21, WAN_22)}


def family_of(latent_channels: int) -> Family | None:
    """The family whose latents have so many channels; None for none that is known."""
    return next((f for f in FAMILIES.values() if f.latent_channels == latent_channels), None)
