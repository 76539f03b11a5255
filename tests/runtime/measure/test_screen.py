"""`everframe bench --browser`: a Chromium that sees cuts, and what it says where there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from everframe.engines.errors import UserError
from everframe.runtime import DEMO_BUNDLE
from everframe.runtime.cli.app import app
from everframe.runtime.measure.screen import BROWSERS, Taken, find_browser, order_to_screen, summary


def test_without_a_chromium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["bench", "--browser", "-o", str(tmp_path / "out.json")])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith("--browser: no Chromium on PATH, expected one of chromium, ")
    assert list(tmp_path.iterdir()) == []


def test_rows() -> None:
    rows = summary([Taken("mse", [1.0, 2.0, 3.0], 400), Taken("webrtc", [0.5, 1.0, 1.5], 300)])
    assert [row[:3] + row[6:] for row in rows] == [
        ["mse", "3", "2.00", "0.40", "1.00"],
        ["webrtc", "3", "1.00", "0.30", "0.50"],
    ]


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="Chromium is not installed: apt install chromium")
def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the server that is measured: error: .*provider 'kuda'"):
        order_to_screen(DEMO_BUNDLE, ["mse"], 1, {"provider": "kuda"})
    assert find_browser()


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="Chromium is not installed: apt install chromium")
def test_cuts_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everframe.runtime.cli.measure.CUTS", 2)
    result = CliRunner().invoke(app, ["bench", "--browser", "-o", str(tmp_path / "out.json")], catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((tmp_path / "out.json").read_text())["order_to_screen"]
    assert [(one["way"], len(one["cuts"])) for one in found] == [("mse", 2), ("webrtc", 2)]
    assert all(0.05 < seconds < 20 for one in found for seconds in one["cuts"])
