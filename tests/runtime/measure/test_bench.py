"""`everframe bench`: figures against direct computation, files against their schema, commands as a user gives them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from everframe.calibration.cli import check_acts
from everframe.engines.base import Computing, EngineOptions
from everframe.engines.bundle import Bundle, read_manifest, write_manifest
from everframe.engines.errors import UserError
from everframe.engines.ort import OrtBackend
from everframe.runtime import Stream, Transition
from everframe.runtime.chunks import Chunk
from everframe.runtime.cli.app import app
from everframe.runtime.measure import energy
from everframe.runtime.measure import sweep as sweeps
from everframe.runtime.measure.bench import (
    Result,
    bench,
    lateness,
    prompt_changes,
    ratios,
    read_result,
    spread,
)
from everframe.runtime.measure.bench_report import page, summary
from everframe.runtime.measure.energy import Counters
from everframe.runtime.measure.sweep import MADE, grid

from simulated_cuda import SimulatedBackend, SimulatedRuntime


@pytest.fixture(scope="module")
def result(bundle_path: Path) -> Result:
    return bench(Bundle.open(bundle_path), lambda: OrtBackend(EngineOptions(threads=1)), chunks=12, seed=3)


def test_a_card_that_records_nothing_is_told(bundle_path: Path) -> None:
    backend = SimulatedBackend(SimulatedRuntime(captures=False))
    found = bench(Bundle.open(bundle_path), lambda: backend, chunks=2, seed=3)  # type: ignore[arg-type, return-value]
    why = "CUDA: cudaStreamBeginCapture: cudaErrorStreamCaptureUnsupported"
    assert ("passes one by one, not one launch a chunk", why) in summary(found)
    assert why in page(found)


def everframe(*words: object) -> subprocess.CompletedProcess[str]:
    code = "from everframe.runtime.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)


def test_percentiles() -> None:
    found = spread([i / 1000 for i in range(1, 102)])  # 1 … 101 ms
    assert (found.p50, found.p90, found.p99, found.max, found.mean) == pytest.approx((51, 91, 100, 101, 51))


@pytest.mark.parametrize(
    ("arrivals", "late", "worst"),
    [
        ([0, 0.5, 1.0, 1.5], 0, 0.0),  # twice as fast as it is shown
        ([0, 0.75, 1.5, 2.25], 0, 0.0),  # exactly in time
        ([0, 1.0, 1.75, 2.5], 1, 0.25),  # one is late, and moves the rest with it
        ([0, 1.0, 2.0, 3.0], 3, 0.25),
    ],
)
def test_what_a_viewer_waits_for(arrivals: list[float], late: int, worst: float) -> None:
    assert lateness(arrivals, 12, 16) == (late, pytest.approx(worst))


def test_the_result_adds_up(result: Result) -> None:
    s = result.steady
    assert set(s.stages) == {
        *("diffuse 1", "diffuse 2", "diffuse 3", "diffuse 4", "diffuse", "finalize", "decode"),
        *("host copy", "host", "chunk", "video encode", "interval", "encode", "recache by window"),
    }
    for one in s.stages.values():
        assert 0 <= one.p50 <= one.p90 <= one.p99 <= one.max
    parts = sum(s.stages[n].mean for n in ("diffuse", "finalize", "decode", "host copy", "host"))
    assert parts <= s.stages["chunk"].mean * 1.02
    assert parts >= s.stages["chunk"].mean * 0.5
    assert s.real_time_factor == pytest.approx(s.fps / 16)
    assert s.stages["interval"].mean == pytest.approx(1000 * 12 / s.fps)
    # One after the other; medians, for a stall of the machine may be in one of them alone.
    assert s.stages["interval"].p50 > 0.9 * (s.stages["chunk"].p50 + s.stages["video encode"].p50)
    assert len(result.chunk_ms) == s.chunks == 12
    assert np.median(result.chunk_ms) == pytest.approx(s.stages["chunk"].p50, abs=0.01)
    # Two layers, two heads of 32, twelve latent frames of eight tokens, keys and values, float32.
    assert result.memory["ring"] == 2 * 2 * 2 * 32 * 12 * 8 * 4
    assert result.memory["recache"] > result.memory["ring"] / 4  # copies of the sinks, and another graph
    assert result.memory["process_peak"] > 50 << 20
    assert result.cold.process_to_first_frame is not None
    assert set(result.prompt_change_ms) == {"swap", "smooth", "flush", "cut"}


def test_the_file_is_what_the_schema_says(result: Result, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(result.model_dump_json())
    jsonschema.validate(json.loads(file.read_text()), Result.model_json_schema())
    assert read_result(file) == result
    assert all(ratio == pytest.approx(1) for _, _, _, ratio in ratios(result, result))


@pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("{}", "not a result"), (None, "cannot read")])
def test_files_that_are_no_results(tmp_path: Path, text: str | None, words: str) -> None:
    file = tmp_path / "x.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_result(file)


def test_energy_is_of_what_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's zones: packages, and on client machines psys, which holds them too. A card's meter is not a CPU's."""
    for i, name in enumerate(["package-0", "psys"]):
        (zone := tmp_path / f"intel-rapl:{i}").mkdir()
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text("0\n")
        (zone / "max_energy_range_uj").write_text(f"{10**12}\n")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    for backend, device in (("tensorrt 10.14", "NVIDIA H100"), ("openvino 2026.4", "GPU Intel Arc")):  # none here
        assert energy.energy_meter(Computing(backend, device, "f16")) is None
    meter = energy.energy_meter(Computing("openvino 2026.4", "CPU AMD EPYC", "bf16"))
    assert meter is not None
    for i, joules in enumerate((3, 50)):
        (tmp_path / f"intel-rapl:{i}" / "energy_uj").write_text(f"{joules * 10**6}\n")
    assert meter[0]() == 3.0


