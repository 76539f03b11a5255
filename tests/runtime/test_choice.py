"""`--backend auto`: what is chosen, by real timings, and what is said and kept of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.choose import open_backend
from everframe.engines.errors import UserError
from everframe.engines.openvino import OvBackend
from everframe.engines.ort import OrtBackend
from everframe.engines.store import BuildRecord, Stored
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
    for name, other in (("thread_count", lambda wanted: 7), ("stored", lambda *_: [built("fp16")])):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(choice, name, other)  # on more cores, or by other engines, another may be the fastest
            with pytest.raises(TypeError):
                choice.open_engines(bundle, "auto", EngineOptions(threads=1), lines.append)


def built(precision: str) -> Stored:
    record = BuildRecord(backend="tensorrt", version="10.14", options={"precision": precision}, made="", graphs={})
    return Stored("0" * 16, Path(), record, None)


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
    assert lines == ["onnxruntime: nothing else that could run this bundle so is installed"]
    assert not (bundle.path / "engines" / choice.FILE).exists()


def test_a_failure_is_not_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def full(self: OvBackend, *args: object) -> None:
        raise UserError("out of memory")

    with monkeypatch.context() as at_first:
        at_first.setattr(OvBackend, "load", full)
        choice.open_engines(bundle, "auto", EngineOptions(threads=1))
    assert not (bundle.path / "engines" / choice.FILE).exists()
    choice.open_engines(bundle, "auto", EngineOptions(threads=1))
    assert {"onnxruntime", "openvino f32"} <= set(kept(bundle))


@pytest.mark.parametrize("damage", ["[1]", '{"onnxruntime": 300.0}', '{"onnxruntime": "300", "openvino f32": 2}'])
def test_a_record_that_lacks_something_is_made_anew(bundle: Bundle, damage: str) -> None:
    pytest.importorskip("openvino")
    choice.open_engines(bundle, "auto", EngineOptions(threads=1))
    file = bundle.path / "engines" / choice.FILE
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: json.loads(damage)}))
    choice.open_engines(bundle, "auto", EngineOptions(threads=1))
    assert all(isinstance(ms, float) for ms in kept(bundle).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (EngineOptions(device="bogus"), ["--device 'bogus'"]),
        (EngineOptions(precision="bogus"), ["--precision 'bogus'"]),
        (EngineOptions(device="npu"), ["--device 'npu'", "CPU"]),
    ],
)
def test_wishes_that_cannot_be_met(bundle: Bundle, options: EngineOptions, words: list[str]) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(UserError) as caught:
        choice.open_engines(bundle, "auto", options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "options", "word"),
    [
        ("onnxruntime", EngineOptions(precision="bf16"), "--precision"),
        ("onnxruntime", EngineOptions(device="gpu"), "--device"),
        ("openvino", EngineOptions(provider="cuda"), "--provider"),
        ("bogus", EngineOptions(), "onnxruntime, openvino, tensorrt-rtx, tensorrt, or auto"),
    ],
)
def test_options_of_another_backend(backend: str, options: EngineOptions, word: str) -> None:
    with pytest.raises(UserError, match=word):
        open_backend(backend, options)


def test_onnx_runtime_on_a_card_is_a_candidate(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its package is the one for NVIDIA's cards, and there is one; not beside a provider that was asked for."""
    monkeypatch.setattr(choice, "find_gpu", lambda: (object(), ""))
    here = [str(one) for one in choice.candidates(bundle, EngineOptions(threads=2))]
    monkeypatch.setattr(
        choice.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    found = choice.candidates(bundle, EngineOptions(threads=2))
    assert sorted(map(str, found)) == sorted([*here, "onnxruntime cuda"])
    assert next(one for one in found if str(one) == "onnxruntime cuda").options.provider == "cuda"
    asked = choice.candidates(bundle, EngineOptions(provider="cuda"))
    assert [str(one) for one in asked].count("onnxruntime cuda") == 1


def test_a_card_that_works_spares_the_cpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which would need minutes for each chunk of a large model; where the card's fails, it is tried."""
    found = [
        choice.Candidate("onnxruntime", EngineOptions()),
        choice.Candidate("onnxruntime", EngineOptions(provider="cuda")),
    ]
    asked: list[str] = []
    works = True

    def timed(bundle: Bundle, one: choice.Candidate, verify: bool) -> dict[str, float | str]:
        asked.append(str(one))
        return {str(one): 7.0 if works or not one.on_card else "out of memory"}

    monkeypatch.setattr(choice, "candidates", lambda bundle, options: found)
    monkeypatch.setattr(choice, "timed", timed)
    monkeypatch.setattr(choice, "open_backend", lambda name, options: options.provider)
    for _ in range(2):  # the second time it is kept
        assert choice.open_engines(bundle, "auto", EngineOptions()) == "cuda"
    assert asked == ["onnxruntime cuda"]
    (bundle.path / "engines" / choice.FILE).unlink()
    works = False
    assert choice.open_engines(bundle, "auto", EngineOptions()) == "cpu"
    assert asked[1:] == ["onnxruntime cuda", "onnxruntime"]
    assert not (bundle.path / "engines" / choice.FILE).exists()


def test_none_that_works(bundle: Bundle) -> None:
    found = choice.candidates(bundle, EngineOptions())
    with pytest.raises(UserError, match="none works here: onnxruntime: no"):
        choice.fastest(found[:1], {"onnxruntime": "no"})
