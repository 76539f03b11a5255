"""Every stage of the training, a few steps each on tiny clips: what each leaves is what the next one needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from everframe.export.checkpoint import load

TRAINING = Path(__file__).parents[2] / "training"
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {training!r})
folder = Path({folder!r})
import torch
from safetensors.torch import save_file
torch.set_num_threads(1)

import run
run.RUNS, run.WORK = folder / "runs", folder / "work"
import clips
clips.WORK, clips.HEIGHT, clips.WIDTH = run.WORK, 48, 64
clips.HELD_OUT, clips.UPRIGHT = 2, 24
import rollout
rollout.ROWS, rollout.COLUMNS = 3, 4
rollout.Tables.__init__.__defaults__ = (True, (3, 4), rollout.TRANSFORMER)
import autoencoder
autoencoder.CROP = 12, 48, 64
import assemble, decoder, distill, transformer
transformer.YOUNG, transformer.CHECK, transformer.OWN_FROM = 1, 2, 0
transformer.preview.__defaults__ = (4,)  # chunks
from prompts import PROMPTS

def stage(module, steps, *more):
    sys.argv = [module.__name__, "--steps", str(steps), "--workers", "1", "--instances", "6", "--report", "2", *more]
    module.main()

clips.fill(6, 0, 1)
clips.fill(3, 0, 1, portrait=True)
wordings = [p for variants in PROMPTS.values() for group in variants.values() for p in group]
wordings += [p for i in range(24, 27) for p in clips.instance(i).wordings]
save_file({{p: torch.randn(5, 384).half() for p in wordings}}, run.WORK / "texts.safetensors")
stage(autoencoder, 2)
transformer.PORTRAIT_EVERY = 2
stage(transformer, 2, "--use", "6", "--portrait", "3")
stage(transformer, 3, "--use", "6")  # goes on
stage(distill, 2, "--use", "6", "--portrait", "3")
stage(transformer, 4, "--use", "6")
stage(distill, 1, "--use", "6")  # of a newer teacher: its steps begin anew, its weights are those of the one before
stage(decoder, 2, "--use", "6")
import astray, beginnings, refine
for portrait in (False, True):  # one of every scene and variant: sea and hills, reef, and others
    clips.fill(24, 0, 1, portrait)
    wordings += [p for i in range(24) for p in clips.instance(i + 24 * portrait).wordings]
    for each in (beginnings.EACH, dict.fromkeys(PROMPTS, beginnings.KEPT), beginnings.LATER):
        wordings += [p for one in beginnings.listed(each, 0.01, portrait) for p in one.wordings]
astray.REACH = 1  # of pictures so small
refine.CHECK = 2
save_file({{p: torch.randn(5, 384).half() for p in wordings}}, run.WORK / "texts.safetensors")
# To the end of the first upright round; and a teacher that goes on, whose student begins anew.
for whom, steps in (("teacher", 15), ("student", 18), ("teacher", 16), ("student", 1)):
    sizes = ["--workers", "1", "--instances", "24", "--portrait", "24", "--share", "0.01", "--batch", "4"]
    sys.argv = ["refine", whom, "--steps", str(steps), *sizes]
    refine.main()
for was in run.WORK.glob("*-before.safetensors"):
    was.unlink()  # of other scenes
for whom, steps in (("teacher", 25), ("student", 18)):  # one scene, of which nothing is astray
    sys.argv = ["refine", whom, "--scenes", "reef", "--steps", str(steps), *sizes]
    refine.main()
import reword
reword.COLUMNS, reword.ROWS = 4, 3
sys.argv = ["reword", "--steps", "42", "--workers", "1", "--batch", "6"]
reword.main()
import settle
settle.COLUMNS, settle.ROWS = 4, 3
sys.argv = ["settle", "--steps", "66", "--workers", "1", "--batch", "6"]
settle.main()
sys.argv = ["assemble", "--target", str(folder / "demo")]
assemble.main()
sys.argv += ["--plain"]
sys.argv[2] = str(folder / "plain")
assemble.main()
import energy
sys.argv = ["energy", "--instances", "6", "--use", "6", "--guidance", "0", "1"]
energy.main()
import lasting
sys.argv = ["lasting", "reef", "--chunks", "2", "--seeds", "2"]
lasting.main()
"""


@pytest.mark.slow
def test_from_clips_to_a_checkpoint(tmp_path: Path) -> None:
    program = PROGRAM.format(training=str(TRAINING), folder=str(tmp_path))
    environment = os.environ | {"TORCH_COMPILE_DISABLE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "transformer: resumed at step 2" in done.stdout
    told = [
        line.split() for line in done.stdout.splitlines() if line.startswith(("autoencoder ", "teacher, ", "student "))
    ]
    assert [row[0] for row in told] == ["autoencoder", "teacher,", "teacher,", "student"]
    assert all(float(figure) > 0 for row in told for figure in row[-4:])
    told = [line.split() for line in done.stdout.splitlines() if line.startswith(("  teacher", "  student"))]
    assert [len(row) for row in told] == [3] * 6  # of two chunks
    made = load(tmp_path / "demo")  # checks every name and shape
    assert made.config.geometry.height == 48
    for name in ("autoencoder", "decoder", "transformer", "young", "distill"):
        kept = tmp_path / "runs" / f"{name}.checkpoint.safetensors"
        assert kept.stat().st_size < 10 * 2**20
    sheets = {f.stem for f in (tmp_path / "runs").glob("*.png")}
    assert sheets == {"autoencoder", "decoder", "transformer", "distill"}
    plain, tuned = (load_file(tmp_path / name / "autoencoder.safetensors") for name in ("plain", "demo"))
    assert {k.split(".")[0] for k in plain if not plain[k].equal(tuned[k])} == {"decoder"}
    with safe_open(tmp_path / "runs" / "distill.checkpoint.safetensors", "pt") as f:
        about = f.metadata()
    assert (about["step"], about["of"]) == ("66", "25")
    told = [row for row in logged(tmp_path, "distill") if "streams" in row]
    assert all(row["first chunks"] > 0 and row["streams"] > 0 for row in told)
    assert ["suns" in row for row in told] == [False, True]
    assert told[-1]["suns"] > 0
    was = load_file(tmp_path / "work" / "distill-worded.safetensors")
    worded = load_file(tmp_path / "work" / "distill-settled.safetensors")
    learnt = {k for k, v in was.items() if not worded[k].equal(v)}
    assert learnt
    assert all("cross_attn" in k or "text_embedding" in k for k in learnt)  # nothing that draws
    held_out = [row["held_out"] for row in logged(tmp_path, "transformer") if "held_out" in row]
    assert held_out
    assert all(0 < loss < 10 for losses in held_out for loss in losses.values())
    assert any("finest" in row for row in logged(tmp_path, "decoder"))


def logged(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs" / f"{name}.jsonl").read_text().splitlines()]
