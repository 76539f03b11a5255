"""What the public decoders cost, counted from their shapes: those of Wan 2.1, and where a latent pixel is 16×16, of 2.2."""

from __future__ import annotations

from dataclasses import dataclass

from ...engines.bundle import Geometry

FOLDED_FROM = 16  # pixels a latent pixel, from which on the last 2×2 pixels are channels
# Values that the decoders' engines keep between inputs and outputs, for every latent pixel of a frame, by latent frames of a
# chunk: TensorRT-RTX 1.7's builder for FP16 (docs/measured/decoder_memory.json, full_size.json, full_size_5b.json). Of a Wan
# VAE it holds the states between all latent frames beside each other. A TAEHV was compiled at one chunk alone, and is taken
# to want the same for all; of two sizes it is the one that wants more (by a third, the 5B's by a ninth).
BETWEEN = {
    ("wan", False): {1: 135_680, 3: 369_154},
    ("wan", True): {1: 689_152, 3: 1_966_208, 8: 3_354_724},
    ("taehv", False): {3: 13_803},
    ("taehv", True): {8: 34_095},
}


@dataclass(frozen=True)
class Decoder:
    """What decoding a chunk takes. weights: of all its engines, for the first chunk's has its own; states: one set of
    them; live: the values between, for engines that take turns share their scratch memory."""

    flops: int
    weights: int
    states: int
    live: int

    @property
    def held(self) -> int:
        """Values on the device. A chunk reads one set of states and leaves the other."""
        return self.weights + 2 * self.states + self.live

    def at(self, share: float) -> Decoder:
        """The same at another size, of `share` of the pixels."""
        flops, states, live = (round(share * values) for values in (self.flops, self.states, self.live))
        return Decoder(flops, self.weights, states, live)


class _Count:
    """Adds up convolutions; sizes are those of the latents times `scale`, `time` frames to a latent frame."""

    def __init__(self, g: Geometry):
        self.area = (g.height // g.space_scale) * (g.width // g.space_scale)
        self.frames = g.chunk
        self.flops = self.weights = self.held = 0
        self.scale = self.time = 1

    def conv(self, n_in: int, n_out: int, kernel: int, memory: int = 0) -> None:
        """memory: earlier frames of its input that it keeps."""
        size, places = n_in * n_out * kernel, self.area * self.scale**2
        self.flops += 2 * size * places * self.frames * self.time
        self.weights += size
        self.held += memory * n_in * places


def decode_cost(kind: str, g: Geometry) -> Decoder:
    """Of the public decoder, for one chunk, with the first chunk's twin. kind: taehv or wan. The VAEs' 1×1 convolutions and
    their attention are left out: below two per cent at any size."""
    count, folded = _Count(g), g.space_scale >= FOLDED_FROM
    if kind == "taehv":
        _tiny(count, g.latent_channels, 12 if folded else 3)
    elif folded:
        _staged(count, g.latent_channels)
    else:
        _flat(count, g.latent_channels)
    live = count.area * _between(BETWEEN[kind, folded], g.chunk)
    return Decoder(count.flops, 2 * count.weights, count.held, round(live))


def _between(known: dict[int, int], chunk: int) -> float:
    """On the line through the two chunks that are known nearest to this one."""
    sizes = sorted(known)
    if len(sizes) == 1:
        return known[sizes[0]]
    after = min((i for i, size in enumerate(sizes) if size >= chunk), default=len(sizes) - 1)
    low, high = sizes[max(after - 1, 0)], sizes[max(after, 1)]
    return known[low] + (known[high] - known[low]) * (chunk - low) / (high - low)


def _tiny(c: _Count, channels: int, colours: int) -> None:
    """TAEHV: taew2_1 and taew2_2."""
    c.conv(channels, 256, 9)
    for n_in, n_out, grow in ((256, 128, 1), (128, 64, 2), (64, 64, 2)):
        for _ in range(3):
            c.conv(2 * n_in, n_in, 9)
            c.held += n_in * c.area * c.scale**2
            c.conv(n_in, n_in, 9)
            c.conv(n_in, n_in, 9)
        c.conv(n_in, n_in * grow, 1)
        c.scale, c.time = 2 * c.scale, grow * c.time
        c.conv(n_in, n_out, 9)
    c.conv(64, colours, 9)


def _flat(c: _Count, channels: int) -> None:
    """Wan 2.1's VAE: an up-sampler halves the channels."""
    c.conv(channels, 384, 27, 2)
    for _ in range(4):
        c.conv(384, 384, 27, 2)
    for i, (n_in, n_out) in enumerate(((384, 384), (192, 384), (192, 192), (96, 96))):
        _stage(c, n_in, n_out, n_out // 2, up=i < 3, grow=i < 2)
    c.conv(96, 3, 27, 2)


def _staged(c: _Count, channels: int) -> None:
    """Wan 2.2's: an up-sampler keeps them."""
    c.conv(channels, 1024, 27, 2)
    for _ in range(4):
        c.conv(1024, 1024, 27, 2)
    for i, (n_in, n_out) in enumerate(((1024, 1024), (1024, 1024), (1024, 512), (512, 256))):
        _stage(c, n_in, n_out, n_out, up=i < 3, grow=i < 2)
    c.conv(256, 12, 27, 2)


def _stage(c: _Count, n_in: int, n_out: int, left: int, up: bool, grow: bool) -> None:
    for j in range(3):
        c.conv(n_in if j == 0 else n_out, n_out, 27, 2)
        c.conv(n_out, n_out, 27, 2)
    if up and grow:
        c.conv(n_out, 2 * n_out, 3, 2)
        c.time *= 2
    if up:
        c.scale *= 2
        c.conv(n_out, left, 9)
