"""Every numeric option of every command, with numbers that nobody means: one line, never a traceback."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from everframe.engines.errors import UserError
from everframe.runtime.cli.app import app, load
from everframe.runtime.cli.commands import COMMANDS

ABSURD = ("nan", "inf", "-inf", "1e300", str(10**30), "-" + str(10**30))
VALUES = (*ABSURD, "-1", "0", "0.5")
# What each command needs besides, chosen so that it ends before it works: an output that has no folder, files that are none.
GIVEN = {
    "generate": ["-o", "none/x.mp4", "-b", "BUNDLE"],
    "play": ["-b", "none"],
    "serve": ["none"],
    "fleet": ["none"],
    "plan": [],
    "bench": ["none"],
    "soak": ["-o", "none/x"],
    "study sinks": ["-o", "none/x"],
    "compare": ["none", "none"],
    "calibrate": ["none", "-o", "x.everframe"],
    "build": ["none"],
    "inspect": ["none"],
    "verify": ["none"],
    "doctor": [],
    "prompts": ["-b", "none"],
    "prompts add": ["none"],
    "export checkpoint": ["CHECKPOINT", "-o", "none/x.everframe"],
    "export wan": ["--generator", "x", "--vae", "x", "--text-encoder", "x", "--prompts", "x", "-o", "none/x.everframe"],
    "recipes": [],
    "post add": ["none", "--upscale", "none.onnx"],
}


def numeric(command: Any, name: str) -> Iterator[tuple[str, str]]:
    """(command, flag) of every option that takes a number."""
    for below, inner in getattr(command, "commands", {}).items():
        yield from numeric(inner, f"{name} {below}")
    hints = typing.get_type_hints(inspect.unwrap(command.callback)) if command.callback else {}
    for parameter in command.params:
        kind = str(hints.get(parameter.name))
        if any(word in kind for word in ("int", "float")) and parameter.opts[0].startswith("-"):
            yield name, parameter.opts[0]


OPTIONS = [found for name in COMMANDS for found in numeric(load(name), name)]


def test_there_are_options() -> None:
    assert len(OPTIONS) > 40
    assert {name for name, _ in OPTIONS} <= set(GIVEN)


@pytest.mark.parametrize(("name", "flag"), OPTIONS, ids=" ".join)
def test_numbers(
    name: str, flag: str, bundle_path: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"BUNDLE": str(bundle_path), "CHECKPOINT": str(checkpoint)}
    given = [places.get(word, word) for word in GIVEN[name]]
    for value in VALUES:
        words = [*name.split(), *given, flag, value]
        result = CliRunner().invoke(app, words)
        error = result.exception
        assert error is None or isinstance(error, UserError | SystemExit | typer.Exit), f"{words}: {error!r}"
        if isinstance(error, UserError):
            assert "\n" not in str(error)
        if value in ABSURD:  # what is wrong is the number, whatever else is
            assert flag in f"{error} {result.output}", f"{words}: {error} {result.output}"
    assert list(tmp_path.iterdir()) == []
