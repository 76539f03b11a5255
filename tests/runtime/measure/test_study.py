"""The study's figures on made-up runs, its predictions for the Wan spectrum, and a short real study."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.export.checkpointexport import Overrides, export_checkpoint
from everframe.runtime.cli.app import app
from everframe.runtime.measure.study import run as stream
from everframe.runtime.measure.study import study_sinks
from everframe.runtime.measure.study_report import Run, collapse, collapse_indices, heads_together, read_runs, table
from everframe.runtime.measure.variants import FOLLOWING, OTHERS, STRETCHED, Variant, fitting, variants
from everframe.runtime.rope import axis_frequencies

from helpers import PROMPTS


def test_wan_spectrum_predicts_the_published_frames() -> None:
    predicted = [frame for frame, _ in collapse_indices(axis_frequencies(10000.0, 44)[None], 500)]
    assert {132, 201, 307, 465} <= set(predicted)


def test_a_dip_is_a_collapse_and_a_slope_is_none() -> None:
    slope = np.linspace(1.0, 1.4, 200)
    assert collapse(slope, 3).highest < 2
    dip = slope.copy()
    dip[66] *= 0.25  # chunk 67 of the stream: latent frames 201 …
    figures = collapse(dip, 3)
    assert figures.highest == pytest.approx(75, abs=0.5)
    assert figures.frame == 201
    assert figures.mean < 1


def test_heads_together() -> None:
    """Two heads of two layers that look at the sinks every tenth chunk: in step, and in turn."""
    mass = np.full((110, 2, 2), 0.1)
    in_step, in_turn = mass.copy(), mass.copy()
    in_step[::10] = 0.5
    in_turn[::10, :, 0] = in_turn[5::10, :, 1] = 0.5
    assert heads_together(in_step.reshape(110, 4), 2) == pytest.approx(10)
    assert heads_together(in_turn.reshape(110, 4), 2) == 0


def test_heads_together_of_a_stream_that_is_too_short() -> None:
    """The first ten chunks are not judged; 60 latent frames in chunks of eight have six behind the sinks."""
    for chunks in (0, 6, 10):
        assert heads_together(np.full((chunks, 4), 0.1), 2) == 0


def test_variants_are_checked() -> None:
    assert [v.label for v in variants([0.0, 0.8], ["pi"])] == ["jitter 0", "jitter 0.8", "pi"]
    with pytest.raises(UserError, match="sigma 1"):
        variants([1.0], [])
    with pytest.raises(UserError, match="stretch"):
        variants([], ["stretch"])


def test_a_short_real_study(bundle_path: Path, tmp_path: Path) -> None:
    arguments = ["study", "sinks", "-b", str(bundle_path), "-o", str(tmp_path / "r"), "--frames", "60", "--seed", "3"]
    result = CliRunner().invoke(app, [*arguments, "--prompt", PROMPTS[1]], catch_exceptions=False)
    assert result.exit_code == 0
    record = json.loads((tmp_path / "r" / "sinks.json").read_text())
    assert len(record["runs"]) == 4 + len(STRETCHED)  # this bundle has tables for no others
    assert all(len(r["distance"]) == 19 and r["prompt"] == PROMPTS[1] for r in record["runs"])
    by_label = {row["variant"]: row for row in record["table"]}
    for run in record["runs"]:  # the table follows from the runs
        label = (
            f"jitter {run['variant']['sigma']:g}" if run["variant"]["method"] == "jitter" else run["variant"]["method"]
        )
        assert by_label[label]["collapse_max"] == pytest.approx(collapse(run["distance"], 3).highest)
        assert by_label[label]["motion"] == run["motion"]
        assert by_label[label]["distance"] == pytest.approx(sum(run["distance"][10:]) / 9)
    plain, jittered = (next(r["distance"] for r in record["runs"] if r["variant"]["sigma"] == s) for s in (0.0, 0.8))
    assert plain != jittered


def test_a_study_that_was_cut_off_makes_what_it_lacks(bundle_path: Path, tmp_path: Path) -> None:
    arguments = ["study", "sinks", "-b", str(bundle_path), "-o", str(tmp_path / "r"), "--frames", "60", "--sigma", "0"]
    file = tmp_path / "r" / "sinks.json"

    def study(*words: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, [*arguments, *words])
        assert done.exit_code == code, done.output
        return str(done.exception) if code else done.output

    both = ("--method", "pi", "--method", "ntk", "--seed", "3")
    study(*both)
    whole = json.loads(file.read_text())
    file.write_text(json.dumps(whole | {"runs": [whole["runs"][1]]}))  # one of three, and not the first
    assert "1 streams were made before, 2 are to be made" in study(*both, "--resume")
    resumed = json.loads(file.read_text())
    assert resumed["table"] == whole["table"]
    assert [r["distance"] for r in resumed["runs"]] == [r["distance"] for r in whole["runs"]]
    assert "--resume goes on with it" in study(*both, code=1)  # as an exception: the command line's own turns it to 2
    assert "another trained" in study(*both, "--resume", "--trained", "30", code=1)
    bundle = Bundle.open(bundle_path)
    for changes, words in (
        ({"rope": {"jitter_sigma": 0.5}}, r"another rope jitter_sigma \(0.8, here 0.5\)"),
        ({"rope": {"jitter_seed": 9}}, r"another rope jitter_seed \(3, here 9\)"),
        ({"rope": {"epsilon": [0.1, 0.2]}}, r"another rope epsilon \(.*, here \[0.1, 0.2\]\)"),
        ({"geometry": {"sink": 6}}, r"another geometry sink \(3, here 6\)"),
    ):
        parts = {name: getattr(bundle.manifest, name).model_copy(update=part) for name, part in changes.items()}
        with pytest.raises(UserError, match=words):
            read_runs(file.parent, Bundle(bundle.path, bundle.manifest.model_copy(update=parts)), 60, 21)
    graph = bundle.manifest.graphs["step"]
    graphs = bundle.manifest.graphs | {
        "step": graph.model_copy(update={"data": [graph.model]})
    }  # other weights beside it
    with pytest.raises(UserError, match="another step_digest"):
        read_runs(file.parent, Bundle(bundle.path, bundle.manifest.model_copy(update={"graphs": graphs})), 60, 21)
    before = {k: v for k, v in whole.items() if k not in ("step_digest", "rope", "geometry")}
    file.write_text(json.dumps(before))  # a record of before says less
    assert len(read_runs(file.parent, bundle, 60, 21)) == 3
    file.write_text('{"runs": 1}')
    assert "not a study's record" in study(*both, "--resume", code=1)


def test_a_study_that_is_killed_leaves_no_worker_streaming(bundle_path: Path, tmp_path: Path) -> None:
    """Neither by SIGTERM, as a service manager ends it, nor by SIGKILL, of which it learns nothing."""
    code = """
