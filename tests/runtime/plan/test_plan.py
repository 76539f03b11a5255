"""The planner's counts against torch's flop counter, against the exported graphs, and against buffers as allocated."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from everframe.engines.bundle import Bundle, Geometry, Network, write_manifest
from everframe.engines.cost import Held, graph_flops, graph_memory
from everframe.engines.errors import UserError
from everframe.export.graphs import PromptGraph, Ring, StepGraph
from everframe.export.post import add
from everframe.export.schedule import Schedule
from everframe.export.taehv import Taehv, TaehvConfig
from everframe.export.wan import Wan, WanConfig
from everframe.export.wanvae import WanVae, WanVaeConfig
from everframe.export.wanvae22 import WAN_22_VAE, Wan22Vae
from everframe.runtime import Stream
from everframe.runtime.cli.app import app
from everframe.runtime.plan.devices import CLASSES, DEVICES
from everframe.runtime.plan.operations import (
    MODELS,
    Request,
    decode_cost,
    decode_flops,
    memory,
    prompt_parameters,
    recache_pass,
    step_parameters,
    step_pass,
    step_weights,
)
from everframe.runtime.plan.request import decoder_in, of_bundle, of_model
from everframe.runtime.plan.roofline import SIZES, judge, pass_seconds

from helpers import with_int8_ring
from postfiles import smooth_file, upscale_file

FULL = Geometry(width=832, height=480, fps=16, latent_channels=16, chunk=3, sink=3, window=12)
SMALL = Geometry(width=64, height=48, fps=16, latent_channels=16, chunk=3, sink=3, window=12)
HD = Geometry(width=1280, height=704, fps=24, latent_channels=48, space_scale=16, chunk=8, sink=8, window=32)
NETWORK = Network(dim=48, ffn_dim=80, heads=2, head_dim=24, layers=3, text_len=20, text_dim=30)


def eager_step() -> tuple[StepGraph, tuple]:
    n, g = NETWORK, SMALL
    model = Wan(WanConfig(n.dim, n.ffn_dim, n.heads, n.layers, g.latent_channels, n.text_dim, n.text_len))
    step = StepGraph(model, Schedule(), Ring(g.chunk, g.sink, g.window, g.height // 16, g.width // 16))
    latent, table = (
        torch.zeros(g.latent_shape),
        torch.zeros(n.heads, g.chunk, (n.head_dim - 4 * (n.head_dim // 6)) // 2),
    )
    ring = [torch.zeros(1, n.heads, g.cache_tokens, n.head_dim) for _ in range(n.layers)]
    context = PromptGraph(model)(torch.zeros(1, n.text_len, n.text_dim))
    zero, full = torch.zeros(1, dtype=torch.int64), torch.tensor([g.cache_tokens])
    return step, (
        latent,
        zero,
        latent,
        table,
        table,
        [zero, full],
        ring,
        ring,
        context[: n.layers],
        context[n.layers :],
    )


def test_step_flops_are_those_of_torch() -> None:
    step, args = eager_step()
    # the counter does not know the CPU's fused attention, so attention is written out
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        step(*args)
    assert counter.get_total_flops() == step_pass(NETWORK, SMALL).total


def parameters(n: Network, g: Geometry) -> int:
    return step_parameters(n, g) + prompt_parameters(n)


def test_parameters_are_those_of_the_model() -> None:
    """Matrices and the patch convolution; biases, norms and the baked time embedding are left out."""
    n = NETWORK
    model = Wan(WanConfig(n.dim, n.ffn_dim, n.heads, n.layers, 16, n.text_dim, n.text_len))
    counted = sum(
        p.numel() for k, p in model.named_parameters() if p.ndim > 1 and "modulation" not in k and "time_" not in k
    )
    assert parameters(n, SMALL) == counted
    asked = ("cross_attn.k.", "cross_attn.v.", "text_embedding")
    assert prompt_parameters(n) == sum(
        p.numel() for k, p in model.named_parameters() if p.ndim > 1 and any(part in k for part in asked)
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["taehv", "wan"])
def test_decoder_flops_are_those_of_torch(kind: str) -> None:
    latents = torch.zeros(1, 3, 16, 4, 6)
    geometry = SMALL.model_copy(update={"width": 48, "height": 32})
    with FlopCounterMode(display=False) as counter:
        if kind == "taehv":
            Taehv(TaehvConfig()).decode(latents)
        else:
            vae = WanVae(WanVaeConfig())
            latents = latents.transpose(1, 2)
            vae.decode(latents, vae.zero_states(latents), first=False)
    cost = decode_cost(kind, geometry)
    # the VAE's 1×1 convolutions (shortcuts, attention) and its attention are left out: below two per cent at any size
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02 if kind == "wan" else 1e-9)
    model = Taehv(TaehvConfig()).decoder if kind == "taehv" else WanVae(WanVaeConfig()).decoder
    assert cost.weights == pytest.approx(2 * sum(p.numel() for p in model.parameters()), rel=0.02)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["taehv", "wan"])
def test_decoder_flops_of_the_5b_are_those_of_torch(kind: str) -> None:
    geometry = HD.model_copy(update={"width": 96, "height": 64})
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        if kind == "taehv":
            model = Taehv(TaehvConfig(48, patch=2))
            model.decode(torch.zeros(1, 8, 48, 4, 6))
        else:
            model = Wan22Vae(WAN_22_VAE)
            latents = torch.zeros(1, 48, 8, 4, 6)
            model.decode(latents, model.zero_states(latents), first=False)
    cost = decode_cost(kind, geometry)
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02 if kind == "wan" else 1e-9)
    assert cost.weights == pytest.approx(2 * sum(p.numel() for p in model.decoder.parameters()), rel=0.02)


def test_the_5b() -> None:
    """Its size by its shapes, and the published time on the card that it was published for."""
    assert parameters(MODELS["wan2.2-5b"], HD) == pytest.approx(5e9, rel=0.02)
    request, by_name = of_model("wan2.2-5b", {}, 4, "fp16", False, "taehv"), {d.name: d for d in DEVICES}
    assert request.geometry == HD
    assert request.geometry.chunk_tokens == 8 * 880
    published = judge(request, by_name["GB200 (one GPU)"])
    assert published.best < 32 / 24.8 < published.worst  # LongLive 2.0 in BF16
    assert published.smooth == "none"
    assert memory(request).total < 24e9
    small = of_model("wan2.2-5b", {"width": 640, "height": 352}, 4, "int8", True, "taehv")
    assert memory(small).total < 9e9
    for device in DEVICES:
        for word in judge(request, device).advice.split():
            if word[0].isdigit():
                assert all(int(side) % 32 == 0 for side in word.split("x")), device.name


@pytest.mark.parametrize(
    ("model", "window", "card", "seconds", "end"),
    [
        ("wan2.1-1.3b", 12, "H100 SXM", 0.58, "highest"),  # LongLive
        (
            "wan2.1-1.3b",
            12,
            "H100 SXM",
            0.71,
            "lowest",
        ),  # Causal Forcing: clips of 21 latent frames, of which it sees 12 in the mean
        ("wan2.1-1.3b", 12, "RTX 4090", 1.2, "highest"),  # the same
        ("wan2.1-1.3b", 21, "A100 80GB SXM", 1.0, "highest"),  # FlashDreams
        ("wan2.1-1.3b", 21, "A100 80GB SXM", 1.3, "lowest"),
        ("wan2.1-1.3b", 21, "GB200 (one GPU)", 0.25, "highest"),
        ("wan2.2-5b", 32, "GB200 (one GPU)", 32 / 24.8, "lowest"),  # LongLive 2.0
    ],
)
def test_a_class_s_share_is_what_others_published(model: str, window: int, card: str, seconds: float, end: str) -> None:
    """By the planner's own count of operations."""
    request = of_model(model, {"window": window}, 4, "fp16", False, "taehv")
    work = step_pass(request.network, request.geometry)
    operations = request.passes * work.total + decode_flops(request)
    device = next(d for d in DEVICES if d.name == card)
    found = operations / (device.fp16 * 1e12 * seconds)
    assert getattr(CLASSES[device.kind], end) == pytest.approx(found, abs=0.011)


