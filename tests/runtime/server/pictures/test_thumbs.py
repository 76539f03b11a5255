"""Pictures of prompts: made ahead by the bundle itself, found by the server, and not kept for another bundle."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from everframe.engines.bundle import Bundle, write_manifest
from everframe.engines.graphfile import describe_graph
from everframe.runtime.server.pictures.thumbs import Thumbs

from serving import COMMAND, serve


def pictures(bundle: Path, state: Path) -> str:
    words = [*COMMAND, str(bundle), "--state-dir", str(state), "--pictures"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pictures_of_prompts_that_no_stream_has_shown(bundle_path: Path, tmp_path: Path) -> None:
    prompts = Bundle.open(bundle_path).manifest.prompts
    state = tmp_path / "state"
    told = pictures(bundle_path, state)
    assert [prompt for prompt in prompts if prompt in told] == list(prompts)
    with serve(tmp_path, bundle_path) as site:
        assert site.ask("/api/prompts")[1]["pictures"] == sorted(prompts)
        files = sorted((state / "pictures").iterdir())
        shown = [np.asarray(Image.open(io.BytesIO(file.read_bytes()))) for file in files]
        assert {one.shape for one in shown} == {(160, 320, 3)}
        assert len({one.tobytes() for one in shown}) == len(prompts)
    assert "every prompt has a picture" in pictures(bundle_path, state)


def test_another_bundle_has_pictures_of_its_own(bundle_path: Path, tmp_path: Path) -> None:
    """Of the same prompts; those of the one before are nobody's any more."""
    state, other = tmp_path / "state", tmp_path / "other.everframe"
    pictures(bundle_path, state)
    before = {file.name for file in (state / "pictures").iterdir()}
    shutil.copytree(bundle_path, other)
    manifest = Bundle.open(other).manifest
    graphs = dict(manifest.graphs)
    with open(other / graphs["decode"].model.file, "ab") as file:
        file.write(b"\x12\x01x")  # of the model: who made it
    graphs["decode"] = describe_graph(other / graphs["decode"].model.file)
    write_manifest(other, manifest.model_copy(update={"graphs": graphs}))
    pictures(other, state)
    Thumbs(state / "pictures", Bundle.open(other)).tidy()  # as the server does when it starts
    after = {file.name for file in (state / "pictures").iterdir()}
    assert (len(after), before & after) == (len(before), set())
