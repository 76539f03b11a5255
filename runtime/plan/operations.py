"""`everframe plan`: what a model costs at a size and a window, and on which cards it runs in real time.

A roofline: a pass takes as long as its arithmetic at the card's peak times a factor, or as its bytes at the card's
bandwidth, whichever is longer. One factor for all cards would lie, so every class of card has a range, and the table says
where it comes from. Nothing here was measured by us on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ..engines.bundle import Geometry, Network
from ..engines.errors import UserError

Precision = Literal["fp32", "fp16", "fp8", "int8"]
WEIGHT_BYTES = {"fp32": 4, "fp16": 2, "fp8": 1, "int8": 1}
BANDWIDTH_SHARE = 0.8  # of the peak that a stream of large reads reaches


@dataclass(frozen=True)
class Device:
    """Dense peaks in TFLOP/s (TOP/s), with FP32 accumulation where the card tells it apart; GB/s; GB."""

    name: str
    fp16: float
    int8: float
    fp8: float | None
    bandwidth: float
    memory: float
    kind: str  # key of FACTORS
    source: str


# Share of the dense FP16 peak that this very workload reached, lowest and highest, and whose figure it is. Chunks of 12
# frames at 832×480 are about 141 TFLOP with a window of 12 latent frames and about 180 with 21 (docs/plan.md).
FACTORS: dict[str, tuple[float, float, str]] = {
    "hopper": (0.20, 0.25, "H100: 0.58 s (LongLive) to 0.71 s (Causal Forcing) a chunk"),
    "a100": (0.43, 0.58, "A100: 1.0 to 1.3 s a chunk (FlashDreams)"),
    "ada": (0.50, 0.71, "RTX 4090: about 1.2 s a chunk (Causal Forcing); the low end is a guess"),
    "rtx": (0.40, 0.71, "no published figure for this class; RTX 4090's and A100's as the range"),
    "jetson": (0.30, 0.60, "no published figure for this class; a guess"),
}
AMPERE, ADA, BLACKWELL = (f"NVIDIA {n} architecture whitepaper" for n in ("Ampere GA102", "Ada", "RTX Blackwell"))
ORIN = "NVIDIA Jetson Orin series data sheets: 4096 INT8 and 2048 FP16 dense operations per SM and clock"
DEVICES = (
    Device("Jetson Orin Nano 8GB (Super)", 16.7, 33.4, None, 102, 8, "jetson", ORIN + ", 8 SM at 1.02 GHz"),
    Device("Jetson Orin NX 16GB (Super)", 19.2, 38.4, None, 102, 16, "jetson", ORIN + ", 8 SM at 1.173 GHz"),
    Device("Jetson AGX Orin 64GB", 42.6, 85.2, None, 204.8, 64, "jetson", ORIN + ", 16 SM at 1.3 GHz"),
    Device("Jetson Thor T5000", 258, 517, 517, 273, 128, "jetson", "data sheet: 2070 TFLOP/s sparse FP4, halved per step"),
    Device("RTX 3060 12GB", 25.5, 102, None, 360, 12, "rtx", AMPERE),
    Device("RTX 3090", 71, 284, None, 936, 24, "rtx", AMPERE),
    Device("RTX 4060 Ti 16GB", 44.1, 176, 88.2, 288, 16, "ada", ADA),
    Device("RTX 4070", 58.3, 233, 117, 504, 12, "ada", ADA),
    Device("RTX 4080", 97.5, 390, 195, 717, 16, "ada", ADA),
    Device("RTX 4090", 165, 661, 330, 1008, 24, "ada", ADA),
    Device("RTX 5070", 61.7, 247, 123, 672, 12, "rtx", BLACKWELL),
    Device("RTX 5080", 113, 450, 225, 960, 16, "rtx", BLACKWELL),
    Device("RTX 5090", 210, 838, 419, 1792, 32, "rtx", BLACKWELL),
    Device("RTX PRO 6000 Blackwell", 504, 1007, 1007, 1792, 96, "rtx", "data sheet: 4000 TOP/s sparse FP4, halved per step"),
    Device("L4", 121, 242, 242, 300, 24, "ada", "NVIDIA L4 data sheet"),
    Device("A100 80GB SXM", 312, 624, None, 2039, 80, "a100", "NVIDIA A100 data sheet"),
    Device("H100 SXM", 989, 1979, 1979, 3350, 80, "hopper", "NVIDIA H100 data sheet"),
)  # fmt: skip

MODELS = {
    "wan2.1-1.3b": Network(dim=1536, ffn_dim=8960, heads=12, head_dim=128, layers=30, text_len=512, text_dim=4096),
}
SIZES = ((832, 480), (640, 368), (480, 272), (416, 240), (320, 192), (256, 144))


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

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


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


@dataclass(frozen=True)
class Verdict:
    """A request on a device. Seconds for one chunk: with the class's best and worst factor."""

    device: str
    best: float
    worst: float
    memory_share: float
    real_time: Literal["yes", "perhaps", "no", "too large"]
    advice: str


