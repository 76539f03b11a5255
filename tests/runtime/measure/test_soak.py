"""Statistics against direct computations, the verdict against made-up runs, and a short real run."""

from __future__ import annotations

import gc
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.runtime import Stream
from everframe.runtime.measure.soak import Minute, Soak, soak, verdict
from everframe.runtime.measure.soak_report import write_report
from everframe.runtime.measure.statistics import clip_stats, latent_distance

RNG = np.random.default_rng(0)


def test_statistics_follow_their_definitions() -> None:
    frames = RNG.integers(0, 256, (6, 9, 11, 3), dtype=np.uint8)
    luma = [[[0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in row] for row in f.tolist()] for f in frames]
    y = np.array(luma)
    sharp = []
    for f in y:
        values = [
            4 * f[i, j] - f[i - 1, j] - f[i + 1, j] - f[i, j - 1] - f[i, j + 1]
            for i in range(1, 8)
            for j in range(1, 10)
        ]
        sharp.append(np.var(values))
    means = [f.mean() for f in y]
    s = clip_stats(frames)
    assert s.colour == pytest.approx([frames[..., c].mean() for c in range(3)])
    assert s.sharpness == pytest.approx(np.mean(sharp), rel=1e-4)
    assert s.motion == pytest.approx(np.mean([np.abs(y[t + 1] - y[t]).mean() for t in range(5)]), rel=1e-4)
    pulses = [abs(means[t] - 2 * means[t + 1] + means[t + 2]) for t in range(4)]
    assert s.flicker == pytest.approx(np.mean(pulses), rel=1e-3)


def test_seams_between_clips_count() -> None:
    frames = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    whole, a, b = clip_stats(frames), clip_stats(frames[:6]), clip_stats(frames[6:], frames[4:6])
    assert (5 * a.motion + 6 * b.motion) / 11 == pytest.approx(whole.motion, rel=1e-5)
    assert (4 * a.flicker + 6 * b.flicker) / 10 == pytest.approx(whole.flicker, rel=1e-4)


def test_latent_distance_of_independent_noise_is_root_two() -> None:
    a, b = RNG.standard_normal((2, 16, 3, 18, 32)).astype(np.float32)
    assert latent_distance(a, b) == pytest.approx(2**0.5, rel=0.02)
    assert latent_distance(a, a) == 0


STEADY = [Minute(i, (90.0, 80.0, 70.0), 200.0, 3.0, 0.1, 1.2, 1.0, 10**8, 300.0, 320.0) for i in range(60)]


def test_a_steady_run_holds_even_if_it_wanders() -> None:
    wave = [replace(m, sharpness=200 + 30 * np.sin(m.minute / 3), motion=3 + np.sin(m.minute)) for m in STEADY]
    assert verdict(STEADY) == []
    assert verdict(wave) == []
    assert verdict(STEADY[:1]) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: replace(m, sharpness=200 - 0.6 * m.minute), "sharpness drifts by 1"),
        (lambda m: replace(m, colour=(90.0, 80.0, 70.0 + 0.3 * m.minute)), "colour drifts"),
        (lambda m: replace(m, motion=1.4 if m.minute == 30 else 3.0), "motion falls to 47%"),
        (lambda m: replace(m, memory_bytes=10**8 + 60_000 * m.minute), "memory grows by 3.5%"),
    ],
)
def test_each_bound_can_be_broken(change, words: str) -> None:
    (problem,) = verdict([change(m) for m in STEADY])
    assert words in problem


def test_a_second_of_calm_at_the_end_is_no_drift() -> None:
    whole = [replace(m, chunks=80) for m in STEADY[:2]]
    calm = replace(STEADY[2], chunks=2, motion=1.0, sharpness=300.0)
    assert verdict([*whole, calm]) == []
    assert verdict([*whole, replace(calm, chunks=60)])
    assert verdict([*STEADY[:2], replace(calm, chunks=None)])  # of a record of before
    assert verdict([replace(calm, chunks=2)]) == []