def test_flops_of_an_exported_graph(bundle_path: Path) -> None:
    manifest = Bundle.open(bundle_path).manifest
    found = graph_flops(bundle_path / "step.onnx")
    work = step_pass(manifest.network, manifest.geometry)
    assert found["Attention"] == work.self_attention + work.cross_attention
    assert found["MatMul"] + found["Gemm"] == work.linear
    assert graph_flops(bundle_path / "decode.onnx")["Conv"] > 0
    found = graph_flops(bundle_path / "recache.onnx")
    work = recache_pass(manifest.network, manifest.geometry)
    assert found["Attention"] == work.self_attention + work.cross_attention
    assert found["MatMul"] + found["Gemm"] == work.linear


def test_a_smooth_change_where_the_window_fits_and_where_not() -> None:
    request, by_name = Request(MODELS["wan2.1-1.3b"], FULL, 5), {d.name: d for d in DEVICES}
    parts = memory(request)
    weights = 29 * (6 * 1536**2 + 2 * 1536 * 8960) + 2 * 1536**2  # the last block ends with its keys and values
    sinks = 2 * 30 * 12 * 3 * 1560 * 128
    live = (18720 - 4680) * ((8960 + 2 * 1536) * 2 + 1536 * 4)
    assert parts.recache == pytest.approx(2 * (weights + sinks) + 2.1 * live, abs=8)
    large, small = judge(request, by_name["RTX 5090"]), judge(request, by_name["Jetson Orin Nano 8GB (Super)"])
    assert (large.smooth, small.smooth) == ("window", "chunks")
    assert 0 < large.smooth_worst < large.worst
    by_chunks = replace(request, recache="chunks")
    assert memory(by_chunks).recache == 0
    assert judge(by_chunks, by_name["RTX 5090"]).smooth == "chunks"


