"""`everframe soak`, as a user runs it again in the same folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import PROMPTS


@pytest.mark.slow
def test_a_second_run_in_the_folder(bundle_path: Path, tmp_path: Path) -> None:
    def run(*words: str, refused: str = "") -> None:
        command = [sys.executable, "-m", "everframe.runtime.cli", "soak", "-b", str(bundle_path), "-o", "out", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert "Traceback" not in done.stderr
        if refused:
            assert done.returncode == 2, done.stderr
            assert done.stderr.count("\n") == 1
            assert refused in done.stderr
        else:
            assert done.returncode in (0, 1), done.stderr  # noise keeps no bounds

    def minutes() -> list[tuple[int, int]]:
        record = json.loads((tmp_path / "out" / "soak.json").read_text())
        return [(m["minute"], m["process"]) for m in record["minutes"]]

    run("--resume", refused="soak.state: no such state")
    run("--minutes", "1")
    run("--minutes", "1", refused="--resume goes on with it, --force replaces it")
    run("--minutes", "2", "--resume", "--seed", "1", refused="belongs to another seed")
    run("--minutes", "2", "--resume", "--prompt", PROMPTS[1], refused="belongs to another prompt")
    run("--minutes", "2", "--resume", "--start", "30", refused="belongs to another start (0, here 30)")
    assert minutes() == [(0, 0)]
    run("--minutes", "2", "--resume")
    assert minutes() == [(0, 0), (1, 1)]
    run("--minutes", "1", "--force")
    assert minutes() == [(0, 0)]
    run("--minutes", "0.1", "--force")  # too short for a state: that of the run before is gone with it
    assert minutes() == [(0, 0)]
    run("--minutes", "2", "--resume", refused="soak.state: no such state")
    run(
        "--minutes",
        "0.1",
        refused="soak.json: an earlier run stands here; it has no state to go on from, --force replaces it",
    )
    (tmp_path / "out" / "soak.state").write_bytes(b"half")
    run("--minutes", "2", "--resume", refused="soak.state: not a whole state")
