"""`export wan` of the 5B's family: what the generator tells, what is refused, two steps by a LoRA, the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.export.cli import app
from everframe.export.families import SHOT_PREFIX, WAN_21, WAN_22
from everframe.export.lora import Lora
from everframe.export.recipes import find
from everframe.export.wanexport import (
    WanSource,
    check_choices,
    export_wan,
    generator_family,
    geometry_of,
    read_parts,
    schedule_of,
    settled,
    shots_of,
)
from everframe.export.weightfile import scratch
from everframe.runtime import Stream

from wanfiles import WAN_PROMPTS, source, source22

NONE = {"size": None, "chunk": None, "window": None, "sink": None}


def test_the_generator_tells_its_family(wan_home: Path, wan22_home: Path) -> None:
    old, new = source(wan_home, **NONE), source22(wan22_home, **NONE)
    assert generator_family(old) is WAN_21
    assert generator_family(new) is WAN_22
    g, was = (geometry_of(settled(s, generator_family(s))) for s in (new, old))
    assert (g.width, g.height, g.fps, g.latent_channels, g.space_scale) == (1280, 704, 24, 48, 16)
    assert (g.chunk, g.window, g.sink, g.frame_tokens) == (8, 32, 8, 880)
    assert (was.width, was.height, was.fps, was.latent_channels, was.space_scale) == (832, 480, 16, 16, 8)
    assert (was.chunk, was.window, was.sink, was.frame_tokens) == (3, 12, 3, 1560)
    shots = shots_of(settled(new, WAN_22))
    assert shots is not None
    assert (shots.offset, shots.prefix) == (8, SHOT_PREFIX)
    assert shots_of(settled(old, WAN_21)) is None
    assert schedule_of(settled(new, WAN_22)).timesteps().tolist() == [999, 937, 833, 624]
    plain = settled(dataclasses.replace(new, sampler="renoise", shots=False, recache="window"), WAN_22)
    assert schedule_of(plain).sampler == "renoise"
    assert shots_of(plain) is None


@pytest.mark.parametrize("name", ["longlive-2-5b", "longlive-2-5b-2step"])
def test_the_recipes(wan22_home: Path, name: str) -> None:
    chosen = source22(wan22_home, **NONE, **{k: v for k, v in find(name).options.items() if k not in NONE})
    chosen = settled(chosen, WAN_22)
    check_choices(chosen)
    timesteps = schedule_of(chosen).timesteps().tolist()
    assert timesteps == ([999, 833] if "2step" in name else [999, 937, 833, 624])
    assert find(name).options["size"] == chosen.size


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "80x64"}, ["80x64", "multiples of 32"]),
        ({"window": 4}, ["window 4", "expected a window of 6"]),
        ({"family": "wan3"}, ["--family 'wan3'", "wan2.1, wan2.2-5b"]),
        ({"family": "wan2.1"}, ["48", "16"]),
        ({"sampler": "euler"}, ["--sampler 'euler'"]),
        ({"first_steps": (1000, 750)}, ["--first-steps", "renoise"]),
        ({"vae": "taew2_1.pth"}, ["taew2_1.pth", "16 latent channels", "48"]),
        ({"recache": "window"}, ["--recache window", "none with shots, or --no-shots"]),
        ({"rope": "relative"}, ["--rope relative", "absolute with shots"]),
        ({"steps": (999, 937, 833, 624)}, ["--steps", "again; expected those with --shift 5", "1000,750,500,250"]),
    ],
)  # fmt: skip
def test_refusals(wan_home: Path, wan22_home: Path, tmp_path: Path, changes: dict, words: list[str]) -> None:
    if "vae" in changes:
        changes = {"vae": wan_home / changes["vae"]}
    with pytest.raises(UserError) as caught:
        export_wan(source22(wan22_home, **changes), tmp_path / "x.everframe", chunks=0, force=False)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["--form", "portable", "--probe"], "--form portable: has no probe"),
        (["--form", "portable", "--window", "3", "--sink", "0"], "--form portable: .* a window larger than a chunk"),
        (["--sink-distance", "30"], "--sink-distance 30: expected --rope relative"),
        (["--sink-distance", "3", "--rope", "relative"], "sink_distance 3: expected 9 or more"),
        (["--jitter-design", "100", "--jitter", "0"], "jitter_design 100: expected a jitter_sigma above 0"),
        (["--vae", "none.pth"], r"--vae none\.pth: no such file or folder"),
        (["--text-encoder", "none.pth"], r"--text-encoder none\.pth: no such file or folder"),
        (["--text-encoder", "minilm", "--text-graph"], "--text-graph: expected a UMT5 encoder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], refused: str
) -> None:
    monkeypatch.setattr("everframe.export.cli.recipe_files", None)
    given = ["export", "wan", "--recipe", "longlive", "-o", str(tmp_path / "x.everframe"), *words]
    with pytest.raises(UserError, match=refused):
        CliRunner().invoke(app, given, catch_exceptions=False)


@pytest.mark.parametrize(("words", "ema"), [([], 0.999), (["--sink-ema", "0.5"], 0.5), (["--sink-ema", "0"], None)])
def test_moving_sinks_of_a_recipe_are_overruled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], ema: float | None
) -> None:
    seen: list[WanSource] = []
    monkeypatch.setattr("everframe.export.cli.recipe_files", lambda *_: ({}, None))
    monkeypatch.setattr("everframe.export.wanexport.export_wan", lambda source, *_, **__: seen.append(source))
    given = ["export", "wan", "--recipe", "reward-forcing", "-o", str(tmp_path / "x.everframe"), *words]
    assert CliRunner().invoke(app, given, catch_exceptions=False).exit_code == 0
    assert geometry_of(settled(seen[0], WAN_21)).sink_ema == ema


def test_prompts_with_the_prefix_of_a_shot(wan22_home: Path, tmp_path: Path) -> None:
    """A bank holds them without it; the same one with and without is there twice."""
    file = tmp_path / "prompts.txt"
    file.write_text(f"{WAN_PROMPTS[0]}\n{SHOT_PREFIX}{WAN_PROMPTS[1]}\n")
    chosen = settled(source22(wan22_home, prompts=file, vae=wan22_home / "taew2_2.pth"), WAN_22)
    with scratch(tmp_path / "x.everframe") as weights:
        parts = read_parts(chosen, weights)
    assert list(parts.prompts) == WAN_PROMPTS
    assert list(parts.shot_prompts) == [SHOT_PREFIX + prompt for prompt in WAN_PROMPTS]
    file.write_text(f"{WAN_PROMPTS[0]}\n{SHOT_PREFIX}{WAN_PROMPTS[0]}\n")
    with pytest.raises(UserError, match=r"prompts\.txt: prompt 'a quiet sea' is there twice"):
        check_choices(chosen)


@pytest.mark.slow
def test_two_steps_by_a_lora(wan22_home: Path, tmp_path: Path) -> None:
    """As LongLive 2.0 saves one: PEFT's names, rank and alpha the same. No flow is kept, and there is no noise to read."""
    a, b = torch.randn(4, 256), torch.randn(64, 4)
    name = "base_model.model.blocks.1.ffn.0"
    lora = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    torch.save({"generator_lora": lora}, tmp_path / "two.pt")
    changes = {"steps": (1000, 500), "loras": (Lora(tmp_path / "two.pt"),), "vae": wan22_home / "taew2_2.pth"}
    export_wan(source22(wan22_home, **changes), tmp_path / "two.everframe", chunks=8, force=False)
    bundle = Bundle.open(tmp_path / "two.everframe")
    names = [s.name for s in bundle.manifest.graphs["step"].inputs]
    assert names[:4] == ["latent", "step", "rope_cos", "rope_sin"]
    assert bundle.manifest.schedule.sampler == "unipc"
    assert [s.name for s in bundle.manifest.graphs["step"].outputs[:3]] == ["x0", "next", "k_0_next"]
    with Stream(bundle, overlap=False) as stream:
        assert [len(stream.next_chunk().frames) for _ in range(2)] == [5, 8]
        stream.set_prompt(WAN_PROMPTS[1], "cut")
        assert len(stream.next_chunk().frames) == 8


@pytest.mark.slow
def test_the_command(wan22_home: Path, tmp_path: Path) -> None:
    words = ["--generator", str(wan22_home / "longlive2.pt"), "--vae", str(wan22_home / "taew2_2.pth")]
    words += ["--text-encoder", str(wan22_home / "text"), "--prompts", str(wan22_home / "prompts.txt")]
    words += ["--size", "96x64", "--chunk", "1", "--window", "4", "--sink", "1", "--precision", "fp32", "--no-shots"]
    words += ["--chunks", "0", "-o", str(tmp_path / "x.everframe")]
    done = CliRunner().invoke(app, ["export", "wan", *words], catch_exceptions=False)
    assert done.exit_code == 0
    manifest = Bundle.open(tmp_path / "x.everframe").manifest
    assert (manifest.shots, manifest.recache, manifest.geometry.fps) == (None, "none", 24)
    with pytest.raises(UserError, match="window, chunks or none"):
        CliRunner().invoke(app, ["export", "wan", *words, "--recache", "all"], catch_exceptions=False)