def test_memory_is_held_process_by_process() -> None:
    def run(*memory: int) -> list[str]:
        return verdict([replace(m, memory_bytes=memory[m.minute // 30], process=m.minute // 30) for m in STEADY])

    assert run(10**8, 2 * 10**8) == []
    begun = [replace(m, memory_bytes=9 * 10**7 if m.minute == 0 else 10**8) for m in STEADY]
    assert verdict(begun) == verdict(begun[:1]) == []
    resumed = [replace(m, process=m.minute // 30) for m in STEADY]
    resumed[-1] = replace(resumed[-1], memory_bytes=103 * 10**6)
    assert verdict(resumed) == ["memory grows by 3.0% after the second minute (bound 2%)"]


class PowerCutError(Exception):
    pass


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(bundle: Bundle, tmp_path: Path) -> None:
    """Also from a minute that was recorded when the power went, but not kept: it is made again."""

    def run(minutes: float, resume: bool, cut_in: int | None = None) -> Soak:
        def watch(so_far: Soak) -> None:
            if so_far.minutes[-1].minute == cut_in:
                raise PowerCutError

        with Stream(bundle, seed=4) as stream:
            return soak(stream, minutes, 0.7, watch, "A" if cut_in else "B", tmp_path / "state", resume)

    whole = run(3.4, False)
    with pytest.raises(PowerCutError):
        run(3.4, False, cut_in=2)
    resumed = run(3.4, True)

    def seen(result: Soak) -> list[tuple]:
        pictures = [(m.minute, m.colour, m.sharpness, m.motion, m.flicker) for m in result.minutes]
        return [
            *zip(pictures, [(m.sink_distance, m.collapse_max, m.collapse_mean) for m in result.minutes], strict=True)
        ]

    assert seen(resumed) == seen(whole)
    assert [m.process for m in resumed.minutes] == [0, 0, 1, 1]
    assert np.array_equal(resumed.sheet, whole.sheet)
    assert resumed.settings == whole.settings | {"computed_by": ["A", "B"]}
    assert seen(run(4, True))[:3] == seen(whole)[:3]  # on beyond what was asked for first
    with (
        pytest.raises(UserError, match=r"its sheet has a frame every 0.7 minutes, here every 5"),
        Stream(bundle, seed=4) as stream,
    ):
        soak(stream, 5, keep=tmp_path / "state", resume=True)


def test_the_sheet_takes_no_memory(bundle: Bundle, tmp_path: Path) -> None:
    """A frame of every chunk, and a run that is longer holds no more of them."""
    held: list[int] = []

    def watch(so_far: Soak) -> None:
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])

    with Stream(bundle, seed=1, verify=False) as stream:
        frame = stream.output.height * stream.output.width * 3
        tracemalloc.start()
        try:
            result = soak(stream, 3, 0.0125, watch, keep=tmp_path / "run" / "state")
        finally:
            tracemalloc.stop()
    assert len(result.sheet) == 240
    assert held[-1] - held[0] < 20 * frame  # of 160 more
    assert (tmp_path / "run" / "state").stat().st_size < (tmp_path / "run" / "state.sheet").stat().st_size
    assert (result.sheet[-1] == result.sheet[239]).all()


def test_a_short_real_run(bundle: Bundle, tmp_path: Path) -> None:
    with Stream(bundle, seed=1, start=3 * 10**6) as stream:
        result = soak(stream, minutes=2.5, sheet_minutes=1)
    write_report(tmp_path / "report", result)
    record = json.loads((tmp_path / "report" / "soak.json").read_text())
    assert [m["minute"] for m in record["minutes"]] == [0, 1, 2]
    assert record["settings"]["start"] == 3 * 10**6
    assert record["video_minutes"] == 2.5
    with Stream(bundle, seed=1, start=3 * 10**6) as stream:
        chunks = [stream.next_chunk() for _ in range(160)]
    frames = np.concatenate([chunk.frames for chunk in chunks[:80]])
    distance = [np.sqrt(np.mean((chunk.latent.astype(float) - chunks[0].latent) ** 2)) for chunk in chunks]
    # A chunk is judged in the minute that has the tenth chunk behind it.
    drops = [100 * max(0, 1 - distance[c] / np.median(distance[c - 10 : c + 11])) for c in range(11, 150)]
    for minute, judged in zip(record["minutes"], (drops[:59], drops[59:]), strict=False):
        assert minute["collapse_max"] == pytest.approx(max(judged), rel=1e-6) != 0
        assert minute["collapse_mean"] == pytest.approx(np.mean(judged), rel=1e-6)
    assert record["minutes"][0]["colour"] == pytest.approx(frames.mean((0, 1, 2)).tolist(), rel=1e-6)
    assert record["minutes"][0]["memory_bytes"] > 10**7
    sheet = np.asarray(Image.open(tmp_path / "report" / "sheet.png"))
    assert sheet.shape == (32, 4 * 64, 3)
    assert (sheet[:, :64] == frames[11]).all()
