"""What a model costs at a size and a window: operations and bytes, counted from its shapes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from ...engines.bundle import Geometry, Network
from .decoders import Decoder, decode_cost

Precision = Literal["fp32", "fp16", "fp8", "int8", "int8-weights", "int4-weights"]
# Of the step graph's linear layers; the prompt graph's are never quantised. Where weights alone are quantised the arithmetic
# is FP16's. Four bits share a scale of FP16 among 128 weights.
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "fp8": 1, "int8": 1, "int8-weights": 1, "int4-weights": 0.5 + 2 / 128}
# Scratch memory, which engines that take turns share, by TensorRT-RTX 1.7's builder for the 1.3B at 320×192 and 832×480 and
# the 5B at 640×352 and 1280×704 (docs/measured/full_size.json, full_size_5b.json): of the step engine 1.9 to 2.25 times its
# widest place, of the prompt engine 1.21 to 1.25 times the keys and values that it makes. Of the pass over the whole window
# no engine of that size was compiled: it is taken to be as the step engine.
ROOM, PROMPT_ROOM = 2.1, 1.25
WAN_1_3B, WAN_14B, WAN_5B = "wan2.1-1.3b", "wan2.1-14b", "wan2.2-5b"
MODELS = {
    WAN_1_3B: Network(dim=1536, ffn_dim=8960, heads=12, head_dim=128, layers=30, text_len=512, text_dim=4096),
    WAN_14B: Network(dim=5120, ffn_dim=13824, heads=40, head_dim=128, layers=40, text_len=512, text_dim=4096),
    WAN_5B: Network(dim=3072, ffn_dim=14336, heads=24, head_dim=128, layers=30, text_len=512, text_dim=4096),
}
# As their published causal models were trained; what a request does not say.
_WAN_21 = {"width": 832, "height": 480, "fps": 16, "latent_channels": 16, "chunk": 3, "window": 12, "sink": 3}
GEOMETRIES: dict[str, dict[str, int]] = {
    WAN_1_3B: _WAN_21,
    WAN_14B: _WAN_21,
    WAN_5B: {"width": 1280, "height": 704, "fps": 24, "latent_channels": 48, "chunk": 8, "window": 32, "sink": 8}
    | {"space_scale": 16},
}
NO_RECACHE = {WAN_5B}  # a prompt change makes nothing again


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
    """Bytes on the device, by part. Activations are what TensorRT-RTX's builder asks for: see `ROOM`."""

    weights: int
    ring: int
    prompt: int
    decoder: int
    activations: int
    post: int = 0  # the graphs behind the decoder: weights, values and the frames that they hand on
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
    following: bool = False  # sinks follow the window: beside an INT8 ring their keys stand in floats too
    decoder: Literal["taehv", "wan"] = "taehv"
    own_decoder: Decoder | None = None  # a bundle's, in place of the public one
    recache: Literal["window", "chunks", "none"] = "window"  # what `smooth` does
    post_flops: dict[str, int] = field(default_factory=dict)  # a chunk's, of the graphs behind the decoder
    post_bytes: int = 0  # theirs on the device
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
    wide = wide_of(request.precision)
    sinks = 2 * n.layers * g.sink * g.frame_tokens * n.dim * (1 if request.int8_ring else wide)
    live = max(0, round(ROOM * live_values(n, g.cache_tokens, wide)) - scratch(request))
    matrices = (n.layers - 1) * (6 * n.dim * n.dim + 2 * n.dim * n.ffn_dim) + 2 * n.dim * n.dim
    return round(matrices * WEIGHT_BYTES[request.precision]) + sinks + live


def live_values(n: Network, tokens: int, wide: int) -> int:
    """Bytes at the widest place of a block: the FFN's hidden values, its input and output, and the residual in float32."""
    return tokens * (n.ffn_dim + 2 * n.dim) * wide + tokens * n.dim * 4


def prompt_values(n: Network) -> int:
    """A prompt's keys and values, of all blocks."""
    return 2 * n.layers * n.text_len * n.dim


def scratch(request: Request) -> int:
    """Bytes that the step engine and the prompt engine work in by turns."""
    n, wide = request.network, wide_of(request.precision)
    step = ROOM * live_values(n, request.geometry.chunk_tokens, wide)
    return round(max(step, PROMPT_ROOM * prompt_values(n) * wide))


def step_parameters(n: Network, g: Geometry) -> int:
    """Weights that the step graph holds: the time embedding is baked into constants and not among them."""
    return n.layers * (6 * n.dim * n.dim + 2 * n.dim * n.ffn_dim) + 8 * n.dim * g.latent_channels


def prompt_parameters(n: Network) -> int:
    """Weights that the prompt graph holds: every block's keys and values of the prompt, and the text embedding."""
    return n.layers * 2 * n.dim * n.dim + n.text_dim * n.dim + n.dim * n.dim


def wide_of(precision: Precision) -> int:
    """Bytes of a number that is not quantised."""
    return 4 if precision == "fp32" else 2


def step_weights(request: Request) -> int:
    """Bytes of the step graph's weights, which every pass reads."""
    return round(step_parameters(request.network, request.geometry) * WEIGHT_BYTES[request.precision])


def memory(request: Request) -> Memory:
    """Bytes by part."""
    n, g = request.network, request.geometry
    wide = wide_of(request.precision)
    ring = 2 * n.layers * g.cache_tokens * n.dim
    turned = n.layers * g.sink * g.frame_tokens * n.dim * wide if request.following and request.int8_ring else 0
    moving = 0 if g.sink_ema is None else 2 * n.layers * g.sink * g.frame_tokens * n.dim * 4  # a mean in float32
    return Memory(
        weights=step_weights(request) + prompt_parameters(n) * wide,
        ring=ring * (1 if request.int8_ring else wide) + turned + moving,
        prompt=prompt_values(n) * wide,
        decoder=decoder_of(request).held * wide,
        activations=scratch(request),
        post=request.post_bytes,
        recache=recache_memory(request),
    )


def decode_flops(request: Request) -> int:
    """A chunk's, from its latent to its frames as they are shown."""
    return decoder_of(request).flops + sum(request.post_flops.values())


def decoder_of(request: Request) -> Decoder:
    """The bundle's, or the public one's."""
    return request.own_decoder or decode_cost(request.decoder, request.geometry)
