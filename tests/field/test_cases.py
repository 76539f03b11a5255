"""Public faults of this field, tried as a user meets them: a file or a command, and what is right.

The sources are reports at the trackers of neighbours, by kind; the inputs were made here. What the server does is in
tests/runtime/server, what files of checkpoints do in tests/export.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from everframe.runtime import DEMO_BUNDLE

EVERFRAME = [sys.executable, "-m", "everframe.runtime.cli"]
DEMO = ["-b", str(DEMO_BUNDLE)]


@dataclass(frozen=True)
class Case:
    name: str
    source: str  # kind of project whose users reported it
    prepare: Callable[[Path], object]  # makes the input in an empty folder
    words: list[str]
    code: int = 0
    says: tuple[str, ...] = ()  # on standard error
    makes: tuple[str, ...] = ()
    shows: dict[tuple[int, int], tuple[int, int, int]] = field(default_factory=dict)  # pixels of out/000000.png


def nothing(folder: Path) -> None:
    pass


def flag() -> Image.Image:
    """Red above blue, a white square at the left top, in the demo's proportions."""
    picture = np.zeros((288, 512, 3), np.uint8)
    picture[:144], picture[144:] = (220, 20, 30), (20, 40, 200)
    picture[:96, :96] = 255
    return Image.fromarray(picture)


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    flag().transpose(Image.Transpose.ROTATE_90).save(folder / "x.jpg", exif=exif, quality=95)


def hidden_pink(folder: Path) -> None:
    pixels = np.zeros((288, 512, 4), np.uint8)
    pixels[:] = (255, 0, 200, 0)
    pixels[48:240, 160:352] = 255
    Image.fromarray(pixels).save(folder / "x.png")


def workflow(folder: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", "x" * 3_000_000, zip=True)
    flag().save(folder / "x.png", pnginfo=info)


def bomb(folder: Path) -> None:
    with open(folder / "x.png", "wb") as f:
        Image.new("1", (20_000, 20_000)).save(f, "PNG")


def recording(folder: Path) -> None:
    (folder / "x.mkv").write_bytes(b"precious")


SEA = "a calm sea under an orange sunset sky"
ANCHOR = ["generate", *DEMO, "--seconds", "0.1", "-o", "out/", "--anchor"]
CORNER, TOP, BOTTOM = (20, 20), (20, 200), (120, 128)
GROUND = (0x20, 0x40, 0xC0)
COLOURS = {CORNER: (255, 255, 255), TOP: (220, 20, 30), BOTTOM: (20, 40, 200)}
OUT = ["--seconds", "0.1", "-o", "x.mp4"]
WIDE_SEA = SEA.replace(" ", "  ")
SHOWN, TERMINAL = "picture library", "terminal library"
NAMED = ["generate", "--seconds", "0.1", "-o"]
CASES = (
    Case("infinite", "generator", nothing, ["generate", "--seconds", "inf", "-o", "x.mp4"], 2, ("--seconds inf",)),
    Case("huge", "generator", nothing, ["generate", "--seconds", "1e300", "-o", "x.mp4"], 2, ("--seconds",)),
    Case("infinite soak", "generator", nothing, ["soak", "--minutes", "inf", "-o", "so"], 2, ("--minutes inf",)),
    Case("absurd threads", "runtime", nothing, ["generate", "--threads", "100000", *OUT], 2, ("threads",)),
    Case("brackets", TERMINAL, nothing, [*NAMED, "[a.b]x.mp4"], 0, ("[a.b]x.mp4: ",), ("[a.b]x.mp4",)),
    Case("closing tag", TERMINAL, nothing, [*NAMED, "[/bold]/"], 0, ("[/bold]/: ",), ("[",)),
    Case("blanks", "streaming model", nothing, ["generate", *OUT, "--prompt", f" {SEA}  "], 0, (), ("x.mp4",)),
    Case(
        "two blanks",
        "streaming model",
        nothing,
        ["generate", *OUT, "--prompt", SEA.replace(" ", "  ")],
        0,
        (),
        ("x.mp4",),
    ),
    Case("overwrite", "recorder", recording, [*NAMED, "x.mkv"], 2, ("already exists", "--force"), ("x.mkv",)),
    Case("sideways", SHOWN, turned, [*ANCHOR, "x.jpg"], 0, (), ("out", "x.jpg"), COLOURS),
    Case("hidden", SHOWN, hidden_pink, [*ANCHOR, "x.png"], 0, ("#000000",), ("out", "x.png"), {CORNER: (0, 0, 0)}),
    Case(
        "ground",
        SHOWN,
        hidden_pink,
        [*ANCHOR, "x.png", "--ground", "#2040c0"],
        0,
        (),
        ("out", "x.png"),
        {CORNER: GROUND},
    ),
    Case("workflow in a PNG", SHOWN, workflow, [*ANCHOR, "x.png"], 0, (), ("out", "x.png"), COLOURS),
    Case("bomb", SHOWN, bomb, [*ANCHOR, "x.png"], 2, ("pixels",), ("x.png",)),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path) -> None:
    case.prepare(tmp_path)
    done = subprocess.run([*EVERFRAME, *case.words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == case.code, done.stderr
    assert "Traceback" not in done.stderr
    for word in case.says:
        assert word in done.stderr
    if case.code:
        assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == sorted(case.makes)
    if case.shows:
        shown = np.asarray(Image.open(tmp_path / "out" / "000000.png")).astype(int)
        for (y, x), colour in case.shows.items():  # through the demo's autoencoder: near
            assert np.abs(shown[y - 3 : y + 3, x - 3 : x + 3].mean((0, 1)) - colour).max() < 40, (y, x)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]).returncode
    ):
        pytest.skip("cannot mount a small disk here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["out.mkv", "out.mp4"])
@pytest.mark.slow
def test_a_disk_that_fills_keeps_the_recording(tmp_path: Path, name: str) -> None:
    with small_disk(tmp_path / "disk", "300k") as disk:
        words = ["generate", "--endless", "-o", f"disk/{name}"]
        done = subprocess.run([*EVERFRAME, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2, done.stderr
        assert "No space left" in done.stderr
        assert f"is in disk/{name}" in done.stderr
        assert os.listdir(disk) == [name]
        with av.open(disk / name) as container:
            assert sum(1 for _ in container.decode(video=0)) > 16


def test_a_file_system_whose_folders_cannot_be_synced(tmp_path: Path) -> None:
    """Imitated in the process that the command runs in, as its kernel would answer."""
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os, stat\n"
        "real = os.fsync\n"
        "def fsync(handle):\n"
        "    if stat.S_ISDIR(os.fstat(handle).st_mode): raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))\n"
        "    real(handle)\n"
        "os.fsync = fsync\n"
    )
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*EVERFRAME, "soak", *DEMO, "--minutes", "0.05", "-o", "so"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "so" / "soak.json").is_file()
