"""What a model costs at a size and a window: operations and bytes, counted from its shapes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from ...engines.bundle import Geometry, Network

Precision = Literal["fp32", "fp16", "fp8", "int8"]
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "fp8": 1, "int8": 1}
MODELS = {
    "wan2.1-1.3b": Network(dim=1536, ffn_dim=8960, heads=12, head_dim=128, layers=30, text_len=512, text_dim=4096),
    "wan2.1-14b": Network(dim=5120, ffn_dim=13824, heads=40, head_dim=128, layers=40, text_len=512, text_dim=4096),
}


@dataclass(frozen=True)
class Pass:
    """One pass of the step graph: operations by part."""

    linear: int
    self_attention: int
    cross_attention: int

    @property
    def total(self) -> int:
        return self.linear + self.self_attention + self.cross_attention


@dataclass(frozen=True)
class Memory:
    """Bytes on the device, by part. Activations are an estimate: the widest place of a block."""

    weights: int
    ring: int
    prompt: int
    decoder: int
    activations: int
    # What the pass of a smooth prompt change wants beside all that: its graph's weights, copies of the sinks, and the
    # activations of all frames of the window. 0 where `smooth` goes chunk by chunk.
    recache: int = 0

    @property
    def total(self) -> int:
        """What a stream cannot do without."""
        return sum(asdict(self).values()) - self.recache


@dataclass(frozen=True)
class Request:
    """What is to run."""

    network: Network
    geometry: Geometry
    passes: int  # denoising passes and the commit pass
    precision: Precision = "fp16"
    int8_ring: bool = False
    decoder: Literal["taehv", "wan"] = "taehv"
    decode_flops: int | None = None  # of a bundle's own decoder, in place of the public one's
    recache: Literal["window", "chunks", "none"] = "window"  # what `smooth` does
    first_passes: int | None = None  # of a first chunk with a schedule of its own, the commit pass included


def step_pass(n: Network, g: Geometry) -> Pass:
    """Operations of one pass over a full ring (two for a multiply-add)."""
    tokens, patch = g.chunk_tokens, 4 * g.latent_channels
    per_layer = 6 * n.dim * n.dim + 2 * n.dim * n.ffn_dim  # q, k, v, o, cross q and o; both halves of the FFN
    linear = 2 * tokens * (n.layers * per_layer + 2 * n.dim * patch)
    attend = 4 * tokens * n.dim * n.layers  # q·k and weights·v, per key
    return Pass(linear, attend * g.cache_tokens, attend * n.text_len)


def recache_pass(n: Network, g: Geometry) -> Pass:
    """Operations of the pass over all frames of the window, which ends with the last block's keys and values."""
    tokens, whole = g.cache_tokens, n.layers - 1
    per_layer = 6 * n.dim * n.dim + 2 * n.dim * n.ffn_dim
    linear = 2 * tokens * (whole * per_layer + 2 * n.dim * n.dim + n.dim * 4 * g.latent_channels)
    attend = 4 * tokens * n.dim * whole
    return Pass(linear, attend * g.cache_tokens, attend * n.text_len)


def recache_memory(request: Request) -> int:
    """Bytes of that pass beside a stream's own. Engines that take turns share their scratch memory."""
    if request.recache != "window":
        return 0
    n, g = request.network, request.geometry
    wide = 4 if request.precision == "fp32" else 2
    sinks = 2 * n.layers * g.sink * g.frame_tokens * n.dim * (1 if request.int8_ring else wide)
    live = live_values(n, g.cache_tokens, wide) - live_values(n, g.chunk_tokens, wide)
    matrices = (n.layers - 1) * (6 * n.dim * n.dim + 2 * n.dim * n.ffn_dim) + 2 * n.dim * n.dim
    return matrices * WEIGHT_BYTES[request.precision] + sinks + live


def live_values(n: Network, tokens: int, wide: int) -> int:
    """Bytes at the widest place of a block: the FFN's hidden values, its input and output, and the residual in float32."""
    return tokens * (n.ffn_dim + 2 * n.dim) * wide + tokens * n.dim * 4


def parameters(n: Network, g: Geometry) -> int:
    """Weights that the step and prompt graphs hold: the time embedding is baked into constants and not among them."""
    matrices = 8 * n.dim * n.dim + 2 * n.dim * n.ffn_dim
    ends = 8 * n.dim * g.latent_channels + n.text_dim * n.dim + n.dim * n.dim
    return n.layers * matrices + ends


def decode_cost(kind: str, g: Geometry) -> tuple[int, int, int]:
    """Of the public decoder, for one chunk: operations, weights, and values in its states and widest activations."""
    area = (g.height // g.space_scale) * (g.width // g.space_scale)
    frames = g.chunk
    flops = weights = held = widest = 0

    def conv(n_in: int, n_out: int, kernel: int, scale: int, times: int, memory: int = 0) -> None:
        nonlocal flops, weights, held, widest
        size = n_in * n_out * kernel
        flops += 2 * size * area * scale * scale * frames * times
        weights += size
        held += memory * n_in * area * scale * scale
        widest = max(widest, (n_in + n_out) * area * scale * scale * times)  # one latent frame after the other

    if kind == "taehv":
        conv(g.latent_channels, 256, 9, 1, 1)
        scale = time = 1
        for n_in, n_out, grow in ((256, 128, 1), (128, 64, 2), (64, 64, 2)):
            for _ in range(3):
                conv(2 * n_in, n_in, 9, scale, time)
                held += n_in * area * scale * scale
                conv(n_in, n_in, 9, scale, time)
                conv(n_in, n_in, 9, scale, time)
            conv(n_in, n_in * grow, 1, scale, time)
            scale, time = 2 * scale, grow * time
            conv(n_in, n_out, 9, scale, time)
        conv(64, 3, 9, scale, time)
        return flops, weights, held + widest
    conv(g.latent_channels, 384, 27, 1, 1, 2)
    for _ in range(4):
        conv(384, 384, 27, 1, 1, 2)
    scale = time = 1
    for i, (n_in, n_out) in enumerate(((384, 384), (192, 384), (192, 192), (96, 96))):
        for j in range(3):
            conv(n_in if j == 0 else n_out, n_out, 27, scale, time, 2)
            conv(n_out, n_out, 27, scale, time, 2)
        if i < 3:
            if i < 2:
                conv(n_out, 2 * n_out, 3, scale, time, 2)
                time *= 2
            scale *= 2
            conv(n_out, n_out // 2, 9, scale, time)
    conv(96, 3, 27, scale, time, 2)
    return flops, weights, held + widest


def memory(request: Request) -> Memory:
    """Bytes by part."""
    n, g = request.network, request.geometry
    wide = 4 if request.precision == "fp32" else 2
    ring = 2 * n.layers * g.cache_tokens * n.dim
    moving = 0 if g.sink_ema is None else 2 * n.layers * g.sink * g.frame_tokens * n.dim * 4  # a mean in float32
    _, decoder_weights, decoder_values = decode_cost(request.decoder, g)
    return Memory(
        weights=parameters(n, g) * WEIGHT_BYTES[request.precision],
        ring=ring * (1 if request.int8_ring else wide) + moving,
        prompt=2 * n.layers * n.text_len * n.dim * wide,
        decoder=(decoder_weights + decoder_values) * wide,
        activations=live_values(n, g.chunk_tokens, wide),
        recache=recache_memory(request),
    )


def decode_flops(request: Request) -> int:
    known = request.decode_flops
    return decode_cost(request.decoder, request.geometry)[0] if known is None else known
