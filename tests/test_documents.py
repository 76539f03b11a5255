"""Every command of every document is a real one, and all that can run here do.

A block that needs more than this machine has is marked in its document, on the line before it: `<!-- needs: a GPU -->`. Its
`everframe` lines are still parsed by the command line, and its `pip install` lines name extras that exist.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "training" / "README.md"])
# What a mark may say: the reason why a block does not run here.
NEEDS = {
    "ci",  # .ci/run runs it
    "network",
    "hours",
    "a quiet machine",
    "minutes",
    "a GPU",
    "a Jetson",
    "a checkpoint",
    "published checkpoints",
    "several machines",
    "a running server",  # tests/runtime/server runs the same call
    "ffmpeg and v4l2loopback",
    "ffplay",
    "gst-launch-1.0",
}
PROGRAMS = (
    *(
        "everframe",
        "python",
        "python3",
        "make",
        "pip",
        "cp",
        "mkdir",
        "export",
        "curl",
        "ray",
        "rsync",
        "sudo",
        "cat",
        "gst-launch-1.0",
    ),
    *("ffplay", "ffmpeg"),
)
FOREVER = 8.0  # seconds after which a command that goes on until Ctrl-C gets it


@dataclass(frozen=True)
class Block:
    """Commands that stand together in a document."""

    document: Path
    line: int
    needs: tuple[str, ...]
    commands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """Indented blocks of a document, continuation lines joined, comments dropped."""
    default = ("hours",) if document.parent.name == "training" else ()
    found: list[Block] = []
    fenced, held, begun, needs = False, [], 0, default
    for number, line in enumerate([*document.read_text().splitlines(), ""], 1):
        if line.startswith("```"):
            fenced = not fenced
        inside = line.startswith("    ") and not fenced and not line.lstrip().startswith(("|", "- "))
        if inside:
            begun = begun or number
            held.append(line.strip())
        elif held:
            found.append(Block(document, begun, needs, commands_of(held)))
            held, begun, needs = [], 0, default
        if line.startswith("<!-- needs: "):
            needs = tuple(part.strip() for part in line[12 : line.index("-->")].split(","))
        elif line.strip() and not inside:
            needs = default
    return [block for block in found if block.commands]


def commands_of(lines: list[str]) -> tuple[str, ...]:
    text = "\n".join(lines).replace("\\\n", " ")
    return tuple(command for line in text.splitlines() if (command := re.sub(r"(^|\s+)#\s.*$", "", line).strip()))


ALL = [block for document in DOCUMENTS for block in blocks(document)]
RUNNABLE = [block for block in ALL if not block.needs]


def test_documents_have_commands_and_marks_say_why() -> None:
    assert len(ALL) > 25
    assert {need for block in ALL for need in block.needs} <= NEEDS
    assert sum(len(block.commands) for block in RUNNABLE) > 18


@pytest.mark.parametrize("block", ALL, ids=str)
def test_commands_are_real(block: Block) -> None:
    from everframe.runtime.cli.app import app

    group = typer.main.get_command(app)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for command in (part for whole in block.commands for part in re.split(r" \| | && ", whole)):
        words = shlex.split(command)
        assert Path(words[0]).name in PROGRAMS or words[0].startswith("TOKEN="), command
        if words[0].endswith("everframe"):
            parse(group, [word for word in words[1:] if word != "…"], partial="…" in words)
        if "pip" in Path(words[0]).name and words[1] == "install":
            named = {extra for word in words for inside in re.findall(r"\[(.*)\]", word) for extra in inside.split(",")}
            assert named <= set(extras), command
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), command
        if "python" in Path(words[0]).name and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), command


def parse(group, words: list[str], partial: bool) -> None:
    """Let the command line take the words without running the command. partial: options were left out."""
    context = group.make_context("everframe", words)
    while hasattr(group, "resolve_command"):
        left = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
        if not left:
            return
        name, group, rest = group.resolve_command(context, left)
        try:
            context = group.make_context(name, rest, parent=context)
        except Exception as error:
            if partial and type(error).__name__ == "MissingParameter":
                return
            raise


@pytest.mark.parametrize("words", ["generate -o x.mp4 --wrong", "plan --fps many", "genrate", "export wan --nope"])
def test_a_wrong_command_would_be_noticed(words: str) -> None:
    from everframe.runtime.cli.app import app

    with pytest.raises(Exception, match=r"No such|valid integer"):
        parse(typer.main.get_command(app), words.split(), partial=True)


@pytest.fixture(scope="module")
def place(bundle_path: Path, portable_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a checkout in which somebody has exported film.everframe."""
    folder = tmp_path_factory.mktemp("documents")
    for name in ("training", "benchmarks", "runtime", "docs", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(bundle_path, folder / "film.everframe")
    shutil.copytree(portable_path, folder / "portable.everframe")
    picture = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    Image.fromarray(picture).save(folder / "lobby.png")
    (folder / "everframe.toml").write_text('state_dir = "state"\n[server]\nport = 18745\n')
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    command = bin_folder / "everframe"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m everframe.runtime.cli "$@"\n')
    command.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_commands_run(block: Block, place: Path) -> None:
    env = os.environ | {
        "PATH": f"{place / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SDL_VIDEODRIVER": "dummy",
    }
    for command in block.commands:
        goes_on = any(word in command for word in ("--endless", "everframe serve", "everframe play", "everframe fleet"))
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}" if goes_on else command],
            cwd=place,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        stop = threading.Timer(FOREVER, process.send_signal, (signal.SIGINT,))
        if goes_on:
            stop.start()
        try:
            said, _ = process.communicate(timeout=900)
        finally:
            stop.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        fine = (
            (0, 1) if "calibrate" in command or "compare film" in command else (0,)
        )  # 1: the gate; its weights are random
        if goes_on:
            fine = (0, 130)  # as shells say of Ctrl-C
        assert process.returncode in fine, f"{command}\n{said}"


class EnoughError(Exception):
    """Raised by a document's example when it has shown enough."""


def code_blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"```{language}\n(.*?)```", re.S)
    return [(d.name, code) for d in DOCUMENTS for code in pattern.findall(d.read_text())]


@pytest.mark.parametrize(("document", "code"), code_blocks("python"))
def test_examples_run(document: str, code: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[np.ndarray] = []

    def show(frames: np.ndarray) -> None:
        shown.append(frames)
        if len(shown) == 14:
            raise EnoughError

    monkeypatch.chdir(place)
    with pytest.raises(EnoughError):
        exec(compile(code.replace("a calm sea under an orange sunset sky", known(code)), document, "exec"), {
            "show": show, "consume": show,
        })  # fmt: skip
    assert all(frames.dtype == np.uint8 for frames in shown)


def known(code: str) -> str:
    """A prompt that the example's bundle has: film.everframe here has three of its own."""
    return "a quiet sea" if "film.everframe" in code else "a calm sea under an orange sunset sky"


@pytest.mark.parametrize(("document", "text"), code_blocks("toml"))
def test_configurations_are_read(document: str, text: str, tmp_path: Path) -> None:
    from everframe.runtime.server.config import read_config
    from everframe.runtime.server.fleet.actors import read_fleet

    file = tmp_path / "x.toml"
    file.write_text(text)
    (read_fleet if document == "fleet.md" else read_config)(file)


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