def test_a_first_chunk_with_steps_of_its_own() -> None:
    geometry = FULL.model_copy(update={"chunk": 1, "sink": 1})
    usual = Request(MODELS["wan2.1-1.3b"], geometry, 2)
    own, card = replace(usual, first_passes=5), next(d for d in DEVICES if d.name == "RTX 4090")
    before, after = judge(usual, card), judge(own, card)
    assert before.first == before.worst == after.worst
    decode = decode_cost("taehv", geometry).flops / (card.fp16 * 1e12 * CLASSES[card.kind].lowest)
    assert after.first - decode == pytest.approx(2.5 * (after.worst - decode))


def test_sinks_that_follow_cost_a_copy_of_the_keys() -> None:
    """Every key of the window once more read and once more written, in every layer of every pass."""
    card = replace(DEVICES[0], fp16=1e9, int8=1e9, bandwidth=1000.0)  # nothing but memory counts
    stay, follow = (
        of_model("wan2.1-1.3b", {}, 4, "fp16", False, "taehv", rope=rope) for rope in ("absolute", "relative")
    )
    more = pass_seconds(follow, card, 1.0) - pass_seconds(stay, card, 1.0)
    keys = 30 * stay.geometry.window * (480 // 16) * (832 // 16) * 1536 * 2  # bytes of all layers
    assert more == pytest.approx(2 * keys / 1e9 / (0.8 * 1000), rel=1e-6)


def test_moving_sinks_have_a_mean_in_float32() -> None:
    still = FULL.model_copy(update={"window": 9})
    moving = still.model_copy(update={"sink_ema": 0.999})
    ring = [memory(Request(MODELS["wan2.1-1.3b"], g, 5)).ring for g in (still, moving)]
    assert ring[1] - ring[0] == 2 * 30 * 12 * 3 * 1560 * 128 * 4


def test_memory_is_what_is_allocated() -> None:
    n = MODELS["wan2.1-1.3b"]
    parts = memory(Request(n, FULL, 5))
    assert parts.ring == 2 * 30 * 12 * 18720 * 128 * 2  # k and v of every layer, FP16: 3.45 GB
    assert parts.weights == pytest.approx(2.8e9, rel=0.05)
    assert memory(Request(n, FULL, 5, "int8", int8_ring=True)).ring * 2 == parts.ring
    assert parts.total < 8e9


def test_full_size_is_that_of_the_design() -> None:
    n = MODELS["wan2.1-1.3b"]
    assert parameters(MODELS["wan2.1-14b"], FULL) == pytest.approx(14e9, rel=0.01)
    assert step_pass(n, FULL).total == pytest.approx(28e12, rel=0.03)
    small = FULL.model_copy(update={"width": 320, "height": 192})
    assert step_pass(n, small).total == pytest.approx(2.2e12, rel=0.05)


def test_live_values_are_those_that_a_later_node_reads(tmp_path: Path) -> None:
    """Two of 768 bytes where `sum` is made of them, with the half of one that was read before gone."""
    node = onnx.helper.make_node
    image = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            node("Relu", ["x"], ["a"]),
            node("ReduceMax", ["a"], ["rows"], axes=[3]),
            node("Neg", ["a"], ["b"]),
            node("Add", ["b", "rows"], ["sum"]),
            node("Mul", ["sum", "w"], ["y"]),
        ],
        "net",
        [image("x", kind, [1, 3, 8, 8])],
        [image("y", kind, [1, 3, 8, 8])],
        [onnx.numpy_helper.from_array(np.ones((8, 8), np.float32), "w")],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), tmp_path / "n"
    )
    assert graph_memory(tmp_path / "n", 4) == Held(weights=256, live=2 * 768 + 96)
    assert graph_memory(tmp_path / "n", 2) == Held(weights=128, live=2 * 384 + 48)