def step_pass(n: Network, g: Geometry) -> Pass:
    """Operations of one pass over a full ring (two for a multiply-add)."""
    tokens, patch = g.chunk_tokens, 4 * g.latent_channels
    per_layer = 6 * n.dim * n.dim + 2 * n.dim * n.ffn_dim  # q, k, v, o, cross q and o; both halves of the FFN
    linear = 2 * tokens * (n.layers * per_layer + 2 * n.dim * patch)
    attend = 4 * tokens * n.dim * n.layers  # q·k and weights·v, per key
    return Pass(linear, attend * g.cache_tokens, attend * n.text_len)


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
    _, decoder_weights, decoder_values = decode_cost(request.decoder, g)
    # The widest place of a block: the FFN's hidden values, its input and output, and the residual stream in float32.
    live = g.chunk_tokens * (n.ffn_dim + 2 * n.dim) * wide + g.chunk_tokens * n.dim * 4
    return Memory(
        weights=parameters(n, g) * WEIGHT_BYTES[request.precision],
        ring=ring * (1 if request.int8_ring else wide),
        prompt=2 * n.layers * n.text_len * n.dim * wide,
        decoder=(decoder_weights + decoder_values) * wide,
        activations=live,
    )


def chunk_seconds(request: Request, device: Device, factor: float) -> float:
    """Roofline time of a chunk: every pass and the decoder, one after the other."""
    work, parts = step_pass(request.network, request.geometry), memory(request)
    fast = {"fp32": device.fp16 / 4, "fp16": device.fp16, "fp8": device.fp8 or 0, "int8": device.int8}[
        request.precision
    ]
    if not fast:
        return math.inf
    attention = work.self_attention + work.cross_attention  # stays in FP16 in every quantised form
    arithmetic = (work.linear / fast + attention / min(fast, device.fp16)) / 1e12 / factor
    traffic = (parts.weights + parts.ring + parts.prompt + 2 * request.network.layers * parts.activations) / 1e9
    once = max(arithmetic, traffic / device.bandwidth / BANDWIDTH_SHARE)
    return request.passes * once + decode_flops(request) / (device.fp16 * 1e12 * factor)


def decode_flops(request: Request) -> int:
    known = request.decode_flops
    return decode_cost(request.decoder, request.geometry)[0] if known is None else known


def judge(request: Request, device: Device) -> Verdict:
    low, high, _ = FACTORS[device.kind]
    best, worst = (chunk_seconds(request, device, f) for f in (high, low))
    share = memory(request).total / (0.9 * device.memory * 1e9)  # a tenth is the system's
    budget = request.geometry.chunk_seconds
    real_time = "too large" if share > 1 else "yes" if worst <= budget else "perhaps" if best <= budget else "no"
    advice = "" if real_time == "yes" else advise(request, device)
    return Verdict(device.name, best, worst, share, real_time, advice)  # type: ignore[arg-type]


def advise(request: Request, device: Device) -> str:
    """The least change that makes it real time by the class's worst factor and fits."""
    low = FACTORS[device.kind][0]
    for size in SIZES:
        if size[0] * size[1] > request.geometry.width * request.geometry.height:
            continue
        for precision in dict.fromkeys((request.precision, "int8")):
            tried = replace(
                request,
                precision=precision,
                int8_ring=request.int8_ring or precision == "int8",
                geometry=request.geometry.model_copy(update={"width": size[0], "height": size[1]}),
                decode_flops=None,
            )
            fits = memory(tried).total <= 0.9 * device.memory * 1e9
            if fits and chunk_seconds(tried, device, low) <= tried.geometry.chunk_seconds:
                changed = [] if precision == request.precision else [precision.upper()]
                same = size == (request.geometry.width, request.geometry.height)
                return " ".join([*([] if same else [f"{size[0]}x{size[1]}"]), *changed])
    return "fewer frames per second or fewer steps"


def find_devices(names: Sequence[str]) -> list[Device]:
    """Devices whose names contain one of the given ones. Raises UserError for a name that matches none."""
    for name in names:
        if not any(name.casefold() in d.name.casefold() for d in DEVICES):
            raise UserError(f"--device {name!r}: not in the table; there are: {', '.join(d.name for d in DEVICES)}")
    return [d for d in DEVICES if not names or any(name.casefold() in d.name.casefold() for name in names)]


def record(request: Request, verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Everything the plan says, for JSON."""
    work = step_pass(request.network, request.geometry)
    return {
        "geometry": request.geometry.model_dump(),
        "network": request.network.model_dump(),
        "precision": request.precision,
        "passes": request.passes,
        "flops_per_pass": asdict(work) | {"total": work.total},
        "flops_decode": decode_flops(request),
        "memory": asdict(memory(request)) | {"total": memory(request).total},
        "devices": [asdict(v) for v in verdicts],
        "factors": FACTORS,
    }
