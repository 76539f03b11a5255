"""What comes from outside is shown as it is, and cannot command a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everframe.runtime.cli.console import visible

COMMAND = [sys.executable, "-m", "everframe.runtime.cli"]


def everframe(*words: str, **kw) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, **kw)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[bold]a[/bold] [/] [link=x]", "[bold]a[/bold] [/] [link=x]"),
        ("a\nb\tc\u2028d", "a b c d"),
        ("\x1b[2Jx\x07", "\\x1b[2Jx\\x07"),
        ("photo\u202egpj.exe", "photo\\x202egpj.exe"),
        ("日本 ✓ é 👩‍👩‍👧", "日本 ✓ é 👩‍👩‍👧"),
    ],
)
def test_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("name", ["[flux.2.klein]x.mp4", "a[/b].mp4", "[bold red]x[/].mp4", "[/]x.mp4"])
def test_names_with_brackets(bundle_path: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    done = everframe("generate", "-b", str(bundle_path), "--seconds", "0.2", "-o", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"{name}: ")
    assert (tmp_path / name).is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["export", "no[where]", "-o", "y[/].everframe"],
        ["generate", "-b", "[/]", "-o", "x.mp4"],
        ["inspect", "x[bold]\x1b[31m"],
        ["build", "[/x]"],
        ["calibrate", "[/x]", "-o", "y.everframe"],
        ["bench", "[/x]"],
        ["prompts", "-b", "[/]"],
        ["frob[/]"],
    ],
)
def test_errors_are_one_line(tmp_path: Path, words: list[str]) -> None:
    done = everframe(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
    assert "[" in done.stderr


def test_a_locale_without_the_letters(bundle_path: Path) -> None:
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = everframe("generate", "-b", str(bundle_path), "--prompt", "ein Café ✓", "-o", "x.mp4", env=env)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_standard_output_that_is_full() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device\n"