def test_graphs_behind_the_decoder_take_memory(bundle_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(bundle_path, tmp_path / "post.everframe"))
    add(path, upscale_file(tmp_path / "u.onnx"), smooth_file(tmp_path / "s.onnx"), 2)
    plain, both = (memory(of_bundle(p, "fp32", False)) for p in (bundle_path, path))
    frames = 12 * 32 * 64 * 3
    shown = 2 * (2 * frames + 8 * frames)  # of smooth two parts of a chunk, of upscale both at four times the size
    assert plain.post == 0
    assert shown < both.post < shown + 4 * 32 * frames
    assert both.total - plain.total == both.post
    add(path, None, tmp_path / "s.onnx", off=True)
    assert memory(of_bundle(path, "fp32")).post == 0
    assert memory(of_bundle(path, "fp32", post="all")).post == both.post


def test_a_bundles_own_decoder(bundle_path: Path) -> None:
    """Its states against those that a stream allocates, and the first chunk's engine, which has weights of its own."""
    bundle = Bundle.open(bundle_path)
    with Stream(bundle) as stream:
        allocated = stream.sizes()["states"]
    held = graph_memory(bundle.graph_path("decode"), 4)
    assert memory(of_bundle(bundle_path, "fp32")).decoder == held.weights + held.live + allocated
    graphs = bundle.manifest.graphs
    twins = Bundle(
        bundle_path, bundle.manifest.model_copy(update={"graphs": graphs | {"decode_first": graphs["decode"]}})
    )
    one, two = (decoder_in(b, 0, 4) for b in (bundle, twins))
    assert 4 * (two.held - one.held) == pytest.approx(held.weights, abs=8)


