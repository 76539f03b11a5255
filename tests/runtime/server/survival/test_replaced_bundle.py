"""The bundle under a running server: hashed once, and another one that takes its place."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from everframe.engines.errors import UserError
from everframe.runtime.server.config import Config
from everframe.runtime.server.service import check_fits
from everframe.runtime.server.survival import seen as seen_module
from everframe.runtime.server.survival.seen import Replacement, see

from helpers import PROMPTS, with_prompts
from serving import serve, wait_for

OTHERS = ["a red kite", "a green kite"]


def test_a_bundle_is_hashed_once(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy.everframe"
    shutil.copytree(bundle_path, copy)
    seen = see(copy)
    hashed = []
    real = seen_module.verify
    monkeypatch.setattr(seen_module, "verify", lambda file, ref: (hashed.append(file.name), real(file, ref)))
    assert seen.open() == seen.bundle
    assert hashed == []
    step = copy / "step.onnx"
    step.touch()  # what has been touched is hashed again
    assert seen.open() == seen.bundle
    assert hashed == ["step.onnx"]
    good = step.read_bytes()
    step.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UserError, match="altered"):
        seen.open()
    step.write_bytes(good)
    (copy / "manifest.json").write_bytes((copy / "manifest.json").read_bytes() + b"\n")
    with pytest.raises(UserError, match="another bundle"):
        seen.open()


def test_a_bundle_that_a_power_cut_left_under_another_name(bundle_path: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle_path, tmp_path / ".b.everframe.1-ab.old")
    assert see(tmp_path / "b.everframe").bundle.path == tmp_path / "b.everframe"


def test_what_changes_while_it_is_verified_was_not(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy.everframe"
    shutil.copytree(bundle_path, copy)
    real = seen_module.open_bundle

    def changed_behind_it(path: Path) -> object:
        found = real(path)
        content = (copy / "step.onnx").read_bytes()
        (copy / "step.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return found

    monkeypatch.setattr(seen_module, "open_bundle", changed_behind_it)
    with pytest.raises(UserError, match=r"step\.onnx: was changed while it was verified"):
        see(copy)


def test_another_bundle_is_noticed_when_it_is_whole(bundle_path: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy.everframe", with_prompts(bundle_path, tmp_path / "other", OTHERS)
    shutil.copytree(bundle_path, copy)
    replacement = Replacement(see(copy), lambda bundle: None)
    assert [replacement.there() for _ in range(4)] == [None] * 4
    (copy / "step.onnx").touch()
    assert [replacement.there() for _ in range(4)] == [None] * 4  # the same manifest
    shutil.copy(other / "manifest.json", copy)  # the bank has not come yet
    assert [replacement.there() for _ in range(4)] == [None] * 4
    copy.rename(tmp_path / "away")
    assert replacement.there() is None
    (tmp_path / "away").rename(copy)
    shutil.copy(other / "prompts.safetensors", copy)
    assert replacement.there() is None  # it has just changed
    found = replacement.there()
    assert found is not None
    assert found.bundle.manifest.prompts == OTHERS


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"stream": {"post": "upscale"}}, "has no graph upscale"),  # of a bundle that had it
        ({"stream": {"prompt": PROMPTS[0]}}, "is not in the bundle"),
        ({"stream": {"prompt": PROMPTS[0]}, "playlist": {"items": [{"prompt": OTHERS[0]}]}}, "is not in the bundle"),
        ({"playlist": {"items": [{"prompt": PROMPTS[0]}]}}, "is not in the bundle"),
        ({"schedule": {"entries": [{"at": "08:00", "prompt": PROMPTS[0]}]}}, "is not in the bundle"),
        ({"guest": {"enabled": True, "prompts": [PROMPTS[0]]}}, "is not in the bundle"),
        ({"stream": {"anchor": "logo.png"}}, "has no encoder for an anchor"),
        ({"stream": {"rope": "relative"}}, "does not turn sinks"),
        ({"stream": {"sink_distance": 12}}, "expected rope relative"),
        ({"stream": {"backend": "tensorrt"}}, "holds no tensorrt engine"),
        ({"overlay": {"logo": {"file": "gone.png"}}}, "gone.png"),
        ({"video": {"push": ["rtmp://127.0.0.1/x"], "push_audio": "gone.ogg"}}, "gone.ogg"),
    ],
)
def test_one_that_lacks_what_the_configuration_names_is_refused(
    bundle_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, config: dict, words: str
) -> None:
    copy, other = tmp_path / "copy.everframe", with_prompts(bundle_path, tmp_path / "other", OTHERS)
    shutil.copytree(bundle_path, copy)
    settings = Config.model_validate({"state_dir": tmp_path / "state", **config})
    replacement = Replacement(see(copy), lambda bundle: check_fits(settings, bundle, here=True))
    assert replacement.there() is None
    for name in ("manifest.json", "prompts.safetensors"):
        shutil.copy(other / name, copy)
    assert [replacement.there() for _ in range(4)] == [None] * 4
    assert "cannot be used; going on" in caplog.text
    assert words in caplog.text


@pytest.mark.parametrize("kill", [True, False])
def test_the_server_starts_anew_with_it(bundle_path: Path, tmp_path: Path, kill: bool) -> None:
    live = tmp_path / "live.everframe"
    shutil.copytree(bundle_path, live)
    with_prompts(bundle_path, tmp_path / "other", OTHERS)
    with serve(tmp_path, live, "[stream]\nsave_seconds = 1\n") as site:
        assert site.ask("/api/prompt", "POST", {"prompt": PROMPTS[1]})[0] == 200
        wait_for(lambda: (site.state / "state.safetensors").exists())
        pid = site.process.pid
        live.rename(tmp_path / "old")
        (tmp_path / "other").rename(live)
        if kill:
            os.kill(site.generator(), signal.SIGKILL)

        def prompts() -> list[str]:
            try:
                return site.ask("/api/prompts")[1]["prompts"]
            except OSError:  # between two lives
                return []

        wait_for(lambda: prompts() == OTHERS, 60)
        wait_for(lambda: site.state_of()["prompt"] in OTHERS, 60)
        assert site.ask("/api/prompt", "POST", {"prompt": OTHERS[1]})[0] == 200
        wait_for(lambda: site.state_of()["prompt"] == OTHERS[1])
        assert site.ask("/api/prompt", "POST", {"prompt": PROMPTS[1]})[0] == 422
        assert site.process.poll() is None
        assert site.process.pid == pid
        log = site.log.read_text()
        assert log.count("another bundle has taken its place") == 1
        assert log.count("kept orders do not fit") == 1
        assert "Traceback" not in log


def test_one_that_cannot_be_used_does_not_end_the_picture(bundle_path: Path, tmp_path: Path) -> None:
    live = tmp_path / "live.everframe"
    shutil.copytree(bundle_path, live)
    with serve(tmp_path, live) as site:
        (live / "manifest.json").write_text("{}")
        wait_for(lambda: "replaced by one that cannot be used; going on" in site.log.read_text(), 30)
        position = site.state_of()["position"]
        wait_for(lambda: site.state_of()["position"] > position + 6)
        assert site.ask("/healthz") == (200, {"status": "ok", "problems": []})
