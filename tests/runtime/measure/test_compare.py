"""Comparing bundles: the figures against direct formulas, lock-step against two hand-driven streams."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.ort import OrtBackend, OrtEngine
from everframe.runtime import Stream
from everframe.runtime.cli.app import app
from everframe.runtime.measure.compare import BEST, Comparison, FreeRun, LockStep, compare
from everframe.runtime.measure.statistics import psnr, ssim

from helpers import PROMPTS


def test_psnr_and_ssim_against_direct_formulas() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 256, (2, 16, 18, 3), dtype=np.uint8)
    b = np.clip(a + rng.normal(0, 12, a.shape), 0, 255).astype(np.uint8)
    error = np.mean([(float(x) - float(y)) ** 2 for x, y in zip(a.ravel(), b.ravel(), strict=True)])
    assert psnr(a, b) == pytest.approx(20 * np.log10(255 / np.sqrt(error)), abs=1e-4)
    assert psnr(a, a) == float("inf")
    gauss = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(gauss, gauss) / np.outer(gauss, gauss).sum()
    x, y = (clip.astype(np.float64) @ [0.2126, 0.7152, 0.0722] for clip in (a, b))
    values = []
    for t in range(2):
        for i in range(6):
            for j in range(8):
                p, q = x[t, i : i + 11, j : j + 11], y[t, i : i + 11, j : j + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                luminance = (2 * mp * mq + 6.5025) / (mp**2 + mq**2 + 6.5025)
                values.append(luminance * (2 * cov + 58.5225) / (vp + vq + 58.5225))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-4)
    assert ssim(a, a) == pytest.approx(1, abs=1e-5)


def test_a_bundle_equals_itself_and_its_other_form(bundle_path: Path, portable_path: Path) -> None:
    a, b = Bundle.open(bundle_path), Bundle.open(portable_path)
    found = compare(a, b, PROMPTS[:2], [3, 4], chunks=7, minutes=0.05)
    assert len(found.lockstep) == 4
    assert min(min(run.psnr) for run in found.lockstep) > 50
    assert found.summary()["passed"]
    same = compare(a, a, PROMPTS[:1], [3], chunks=3, minutes=0)
    assert same.lockstep[0].psnr == [BEST] * 3
    assert same.lockstep[0].latent == [0.0] * 3


def test_a_prompt_that_the_second_lacks_is_found_before_the_first_runs(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Bundle.open(bundle_path)
    b = replace(a, manifest=a.manifest.model_copy(update={"prompts": PROMPTS[:1]}))
    ran: list[str] = []
    with pytest.raises(UserError, match="is not in the bundle's prompt bank of 1"):
        compare(a, b, PROMPTS[:2], [3], chunks=1, minutes=0, tell=ran.append)
    assert ran == []


def test_the_two_are_never_loaded_together(bundle_path: Path) -> None:
    loads = []

    class Watched(OrtBackend):
        other: OrtBackend

        def load(self, bundle: Bundle, name: str, beside: bool = False) -> OrtEngine:
            loads.append(len(self.other._engines))
            return super().load(bundle, name, beside)

    first, second = Watched(EngineOptions(threads=1)), Watched(EngineOptions(threads=1))
    first.other, second.other = second, first
    bundle = Bundle.open(bundle_path)
    compare(bundle, bundle, PROMPTS[:2], [3, 4], chunks=2, minutes=0.02, backends=(first, second))
    assert len(loads) >= 12 * 3
    assert not any(loads)


def test_lockstep_is_from_the_first_ones_history(bundle_path: Path, checkpoint: Path, tmp_path: Path) -> None:
    """The second bundle commits the first one's latents: its chunk is what a stream with that history makes next."""
    other = Path(shutil.copytree(bundle_path, tmp_path / "b.everframe"))
    bank = json.loads((other / "manifest.json").read_text())
    bank["provenance"] = {}
    (other / "manifest.json").write_text(json.dumps(bank))
    a, b = Bundle.open(bundle_path), Bundle.open(other)
    found = compare(a, b, PROMPTS[:1], [3], chunks=5, minutes=0)
    with (
        Stream(a, prompt=PROMPTS[0], seed=3, overlap=False) as one,
        Stream(b, prompt=PROMPTS[0], seed=3, overlap=False) as two,
    ):
        for c in range(5):
            chunk = one.next_chunk()
            state = two.snapshot()
            assert (two.next_chunk().frames == chunk.frames).all()
            two.restore(*state)
            kept = two.keep_chunk(chunk.latent)
            assert kept.index == c
            assert kept.timings.diffuse == ()
            assert (kept.latent == chunk.latent).all()
            assert (kept.frames == chunk.frames).all()
    assert found.lockstep[0].psnr == [BEST] * 5


def test_the_gate() -> None:
    def run(psnr_values: list[float], sharpness: float) -> dict:
        steps = LockStep("p", 0, psnr_values, [0.9] * len(psnr_values), [0.1] * len(psnr_values))
        first = {"colour": [100.0, 50.0, 150.0], "sharpness": 20.0, "motion": 2.0}
        free = FreeRun("p", 0, 10, first, first | {"sharpness": sharpness})
        return Comparison([good, steps], [free]).summary()

    good = LockStep("q", 0, [BEST] * 3, [1.0] * 3, [0.0] * 3)  # what one prompt does well is no help to another
    assert run([36, 35, 40], 20.9)["passed"]
    assert not run([36, 30, 33], 20.0)["passed"]  # the mean is below 35 dB
    wrapped = [99.0] * 4 + [23.0] * 20  # equal until the ring wraps: 35.7 dB in the mean of decibels
    assert not run(wrapped, 20.0)["passed"]
    assert run([36, 30, 42], 20)["psnr_worst_run"] == pytest.approx(
        -10 * np.log10(np.mean([10**-3.6, 1e-3, 10**-4.2])), abs=0.01
    )
    assert not run([36, 35, 40], 21.1)["passed"]  # more than 5 % sharper
    assert run([36, 30, 42], 20)["psnr_least"] == 30


def test_other_geometries_are_refused(bundle_path: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle_path, tmp_path / "b.everframe"))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["geometry"]["fps"] = 8
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another geometry"):
        compare(Bundle.open(bundle_path), Bundle.open(other), PROMPTS[:1], [0], 1, 0)


def test_a_backend_is_judged_by_the_same_bundle(bundle_path: Path) -> None:
    pytest.importorskip("openvino")
    words = ["compare", str(bundle_path), str(bundle_path), "--backend", "openvino", "--chunks", "6", "--minutes", "0"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    psnr = float(next(line for line in result.stderr.splitlines() if line.startswith("psnr_least")).split()[1])
    assert 60 < psnr < BEST  # other kernels, the same float32 video
    with pytest.raises(UserError, match="--precision 'int3'"):
        CliRunner().invoke(app, [*words, "--precision", "int3"], catch_exceptions=False)