def test_results_with_less_in_them(result: Result, tmp_path: Path) -> None:
    """Of a bundle without some transition: what both have is compared. One without a chunk is no result."""
    fewer = result.model_copy(update={"prompt_change_ms": {"cut": 1.0}})
    names = [name for name, *_ in ratios(result, fewer)]
    assert [name for name in names if name.startswith("prompt change")] == ["prompt change, cut"]
    assert "fps" in names
    content = json.loads(result.model_dump_json())
    del content["steady"]["stages"]["chunk"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a\.json: not a result of everframe bench"):
        read_result(tmp_path / "a.json")


def test_the_report_needs_nothing_else(result: Result) -> None:
    text = page(result)

    class Reader(HTMLParser):
        points, raw, inside = "", "", False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            known = dict(attrs)
            assert not {"src", "href"} & set(known)  # nothing is fetched
            self.points = known.get("points") or self.points
            self.inside = tag == "script"

        def handle_data(self, data: str) -> None:
            self.raw += data if self.inside else ""
            self.inside = False

    reader = Reader()
    reader.feed(text)
    assert len(reader.points.split()) == 12
    assert Result.model_validate(json.loads(reader.raw)) == result


def test_commands(bundle_path: Path, tmp_path: Path) -> None:
    a, report = tmp_path / "a.json", tmp_path / "a.html"
    done = everframe("bench", bundle_path, "--chunks", 3, "-o", a, "--report", report, "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert "diffuse 4" in done.stdout
    assert report.read_text().startswith("<!doctype html>")
    done = everframe("bench", "--compare", a, a)
    assert done.returncode == 0, done.stderr
    assert "1.00×" in done.stdout
    done = everframe("bench", "--sweep", bundle_path, "threads=1,2", "--chunks", 2, "-o", tmp_path / "grid")
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["threads=1", "threads=2"]
    assert len(list((tmp_path / "grid").glob("*.json"))) == 2
    assert "kept" not in done.stdout
    again = everframe("bench", "--sweep", bundle_path, "threads=1,2", "--chunks", 2, "-o", tmp_path / "grid")
    assert again.stdout.splitlines() == [f"{line}, kept" for line in done.stdout.splitlines()]


def test_a_sweep_s_results_are_of_one_card_and_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    before = sweeps.here()
    assert sweeps.here() == before
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # as --gpu 1 sets it
    assert sweeps.here() != before
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("everframe.runtime.measure.bench.version", lambda package: "99")
    assert sweeps.here() != before


@pytest.mark.slow
def test_a_sweep_over_what_is_baked_in(checkpoint: Path, tmp_path: Path) -> None:
    refused = everframe("bench", "--sweep", "window=6,12", "-o", tmp_path / "grid")
    assert refused.returncode == 2
    assert "--checkpoint" in refused.stderr
    done = everframe(
        *("bench", "--sweep", "window=6,12", "steps=2", "precision=fp32,int8", "--checkpoint", checkpoint),
        *("--chunks", 2, "-o", tmp_path / "grid"),
    )
    assert done.returncode == 0, done.stderr
    results = {f.stem: read_result(f) for f in (tmp_path / "grid").glob("*.json")}
    assert len(results) == 4
    quantised, small, large = (
        results[f"precision{p}-steps2-window{w}"] for p, w in (("int8", 6), ("fp32", 6), ("fp32", 12))
    )
    assert (quantised.bundle["window"], quantised.bundle["precision"], quantised.bundle["steps"]) == (6, "int8", 2)
    assert large.memory["ring"] == 2 * small.memory["ring"]


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (("--compare", "a.json", "b.json", "--backend", "openvino"), "--compare: takes no --backend"),
        (("--compare", "a.json", "b.json", "-o", "c.json"), "--compare: takes no --output"),
        (("--sweep", "threads=1", "--report", "a.html"), "--sweep: takes no --report"),
        (("--browser", "--chunks", "5"), "--browser: takes no --chunks"),
        (("--browser", "--prompt", "x"), "--browser: takes no --prompt"),
        (("--browser", "--sweep", "threads=1"), "--sweep: takes no --browser"),
        (("--checkpoint", "training/demo"), "--checkpoint: expected --sweep"),
        (("--sweep", "threads=1", "--checkpoint", "x"), "--checkpoint x: nothing of this sweep is exported anew"),
        (("--sweep", "x.everframe", "window=6", "--checkpoint", "x"), "x.everframe: this sweep exports its bundles"),
        (("-o", "."), ".: is a folder; expected a file's name"),
        (("--backend", "tensorrt", "--threads", "2"), "--threads is of backends on a CPU"),
    ],
)
def test_what_a_way_of_bench_does_not_take_is_refused(words: tuple[str, ...], refused: str) -> None:
    found = CliRunner().invoke(app, ["bench", *words])
    assert isinstance(found.exception, UserError)
    assert refused in str(found.exception)


