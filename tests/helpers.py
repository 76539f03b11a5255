"""Small seeded random checkpoints, so that tests run real exports in seconds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import onnx
import torch
from safetensors.torch import load_file, save_file

from everframe.calibration.ring import int8_ring
from everframe.engines.bundle import Bundle, describe, read_manifest, write_manifest
from everframe.engines.graphfile import describe_graph
from everframe.export.taehv import Taehv, TaehvConfig
from everframe.export.wan import Attention, Wan, WanConfig, unfold
from everframe.runtime import Stream
from everframe.runtime.state import load_state, save_state

PROMPTS = ["a quiet sea", "a lava lamp", "Snow, falling [slowly]"]
TRANSFORMER = WanConfig(dim=64, ffn_dim=96, heads=2, layers=2, latent_channels=8, text_dim=24, text_len=8, freq_dim=32)
AUTOENCODER = TaehvConfig(latent_channels=8, encoder_widths=(8, 8, 8), decoder_widths=(16, 8, 8, 8), depth=1, lead=0)


def with_int8_ring(source: Path, target: Path, sink_tokens: int | None = None) -> Path:
    """A copy of a portable bundle with an INT8 ring and nothing else changed."""
    shutil.copytree(source, target)
    manifest = Bundle.open(target).manifest
    graphs = dict(manifest.graphs)
    for name in graphs.keys() & {"step", "recache", "sinks"}:
        model = onnx.load(target / f"{name}.onnx")
        int8_ring(model, *([] if sink_tokens is None else [sink_tokens]))
        onnx.save(model, target / f"{name}.onnx")
        graphs[name] = describe_graph(target / f"{name}.onnx")
    write_manifest(target, manifest.model_copy(update={"graphs": graphs}))
    return target


def with_prompts(source: Path, target: Path, prompts: list[str]) -> Path:
    """A copy of a bundle whose bank has other prompts."""
    shutil.copytree(source, target)
    bank = load_file(target / "prompts.safetensors")
    first = bank[PROMPTS[0]]
    save_file({prompt: first.clone() for prompt in prompts}, target / "prompts.safetensors")
    manifest = read_manifest(target / "manifest.json")
    changes = {"prompts": prompts, "prompt_bank": describe(target / "prompts.safetensors")}
    write_manifest(target, manifest.model_copy(update=changes))
    return target


def random_transformer(config: WanConfig, seed: int = 0) -> Wan:
    """A Wan with seeded weights whose attention and modulation are far from trivial."""
    torch.manual_seed(seed)
    model = Wan(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                p.mul_(1 + 0.3 * torch.randn_like(p))
            elif p.ndim == 1:
                p.normal_(0, 0.1)
        for attention in (m for m in model.modules() if isinstance(m, Attention)):
            attention.norm_q.weight.mul_(3)  # sharper attention, so that a wrong key shows
    return model.eval().requires_grad_(False)


def config_of(**changes) -> dict:
    """config.json of the test checkpoint; changes are 'section__field' = value."""
    config = {
        "name": "test",
        "transformer": dataclasses.asdict(TRANSFORMER),
        "autoencoder": dataclasses.asdict(AUTOENCODER),
        "geometry": {"width": 64, "height": 32, "fps": 16, "latent_channels": 8, "chunk": 3, "sink": 3, "window": 12},
        "schedule": {"steps": [1000, 750, 500, 250], "shift": 5.0, "context_noise": 0},
        "rope": {"mode": "absolute", "jitter_sigma": 0.8, "jitter_seed": 3},
        "prompts": PROMPTS,
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        (config[section] if name else config)[name or section] = value
    return json.loads(json.dumps(config))


def write_checkpoint(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(**changes)))
    model = random_transformer(TRANSFORMER)
    save_file(
        {k: v.half().contiguous() for k, v in unfold(model.state_dict(), TRANSFORMER).items()},
        folder / "transformer.safetensors",
    )
    torch.manual_seed(1)
    autoencoder = Taehv(AUTOENCODER)
    with torch.no_grad():
        autoencoder.state_dict()["decoder.16.bias"].fill_(0.5)  # mid grey, so that frames are not clamped flat
    save_file(
        {k: v.half().contiguous() for k, v in autoencoder.state_dict().items()}, folder / "autoencoder.safetensors"
    )
    generator = torch.Generator().manual_seed(2)
    texts = {p: torch.randn(3 + i, TRANSFORMER.text_dim, generator=generator).half() for i, p in enumerate(PROMPTS)}
    save_file(texts, folder / "prompts.safetensors")
    return folder


def resumes_with_a_smooth_change(bundle: Bundle, at: int, file: Path, chunks: int) -> None:
    """A stream that was saved after `at` chunks goes on bit for bit, through a prompt change that comes next."""
    with Stream(bundle, seed=5) as whole, Stream(bundle, seed=5) as resumed:
        for _ in range(at):
            whole.next_chunk()
        save_state(whole, file)
        load_state(resumed, file)
        for stream in (whole, resumed):
            stream.set_prompt(PROMPTS[1], "smooth")
        for _ in range(chunks):
            assert (whole.next_chunk().frames == resumed.next_chunk().frames).all()