def test_the_public_decoders_states_are_there_twice() -> None:
    """Those of the Wan 2.2 VAE at the 5B's size: 3.2 GB a set in FP16, and its weights for two engines."""
    parts = memory(of_model("wan2.2-5b", {}, 4, "fp16", False, "wan"))
    vae = Wan22VaeOnNothing()
    assert parts.decoder > 2 * (2 * vae.states + 2 * vae.weights)
    assert 2 * vae.states == pytest.approx(3.2e9, rel=0.05)


@pytest.mark.slow
def test_a_wan_vae_in_a_bundle_takes_more_than_its_graph_has_to(wan22_paths: dict[str, Path]) -> None:
    """As much of what the builder wants for the public one as it has of its states: 24 latent pixels, chunks of 2."""
    bundle = Bundle.open(wan22_paths["in-place"])
    with torch.device("meta"):
        public = Wan22Vae(WAN_22_VAE).zero_states(torch.zeros(1, 48, 2, 4, 6))
    states = sum(np.prod(s.shape) for s in bundle.manifest.graphs["decode"].inputs if s.name.startswith("state_"))
    share = states / sum(state.numel() for state in public)
    wanted = 24 * (689_152 + 1_966_208) / 2 * share
    assert graph_memory(bundle.graph_path("decode"), 2).live < 2 * wanted
    assert decoder_in(bundle, 0, 2).live == pytest.approx(wanted, rel=0.01)


class Wan22VaeOnNothing:
    """How many values the states and the decoder's weights are, by PyTorch's own shapes."""

    def __init__(self) -> None:
        with torch.device("meta"):
            model = Wan22Vae(WAN_22_VAE)
            latents = torch.zeros(1, 48, 8, 44, 80)
            self.states = sum(state.numel() for state in model.zero_states(latents))
        self.weights = sum(p.numel() for p in model.decoder.parameters())


def test_a_calibrated_bundle_is_planned_as_it_is(portable_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    path = with_int8_ring(portable_path, tmp_path / "q.everframe")
    manifest = Bundle.open(path).manifest
    write_manifest(path, manifest.model_copy(update={"precision": "int4-weights"}))
    own, told = of_bundle(path), of_bundle(path, "fp16")
    assert (own.precision, own.int8_ring) == ("int4-weights", True)
    assert (told.precision, told.int8_ring) == ("fp16", True)
    plain = of_bundle(bundle_path)
    assert (plain.precision, plain.int8_ring) == ("fp16", False)
    # Four bits, and two bytes of scale for 128 of them.
    assert (4 - 1 / 8) * step_weights(own) == pytest.approx(step_weights(plain), rel=0.01)
    assert memory(own).weights - step_weights(own) == memory(plain).weights - step_weights(plain)
    assert 2 * memory(own).ring == memory(plain).ring
    card = next(d for d in DEVICES if d.name == "RTX 4090")
    assert judge(own, card).worst <= judge(plain, card).worst  # the same arithmetic, fewer bytes


def test_sinks_that_follow_stand_in_floats_beside_an_int8_ring(
    following_paths: dict[str, Path], tmp_path: Path
) -> None:
    """What the step graph reads of the ring, added up from its own inputs; scales are not planned."""
    g = Bundle.open(following_paths["portable"]).manifest.geometry
    path = with_int8_ring(following_paths["portable"], tmp_path / "q.everframe", g.sink * g.frame_tokens)
    inputs = {spec.name: spec for spec in Bundle.open(path).manifest.graphs["step"].inputs}
    ring = {name: spec for name, spec in inputs.items() if re.fullmatch(r"(sink_)?[kv]_\d+", name)}
    assert {name.rstrip("0123456789") for name in ring} == {"k_", "v_", "sink_k_"}
    bytes_of = {"int8": 1, "float32": 4}
    keys = sum(
        math.prod(spec.shape) * bytes_of[spec.dtype] for name, spec in ring.items() if name.startswith("sink_k_")
    )
    for own in (of_bundle(path, "fp32"), of_bundle(following_paths["portable"], "fp32", int8_ring=True)):
        assert memory(own).ring - memory(replace(own, following=False)).ring == keys > 0
    small = {"width": 320, "height": 192}
    stay, follow = (of_model("wan2.1-1.3b", small, 4, "int8", True, "taehv", rope=r) for r in ("absolute", "relative"))
    assert memory(follow).total - memory(stay).total == 30 * 3 * 240 * 1536 * 2  # layers, sinks, tokens, width, FP16
    assert memory(replace(follow, int8_ring=False)) == memory(replace(stay, int8_ring=False))


@pytest.mark.parametrize(
    "words",
    [
        *(["--size", "320x192"], ["--chunk", "3"], ["--window", "12"], ["--sink", "3"], ["--fps", "16"]),
        *(
            ["--steps", "4"],
            ["--first-steps", "4"],
            ["--decoder", "taehv"],
            ["--model", "wan2.2-5b"],
            ["--rope", "relative"],
        ),
    ],
)
def test_what_a_bundle_says_itself_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=f"^{words[0]} {words[1]}: is what the bundle says"):
        CliRunner().invoke(app, ["plan", "--bundle", "nowhere", *words], catch_exceptions=False)