def test_a_sweep_hands_its_options_on_and_knows_what_its_results_are_of(
    result: Result, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another bundle, checkpoint, number of chunks or option is measured anew; the same is not."""
    ran: list[list[str]] = []

    def command(*words: str, accepted: tuple[int, ...] = (0,)) -> None:
        ran.append(list(words))
        place = Path(words[words.index("-o") + 1])
        if words[0] == "bench":
            place.write_text(result.model_dump_json())
        else:
            shutil.copytree(bundle_path, place, dirs_exist_ok=True)

    monkeypatch.setattr(sweeps, "_everframe", command)
    monkeypatch.chdir(tmp_path)

    def commands(*words: object) -> list[str]:
        ran.clear()
        done = CliRunner().invoke(app, ["bench", "--sweep", *map(str, words), "-o", "grid"])
        assert done.exception is None, done.exception
        return [words[0] for words in ran]

    options = ("--backend", "openvino", "--precision", "f32", "--seed", 5, "--prompt", "a lava lamp", "--unverified")
    assert commands(bundle_path, "threads=2", "--chunks", 3, *options) == ["bench"]
    given = dict(pairwise(ran[0]))
    assert {given[name] for name in ("--chunks", "--backend", "--precision", "--seed", "--prompt")} == {
        *("3", "openvino", "f32", "5", "a lava lamp")
    }
    assert "--unverified" in given
    assert [b for a, b in pairwise(ran[0]) if a == "--threads"][-1] == "2"
    assert commands(bundle_path, "threads=2", "--chunks", 3, *options) == []
    assert commands(bundle_path, "threads=2", "--chunks", 4, *options) == ["bench"]
    assert commands(bundle_path, "threads=2", "--chunks", 4) == ["bench"]
    assert commands(bundle_path, "threads=2", "--chunks", 4) == []
    shutil.copytree(bundle_path, other := tmp_path / "other.everframe")
    manifest = read_manifest(other / "manifest.json")
    write_manifest(other, manifest.model_copy(update={"name": "another"}))
    assert commands(other, "threads=2", "--chunks", 4) == ["bench"]
    (checkpoint := tmp_path / "checkpoint").mkdir()
    for content in ("one", "two"):
        (checkpoint / "weights").write_text(content)
        baked = ("window=6", "precision=int8", "--checkpoint", checkpoint)
        # The second one's bundle is the same here, and so its figures are.
        assert commands(*baked) == ["export", "calibrate", "bench"][: 3 if content == "one" else 2]
        assert commands(*baked) == []
    assert (tmp_path / "grid" / MADE).exists()
    commands("window=6", "precision=int4-weights", "--checkpoint", checkpoint)
    (calibrate,) = (words for words in ran if words[0] == "calibrate")
    check_acts({word[2:] for word in calibrate if word.startswith("--")}, "int4-weights", "smoothquant")


def test_a_prompt_change_is_one(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never to the prompt that runs already, and timed up to the chunk that is of the new one."""
    with Stream(Bundle.open(bundle_path), overlap=True, verify=False) as stream:
        order, made, log = stream.set_prompt, stream.next_chunk, list[str | None]()

        def ordered(prompt: str, transition: Transition) -> None:
            assert prompt != stream.prompt
            log.append(None)
            order(prompt, transition)

        def recorded() -> Chunk:
            chunk = made()
            log.append(chunk.prompt)
            return chunk

        stream.next_chunk()
        monkeypatch.setattr(stream, "set_prompt", ordered)
        monkeypatch.setattr(stream, "next_chunk", recorded)
        changes, _, _ = prompt_changes(stream, times=1)
    at = [i for i, prompt in enumerate(log) if prompt is None]
    assert len(at) == 4
    assert all(log[i + 1] != log[i + 2] == log[i + 3] for i in at)
    assert min(changes.values()) > 0


def test_energy_counters_begin_anew_when_they_are_full(tmp_path: Path) -> None:
    files = []
    for name, full in (("a", "1000000"), ("b", "9000000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text(full)
        files.append(tmp_path / name / "energy_uj")

    def stand(a: int, b: int) -> None:
        for file, value in zip(files, (a, b), strict=True):
            file.write_text(f"{value}\n")

    stand(900_000, 0)
    meter = Counters(files)
    for a, b, joules in ((900_000, 0, 0), (950_000, 500_000, 0.55), (20_000, 600_000, 0.72), (520_000, 600_000, 1.22)):
        stand(a, b)
        assert meter.joules() == pytest.approx(joules)


@pytest.mark.parametrize("words", [["size"], ["colour=red"], ["threads=1,"], ["threads=1", "threads=2"], []])
def test_grids_that_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match="--sweep"):
        grid(words)


def test_streams_share_engines_and_nothing_else(bundle_path: Path) -> None:
    """Interleaved on one backend, each makes the frames it makes alone; when the last is gone, so are the engines."""
    bundle, alone = Bundle.open(bundle_path), []
    for seed in (1, 2):
        with Stream(bundle, seed=seed) as stream:
            alone.append([stream.next_chunk().frames for _ in range(6)])
    backend = OrtBackend(EngineOptions())
    assert backend.load(bundle, "step") is not backend.load(bundle, "prompt")
    with Stream(bundle, seed=1, backend=backend) as a, Stream(bundle, seed=2, backend=backend) as b:
        assert len(backend._engines) == 4  # step, prompt, decode, recache: once for both
        for expected in zip(*alone, strict=True):
            assert (a.next_chunk().frames == expected[0]).all()
            assert (b.next_chunk().frames == expected[1]).all()
    del a, b
    assert len(backend._engines) == 0