import sys
from pathlib import Path
from everframe.engines.bundle import Bundle
from everframe.runtime.measure.study import run_all
from everframe.runtime.measure.variants import Variant
bundle = Bundle.open(Path(sys.argv[1]))
wanted = [(Variant("jitter"), bundle.manifest.prompts[0], seed) for seed in range(2)]
run_all(bundle, wanted, 10**7, 21, 2, print)
"""
    for end in (signal.SIGTERM, signal.SIGKILL):
        study = psutil.Popen([sys.executable, "-c", code, str(bundle_path)])
        workers: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 60
            while len(workers) < 2:
                assert study.is_running()
                assert time.monotonic() < deadline
                time.sleep(0.1)
                workers = [one for one in study.children() if "spawn_main" in words_of(one)]
            study.send_signal(end)
            study.wait(20)
            assert not psutil.wait_procs(workers, 20)[1]
        finally:
            for one in (study, *workers):
                with contextlib.suppress(psutil.Error):
                    one.kill()


def words_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@pytest.mark.slow
def test_every_variant_of_a_bundle_that_can_do_all(checkpoint: Path, tmp_path: Path) -> None:
    """Each fills the tables in its own way, so each makes a stream of its own; what spectra gain stands in the record."""
    path = tmp_path / "all.everframe"
    export_checkpoint(checkpoint, path, Overrides(rope="relative", jitter_by="layer"), chunks=0, force=False)
    told: list[str] = []
    study_sinks(Bundle.open(path), tmp_path / "r", seeds=[3], sigmas=[0.0], frames=60, tell=told.append)
    record = json.loads((tmp_path / "r" / "sinks.json").read_text())
    assert [r["variant"]["method"] for r in record["runs"]] == ["jitter", *OTHERS]
    streams = [tuple(r["distance"]) for r in record["runs"]]
    assert len(set(streams)) == len(streams)
    for kinds in record["spectra"].values():
        assert kinds["designed"][1] < kinds["layers"][1] < kinds["none"][1]
    assert "wan2.1-1.3b" in record["spectra"]
    assert sum("highest mean cosine" in line for line in told) == 2
    assert not set(record["predicted"]) & set(FOLLOWING)  # always at one distance


def test_right_behind_the_window_whatever_the_bundle_says(following_paths: dict[str, Path], tmp_path: Path) -> None:
    bundle = Bundle.open(following_paths["portable"])
    rope = bundle.manifest.rope.model_copy(update={"sink_distance": 18})
    away = Bundle(bundle.path, bundle.manifest.model_copy(update={"rope": rope}))
    runs = {
        name: stream(of, Variant(name), PROMPTS[0], 3, 60, 21, EngineOptions()).distance
        for of, name in ((away, "relative"), (away, "horizon"))
    }
    assert runs["relative"] == stream(bundle, Variant("relative"), PROMPTS[0], 3, 60, 21, EngineOptions()).distance
    assert runs["relative"] != runs["horizon"]


def test_attention_while_the_ring_fills_is_not_judged() -> None:
    mass = np.full((40, 4), 0.2)
    mass[:10] = 1.0
    one = Run(Variant("jitter"), "x", 0, [1.0] * 40, 1.0, 1.0, mass.tolist())
    (row,) = table([one], 3, 2)
    assert row["sink_mass"] == pytest.approx(0.2)
    assert row["sink_mass_peak"] == pytest.approx(0.2)


def test_at_a_jitter_of_nothing_the_kinds_of_jitter_are_none(bundle: Bundle, tmp_path: Path) -> None:
    inputs = [
        spec.model_copy(update={"shape": [2, *spec.shape]}) if spec.name == "rope_cos" else spec
        for spec in bundle.manifest.graphs["step"].inputs
    ]
    inputs.append(inputs[0].model_copy(update={"name": "sink_cos"}))
    graphs = bundle.manifest.graphs | {"step": bundle.manifest.graphs["step"].model_copy(update={"inputs": inputs})}
    able = bundle.manifest.model_copy(update={"graphs": graphs})
    assert fitting(Bundle(bundle.path, able), OTHERS) == list(OTHERS)
    still = able.model_copy(update={"rope": able.rope.model_copy(update={"jitter_sigma": 0.0})})
    assert fitting(Bundle(bundle.path, still), OTHERS) == [*STRETCHED, "relative", "horizon"]
    with pytest.raises(UserError, match=r"method heads: .* has a jitter of 0, .*--jitter above 0"):
        study_sinks(Bundle(bundle.path, still), tmp_path / "r", methods=["heads"])
    heads = able.network.layers * able.network.heads
    assert fitting(Bundle(bundle.path, able), [f"bases-{heads}", f"bases-{heads + 1}"]) == [f"bases-{heads}"]
    with pytest.raises(UserError, match=rf"has {heads} heads in all its layers"):
        study_sinks(Bundle(bundle.path, able), tmp_path / "r", methods=[f"bases-{heads + 1}"])
    for wrong in ("bases-0", "bases-", "bases-4x"):
        with pytest.raises(UserError, match="or bases-N"):
            study_sinks(Bundle(bundle.path, able), tmp_path / "r", methods=[wrong])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"methods": ["relativ"]}, "method 'relativ': expected one of"),
        ({"sigmas": [1.5]}, "sigma 1.5: expected"),
        ({"seeds": [-1]}, "seed -1: expected"),
        ({"prompts": ["a"]}, "a"),
    ],
)
def test_what_is_refused_is_refused_before_anything_is_searched_or_replaced(
    bundle: Bundle, tmp_path: Path, wrong: dict, words: str
) -> None:
    (tmp_path / "sinks.json").write_text("earlier")
    told: list[str] = []
    with pytest.raises(UserError, match=words):
        study_sinks(bundle, tmp_path, **wrong, tell=told.append)
    assert not told
    assert (tmp_path / "sinks.json").read_text() == "earlier"


def test_without_sinks_there_is_nothing_to_study(bundle: Bundle, tmp_path: Path) -> None:
    geometry = bundle.manifest.geometry.model_copy(update={"sink": 0})
    alone = Bundle(bundle.path, bundle.manifest.model_copy(update={"geometry": geometry}))
    with pytest.raises(UserError, match="has no sinks"):
        study_sinks(alone, tmp_path, methods=["relative"])


def test_what_is_asked_for_twice_is_made_once(bundle: Bundle, tmp_path: Path) -> None:
    """And a study that is replaced is gone before the new one's first stream is there."""
    (tmp_path / "sinks.json").write_text("earlier")
    there: list[bool] = []
    study_sinks(
        bundle,
        tmp_path,
        seeds=(3, 3),
        sigmas=(0.5, 0.5),
        methods=(),
        frames=60,
        tell=lambda line: there.append((tmp_path / "sinks.json").exists()),
    )
    record = json.loads((tmp_path / "sinks.json").read_text())
    assert [(run["variant"]["sigma"], run["seed"]) for run in record["runs"]] == [(0.5, 3)]
    assert there[0] is False


@pytest.mark.parametrize(("method", "flag"), [("horizon", "--rope relative"), ("designed", "--jitter-by layer")])
def test_a_bundle_without_the_tables_says_what_to_do(bundle: Bundle, tmp_path: Path, method: str, flag: str) -> None:
    with pytest.raises(UserError, match=f"method {method}: .*{flag}"):
        study_sinks(bundle, tmp_path / "r", methods=[method])
