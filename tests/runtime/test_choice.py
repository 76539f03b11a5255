"""`--backend auto`: what is chosen, by real timings, and what is said and kept of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.openvino import OvBackend
from everframe.engines.ort import OrtBackend
from everframe.runtime import Stream, choice


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path) -> Bundle:
    path = shutil.copytree(bundle_path, tmp_path / "film.everframe", ignore=shutil.ignore_patterns("engines"))
    return Bundle.open(path)


def kept(bundle: Bundle) -> dict[str, float | str]:
    (record,) = json.loads((bundle.path / "engines" / choice.FILE).read_text()).values()
    return record


def test_the_fastest_by_what_was_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    lines: list[str] = []
    backend = choice.open_engines(bundle, "auto", EngineOptions(threads=1), lines.append)
    record = kept(bundle)
    assert {"onnxruntime", "openvino f32"} <= set(record)
    best = min(record, key=lambda name: float(record[name]))
    assert isinstance(backend, OrtBackend if best == "onnxruntime" else OvBackend)
    assert lines[0].startswith(f"{best}: the fastest here")
    for name in record:
        assert name in lines[0]
    with Stream(bundle, backend=backend) as stream:
        assert stream.next_chunk().frames.size
    monkeypatch.setattr(choice, "timed", None)  # whoever measures again falls over it
    choice.open_engines(bundle, "auto", EngineOptions(threads=1), lines.append)
    assert lines[0] == lines[1]


def test_one_that_fails_is_named_and_never_chosen(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def broken(self: OvBackend, *args: object) -> None:
        raise UserError("this driver is too old")

    monkeypatch.setattr(OvBackend, "load", broken)
    lines: list[str] = []
    assert isinstance(choice.open_engines(bundle, "auto", EngineOptions(threads=1), lines.append), OrtBackend)
    assert "openvino f32: this driver is too old" in lines[0]


def test_alone_it_is_taken_without_a_timing(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice.openvino, "installed_devices", lambda: [])  # as where the extra is not installed
    lines: list[str] = []
    assert isinstance(choice.open_engines(bundle, "auto", EngineOptions(), lines.append), OrtBackend)
    assert lines == ["onnxruntime: nothing else that could run this bundle is installed"]
    assert not (bundle.path / "engines" / choice.FILE).exists()


def test_none_that_works(bundle: Bundle) -> None:
    found = choice.candidates(bundle, EngineOptions())
    with pytest.raises(UserError, match="none works here: onnxruntime: no"):
        choice.fastest(found[:1], {"onnxruntime": "no"})
