"""Checkpoints in, bundles out: agreement with PyTorch, and every refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.export import bundle
from everframe.export.bundle import LIMITS
from everframe.export.checkpoint import RopeConfig, load
from everframe.export.checkpointexport import Overrides, export_checkpoint, override
from everframe.export.choices import bases
from everframe.export.schedule import Schedule
from everframe.export.wan import fold, unfold
from everframe.runtime import Stream
from everframe.runtime.cli.app import app
from everframe.runtime.jitter import designed_jitter
from everframe.runtime.rope import head_frequencies, split_head_dim

from helpers import TRANSFORMER, config_of, random_transformer


def test_step_graph_is_static_and_in_place_by_the_standard(bundle_path: Path) -> None:
    model = onnx.load(bundle_path / "step.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert max(o.version for o in model.opset_import if o.domain == "") == 24
    nodes = [n.op_type for n in model.graph.node]
    assert nodes.count("TensorScatter") == 2 * TRANSFORMER.layers
    assert nodes.count("Attention") == 2 * TRANSFORMER.layers
    lengths = [n.input[6] for n in model.graph.node if n.op_type == "Attention" and len(n.input) > 6]
    assert lengths == ["kv_len"] * TRANSFORMER.layers
    for value in (*model.graph.input, *model.graph.output):
        assert all(d.dim_value > 0 for d in value.type.tensor_type.shape.dim)


# Operators of the parser of TensorRT 10.3 (its published list of supported ONNX operators), as far as they occur here.
TENSORRT_10_3 = """
Abs Add And Cast Clip Concat Constant ConstantOfShape Conv Cos Div Einsum Equal Erf Exp Expand Flatten Floor Gather Gelu
Gemm Greater Identity LayerNormalization Less MatMul Max Min Mod Mul Neg Not Or Pad Pow Range Reciprocal ReduceMax ReduceMean
ReduceSum Relu Reshape Resize Round Shape Sigmoid Sin Slice Softmax Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze
Where DepthToSpace
"""


def test_portable_form_keeps_to_what_old_parsers_know(portable_path: Path, following_paths: dict[str, Path]) -> None:
    for file in (*portable_path.glob("*.onnx"), *following_paths["portable"].glob("*.onnx")):
        model = onnx.load(file)
        assert max(o.version for o in model.opset_import if o.domain == "") == 18
        assert {n.op_type for n in model.graph.node} <= set(TENSORRT_10_3.split()), file.name
        assert {n.domain for n in model.graph.node} <= {""}
        assert not model.functions


@pytest.mark.parametrize(
    "changes",
    [
        {"form": "portable", "window": 3, "sink": 0},
        pytest.param({"form": "portable", "sink": 6}, marks=pytest.mark.slow),
        # nothing but sinks in the ring
        pytest.param({"form": "portable", "window": 6, "rope": "relative"}, marks=pytest.mark.slow),
    ],
)
def test_portable_windows(checkpoint: Path, tmp_path: Path, changes: dict) -> None:
    out = tmp_path / "x.everframe"
    if changes.get("window") == 3:
        with pytest.raises(UserError, match="--form portable"):
            export_checkpoint(checkpoint, out, Overrides(**changes), chunks=8, force=False)
        return
    export_checkpoint(checkpoint, out, Overrides(**changes), chunks=8, force=False)
    assert Bundle.open(out).manifest.form == "portable"


def test_weights_are_stored_in_half_precision(bundle_path: Path) -> None:
    model = onnx.load(bundle_path / "step.onnx")
    half = {i.name for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16}
    assert sum(n.op_type == "Cast" and n.input[0] in half for n in model.graph.node) == len(half)
    assert len(half) >= 6 * TRANSFORMER.layers


def test_fold_and_unfold_are_inverse() -> None:
    state = random_transformer(TRANSFORMER).state_dict()
    back = fold(unfold(state, TRANSFORMER), TRANSFORMER)
    assert all(torch.allclose(back[k], v) for k, v in state.items())


@pytest.mark.parametrize("shift", [1.0, 2.0, 5.0])
def test_warped_schedule(shift: float) -> None:
    steps = (1000, 750, 500, 250)
    expected = [shift * (s / 1000) / (1 + (shift - 1) * (s / 1000)) for s in steps]
    assert Schedule(steps, shift).sigmas().tolist() == pytest.approx(expected, abs=1e-12)


def test_wan_schedule_by_its_published_numbers() -> None:
    assert Schedule().timesteps().tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625])


@pytest.mark.parametrize("changes", [{"window": 6}, {"size": "48x32"}, {"sink": 6, "rope": "relative"}, {"sink": 0}])
@pytest.mark.slow
def test_overrides(checkpoint: Path, tmp_path: Path, changes: dict) -> None:
    """Other sizes and windows agree with PyTorch too (export fails otherwise)."""
    out = tmp_path / "x.everframe"
    export_checkpoint(checkpoint, out, Overrides(**changes), chunks=8, force=False)
    manifest = Bundle.open(out).manifest
    g = manifest.geometry
    assert changes.get("size", "64x32") == f"{g.width}x{g.height}"
    assert (g.window, g.sink) == (changes.get("window", 12), changes.get("sink", 3))
    assert manifest.rope.mode == changes.get("rope", "absolute")


@pytest.mark.slow
def test_existing_bundle_is_kept_unless_forced(checkpoint: Path, bundle_path: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle_path, tmp_path / "b.everframe"))
    (copy / "mark").touch()
    with pytest.raises(UserError, match="already exists"):
        export_checkpoint(checkpoint, copy, Overrides(), chunks=8, force=False)
    assert (copy / "mark").exists()
    export_checkpoint(checkpoint, copy, Overrides(), chunks=8, force=True)
    assert not (copy / "mark").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["b.everframe"]


def test_a_graph_that_disagrees_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "LIMITS", {"fp32": LIMITS["fp32"] | {"ring": 0.0}})
    with pytest.raises(UserError, match="ring differs by"):
        export_checkpoint(checkpoint, tmp_path / "x.everframe", Overrides(), chunks=8, force=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (Overrides(size="100x100"), ["100x100", "multiples of 16"]),
        (Overrides(size="large"), ["--size", "large", "WIDTHxHEIGHT"]),
        (Overrides(size="0x16"), ["width", "0"]),
        (Overrides(window=4), ["window 4", "whole chunks"]),
        (Overrides(window=3), ["window"]),
        (Overrides(sink=2), ["sink 2", "whole chunks"]),
        (Overrides(jitter=1.0), ["jitter_sigma", "1.0"]),
        (Overrides(rope="round"), ["mode", "round"]),
        (Overrides(sink_distance=30), ["--sink-distance 30", "--rope relative"]),
        (Overrides(sink_distance=8, rope="relative"), ["sink_distance 8", "9 or more", "window of 12"]),
        (Overrides(jitter_by="pixel"), ["jitter_by", "pixel"]),
        (Overrides(jitter_by="layer", jitter=0.0), ["--jitter-by", "--jitter above 0"]),
        (Overrides(jitter_seed=5, jitter=0.0), ["--jitter-seed", "--jitter above 0"]),
        (Overrides(sink_distance=30, rope="relative", sink=0), ["30", "sink"]),
        (Overrides(jitter_design=100), ["jitter_design 100", "jitter_by layer"]),
        (Overrides(jitter_design=100, jitter_by="layer", jitter=0.0), ["jitter_design 100", "jitter_sigma above 0"]),
    ],
)
def test_impossible_overrides(checkpoint: Path, tmp_path: Path, overrides: Overrides, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        export_checkpoint(checkpoint, tmp_path / "x.everframe", overrides, chunks=8, force=False)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_belongs_to_what_is_overruled_goes_with_it(checkpoint: Path) -> None:
    """A folder whose configuration has a distance, or a design, can be exported otherwise by one option."""
    config = load(checkpoint).config
    rope = RopeConfig(
        mode="relative", sink_distance=18, jitter_sigma=0.8, jitter_seed=1, jitter_by="layer", jitter_design=100
    )
    config = config.model_copy(update={"rope": rope})
    assert override(config, Overrides()).rope == rope
    assert override(config, Overrides(rope="absolute")).rope.sink_distance is None
    assert override(config, Overrides(sink=0)).rope.sink_distance is None
    for given in (Overrides(jitter_by="head"), Overrides(jitter=0.0)):
        assert override(config, given).rope.jitter_design is None
    moving = config.geometry.model_copy(update={"sink_ema": 0.9})
    config = config.model_copy(update={"geometry": moving})
    emas = [override(config, Overrides(sink_ema=ema)).geometry.sink_ema for ema in (None, 0.5, 0.0)]
    assert emas == [0.9, 0.5, None]
    with pytest.raises(UserError, match="expected layer with --jitter-design"):
        bases("head", 500)


@pytest.mark.slow
def test_a_design_is_what_the_search_finds(checkpoint: Path, tmp_path: Path) -> None:
    """By the command line, twice: the bases of the manifest and the stream's are the search's, for the folder's network."""
    found = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.everframe"
        words = ["export", str(checkpoint), "-o", str(path), "--jitter-design", "100", "--chunks", "0"]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        found.append(Bundle.open(path).manifest.rope)
    first, net, channels = found[0], TRANSFORMER, split_head_dim(TRANSFORMER.head_dim)[0]
    searched = designed_jitter(net.theta, channels, first.jitter_sigma, net.layers, net.heads, 100, first.jitter_seed)
    assert first == found[1]
    assert first.jitter_design == 100
    assert np.abs(np.array(first.epsilon) - searched).max() < 1e-12
    with Stream(Bundle.open(tmp_path / "a.everframe")) as stream:
        assert np.array_equal(stream.frequencies, head_frequencies(first, first.jitter_sigma))
        assert stream.frequencies.shape[:2] == (net.layers, net.heads)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transformer__dim": "64"}, ["transformer.dim", '"64"']),
        ({"transformer__depth": 3}, ["transformer", "depth"]),
        ({"schedule__steps": 4}, ["schedule.steps"]),
        ({"geometry__height": 33}, ["geometry", "64x33"]),
        ({"prompts": ["unknown"]}, ["prompts.safetensors", "'unknown'", "nothing"]),
        ({"transformer__layers": 3}, ["transformer.safetensors", "missing blocks.2.modulation"]),
        ({"transformer__layers": 1}, ["transformer.safetensors", "unexpected blocks.1.", "more"]),
        ({"schedule__steps": [1500, 500]}, ["schedule", "steps 1500,500: expected falling numbers from 1000 to 1"]),
        ({"schedule__steps": [500, 750]}, ["steps 500,750: expected falling"]),
        ({"schedule__steps": []}, ["schedule", "expected falling"]),
        ({"schedule__first_steps": [1000, -1]}, ["first_steps 1000,-1: expected falling"]),
        ({"schedule__shift": 0}, ["shift 0.0: expected a number above 0"]),
        ({"schedule__context_noise": -1}, ["context_noise -1: expected 0 to 999"]),
        ({"geometry__latent_channels": 4}, ["geometry.latent_channels 4: expected the transformer's, 8"]),
        ({"transformer__latent_channels": 4}, ["geometry.latent_channels 8: expected the transformer's, 4"]),
        ({"autoencoder__latent_channels": 4}, ["geometry.latent_channels 8: expected the autoencoder's, 4"]),
        ({"autoencoder__patch": 2}, ["space_scale 8", "expected the autoencoder's, 16 and 4"]),
        ({"geometry__time_scale": 2}, ["time_scale 2", "expected the autoencoder's, 8 and 4"]),
        ({"autoencoder__encoder_widths": [-1, 8, 8]}, ["encoder_widths -1: expected a whole number above 0"]),
        ({"autoencoder__decoder_widths": [8, 0, 8, 8]}, ["decoder_widths 0: expected a whole number above 0"]),
        ({"autoencoder__depth": 0}, ["depth 0: expected a whole number above 0"]),
        ({"autoencoder__lead": 4}, ["lead 4: expected 0 to 3"]),
        ({"transformer__heads": 3}, ["3 heads for dim 64; expected"]),
        ({"transformer__heads": 0}, ["heads 0: expected a whole number above 0"]),
        ({"transformer__ffn_dim": 128}, ["blocks.0.ffn.0.weight: found [96, 64], expected [128, 64]"]),
    ],
)
def test_wrong_config(checkpoint: Path, tmp_path: Path, changes: dict, words: list[str]) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "c"))
    (folder / "config.json").write_text(json.dumps(config_of(**changes)))
    with pytest.raises(UserError) as caught:
        export_checkpoint(folder, tmp_path / "x.everframe", Overrides(), chunks=8, force=False)
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "x.everframe").exists()


def test_damaged_weights(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "c"))
    file = folder / "transformer.safetensors"

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            export_checkpoint(folder, tmp_path / "x.everframe", Overrides(), chunks=8, force=False)
        return str(caught.value)

    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "transformer.safetensors: not a whole safetensors file" in refusal()
    weights = load_file(checkpoint / "transformer.safetensors")
    weights["head.head.bias"][0] = float("nan")
    save_file(weights, file)
    assert "NaN" in (line := refusal())
    assert "head.head.bias" in line
    shutil.copy(checkpoint / "transformer.safetensors", file)
    bank = load_file(checkpoint / "prompts.safetensors")
    save_file({k: v.float() * 1e9 for k, v in bank.items()}, folder / "prompts.safetensors")
    assert "too large for float16" in refusal()
    file.unlink()
    assert "transformer.safetensors: cannot read" in refusal()
    (folder / "config.json").unlink()
    assert "config.json" in refusal()


@pytest.mark.slow
def test_full_disk(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: one line, and nothing half-written."""
    everframe = f"{sys.executable} -c 'from everframe.runtime.cli import main; main()'"
    shell = f"trap '' XFSZ; ulimit -f 60; exec {everframe} export {checkpoint} -o x.everframe"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "error: x.everframe: cannot write: File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
