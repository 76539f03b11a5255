"""`everframe bench`: figures against direct computation, files against their schema, commands as a user gives them."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.ort import OrtBackend
from everframe.runtime import Stream
from everframe.runtime.measure.bench import Result, bench, lateness, ratios, read_result, spread
from everframe.runtime.measure.bench_report import page, summary
from everframe.runtime.measure.sweep import grid

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
        *("host copy", "host", "chunk", "video encode", "encode", "recache by window"),
    }
    for one in s.stages.values():
        assert 0 <= one.p50 <= one.p90 <= one.p99 <= one.max
    parts = sum(s.stages[n].mean for n in ("diffuse", "finalize", "decode", "host copy", "host"))
    assert parts <= s.stages["chunk"].mean * 1.02
    assert parts >= s.stages["chunk"].mean * 0.5
    assert s.real_time_factor == pytest.approx(s.fps / 16)
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