def test_verdicts_move_the_right_way() -> None:
    request = Request(MODELS["wan2.1-1.3b"], FULL, 5)
    by_name = {d.name: d for d in DEVICES}
    nano, best = judge(request, by_name["Jetson Orin Nano 8GB (Super)"]), judge(request, by_name["RTX 5090"])
    assert nano.real_time in ("no", "too large")
    assert nano.advice
    assert best.best < best.worst < nano.best
    assert judge(replace(request, precision="int8"), by_name["RTX 5090"]).worst < best.worst
    assert judge(replace(request, precision="fp8"), by_name["RTX 3090"]).real_time == "no"
    published = judge(request, by_name["RTX 4090"])
    assert published.best == pytest.approx(1.2, rel=0.15)
    assert all(d.kind in CLASSES and d.source for d in DEVICES)


def test_advice_holds_what_it_promises() -> None:
    request = Request(MODELS["wan2.1-1.3b"], FULL, 5)
    for device in DEVICES:
        advice = judge(request, device).advice
        if not advice or advice.startswith("fewer"):
            continue
        changed = request
        for word in advice.split():
            if "x" in word and word[0].isdigit():
                width, height = map(int, word.split("x"))
                changed = replace(changed, geometry=FULL.model_copy(update={"width": width, "height": height}))
            else:
                changed = replace(changed, precision="int8", int8_ring=True)
        assert judge(changed, device).real_time == "yes", device.name


def test_the_command(bundle_path: Path) -> None:
    run = CliRunner().invoke
    done = run(
        app, ["plan", "--size", "320x192", "--window", "9", "--device", "orin", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert {d["device"] for d in said["devices"]} == {d.name for d in DEVICES if "Orin" in d.name}
    assert said["geometry"]["window"] == 9
    done = run(app, ["plan", "--bundle", str(bundle_path), "--json"], catch_exceptions=False)
    said = json.loads(done.stdout)
    found = sum(graph_flops(bundle_path / "step.onnx").values())
    assert said["flops_per_pass"]["total"] == found
    assert said["flops_decode"] == sum(graph_flops(bundle_path / "decode.onnx").values())
    assert "Jetson" in run(app, ["plan"], catch_exceptions=False).stdout
    for wrong in (
        ["--device", "abacus"],
        ["--rope", "sideways"],
        ["--size", "33x32"],
        ["--model", "x"],
        ["--precision", "int3"],
        HALF,
    ):
        with pytest.raises(UserError):
            run(app, ["plan", *wrong], catch_exceptions=False)


HALF = ["--model", "wan2.2-5b", "--size", "640x368"]  # no multiple of 32


def test_table_of_sizes_is_used() -> None:
    assert all(w % 16 == 0 and h % 16 == 0 for w, h in SIZES)
