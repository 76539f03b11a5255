"""The command as users run it: a process, its exit code, its standard error, its files."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

from everframe.engines.errors import UserError
from everframe.runtime.cli.console import needs_extra

from helpers import PROMPTS

COMMAND = [sys.executable, "-c", "from everframe.runtime.cli import main; main()"]


def everframe(*args: object, **kw) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *map(str, args)], capture_output=True, timeout=120, **kw)


def decoded(file: Path) -> list[av.VideoFrame]:
    with av.open(file) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize(("seconds", "frames"), [("1.5", 24), ("2", 32), ("0.01", 1)])
def test_generate_writes_what_was_asked(bundle_path: Path, tmp_path: Path, seconds: str, frames: int) -> None:
    out = tmp_path / "out.mp4"
    done = everframe("generate", "-b", bundle_path, "--seconds", seconds, "-o", out)
    assert done.returncode == 0, done.stderr
    got = decoded(out)
    assert [f.time for f in got] == pytest.approx([i / 16 for i in range(frames)])
    assert (got[0].width, got[0].height) == (64, 32)


def test_an_encoder_that_is_not_there_is_replaced(bundle_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    done = everframe("generate", "-b", bundle_path, "--seconds", "1", "-o", out, "--encoder", "hevc_nvenc")
    assert done.returncode == 0, done.stderr
    with av.open(out) as container:
        codec = container.streams.video[0].codec_context.name
    assert len(decoded(out)) == 16
    if codec == "h264":  # no such card here: said, and done otherwise
        assert b"hevc_nvenc cannot be used here" in done.stderr
        assert b"libx264" in done.stderr
    else:
        assert codec == "hevc"


def test_an_overlay_is_burned_in(bundle_path: Path, tmp_path: Path) -> None:
    """A clock on a green ground in one corner, nothing elsewhere."""
    (tmp_path / "x.toml").write_text('[overlay.clock]\nat = "top-left"\nmargin = 0\nsize = 40\nground = "#00ff00"\n')
    made = {}
    for name, words in {"bare": [], "burned": ["--overlay", tmp_path / "x.toml"]}.items():
        done = everframe("generate", "-b", bundle_path, "--seconds", "0.5", *words, "-o", "-")
        assert done.returncode == 0, done.stderr
        made[name] = np.frombuffer(done.stdout, np.uint8).reshape(8, 32, 64, 3)
    changed = (made["bare"] != made["burned"]).any(-1)
    assert (made["burned"][:, 0, 0] == (0, 255, 0)).all()
    assert changed[:, :8].any()
    assert not changed[:, 24:].any()
    for text, words in (
        ("", "overlay: nothing in it"),
        ('[overlay]\nlogo = {file = "none.png"}\n', "none.png"),
        ("[overlay]\nlogos = 1\n", "overlay.logos"),
    ):
        (tmp_path / "x.toml").write_text(text)
        done = everframe("generate", "-b", bundle_path, "--overlay", tmp_path / "x.toml", "-o", tmp_path / "out.mp4")
        assert done.returncode == 2
        assert words in done.stderr.decode()
        assert len(done.stderr.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x.toml"]


def test_raw_pipe_equals_the_stream(bundle_path: Path) -> None:
    from everframe.runtime import Stream, open_bundle

    done = everframe(
        "generate", "-b", bundle_path, "--seconds", "2", "--seed", 9, "--prompt", PROMPTS[1].upper(), "-o", "-"
    )
    with Stream(open_bundle(bundle_path), seed=9, prompt=PROMPTS[1]) as stream:
        frames = np.concatenate([stream.next_chunk().frames for _ in range(3)])
    assert done.returncode == 0
    assert done.stdout == frames[:32].tobytes()


def test_prompt_changes_on_time(bundle_path: Path) -> None:
    from everframe.runtime import Stream, open_bundle

    done = everframe(
        "generate",
        "-b",
        bundle_path,
        "--seconds",
        "3",
        "--then",
        f"1.5:{PROMPTS[2]}",
        "--transition",
        "swap",
        "-o",
        "-",
    )
    with Stream(open_bundle(bundle_path)) as stream:
        parts = []
        for c in range(4):
            if c == 1:  # while the chunk at 0.75 s is returned, the one at 1.5 s is the next that is not begun
                stream.set_prompt(PROMPTS[2], "swap")
            parts.append(stream.next_chunk().frames)
    assert done.stdout == np.concatenate(parts).tobytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv"])
def test_interrupt_leaves_a_video_that_plays(bundle_path: Path, tmp_path: Path, name: str, number: int) -> None:
    out = tmp_path / name
    process = subprocess.Popen(
        [*COMMAND, "generate", "-b", str(bundle_path), "--endless", "-o", str(out)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not any(f.stat().st_size > 2000 for f in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    frames = decoded(out)
    assert frames
    assert len(frames) % 12 == 0
    assert [f.time for f in frames] == pytest.approx([i / 16 for i in range(len(frames))], abs=0.0006)
    assert [f.name for f in tmp_path.iterdir()] == [name]


def test_reader_that_goes_away(bundle_path: Path) -> None:
    shell = f"{' '.join(map(repr, COMMAND))} generate -b {bundle_path} --endless -o - | head -c 100000 | wc -c"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", shell], capture_output=True, timeout=60)
    assert done.stdout.strip() == b"100000"
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0


def test_a_reader_of_words_that_goes_away_is_no_verdict(bundle_path: Path) -> None:
    """Exit code 1 is one; a command whose words nobody hears ends as by SIGPIPE."""
    shell = f"{' '.join(map(repr, COMMAND))} prompts -b {bundle_path} | true"
    done = subprocess.run(["bash", "-c", f"{shell}; echo ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60)
    assert done.stdout.strip() in (b"141", b"0")  # 0: all was said before the reader had gone
    slow = "import sys, time; from everframe.runtime.cli import main; time.sleep(2); main()"
    shell = f"{sys.executable} -c '{slow}' prompts -b {bundle_path} | true"
    done = subprocess.run(["bash", "-c", f"{shell}; echo ${{PIPESTATUS[0]}}"], capture_output=True, timeout=60)
    assert done.stdout.strip() == b"141"
    assert done.stderr == b""


def test_what_a_command_needs_is_named() -> None:
    """A package that is not installed; or one that is, and lacks something of the system."""
    for error, words in (
        (ModuleNotFoundError("No module named 'pygame'", name="pygame"), "needs pygame: pip install 'everframe[play]'"),
        (ImportError("libSDL2-2.0.so.0: cannot open shared object file"), "libSDL2-2.0.so.0: cannot open"),
    ):
        with pytest.raises(UserError, match=re.escape(words)), needs_extra("play"):
            raise error


def test_prompts_lists_the_bank(bundle_path: Path) -> None:
    assert everframe("prompts", "-b", bundle_path).stdout.decode().splitlines() == PROMPTS


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prompt", "a loud sea"], ["'a loud sea'", *PROMPTS]),
        (["--seed", "-1"], ["seed -1"]),
        (["--seconds", "1", "--endless"], ["--seconds", "--endless"]),
        (["--then", "soon:a quiet sea"], ["--then", "SECONDS:PROMPT"]),
        (["--then", "1:a loud sea"], ["'a loud sea'"]),
        (["--seconds", "2", "--then", "2:a quiet sea"], ["--then 2:a quiet sea: the video ends at"]),
        (["--ground", "red"], ["--ground red: expected --anchor with it"]),
        (["--rope", "flat"], ["flat", "absolute"]),
        (["--jitter", "7"], ["jitter", "7"]),
        (["--provider", "cuda"], ["cuda", "CUDAExecutionProvider"]),
        (["--start", "-1"], ["start -1"]),
        (["-o", "nowhere/x.mp4"], ["nowhere", "does not exist"]),
        (["-o", "x.webm"], ["x.webm", ".mp4"]),
        (["--anchor", "none.png"], ["none.png", "cannot read"]),
        (["--encoder", "cinepak"], ["cinepak", "libx264"]),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    bundle_path: Path, tmp_path: Path, args: list[str], words: list[str]
) -> None:
    done = everframe("generate", "-b", bundle_path, "-o", "out.mp4", *args, cwd=tmp_path)
    line = done.stderr.decode()
    assert done.returncode == 2
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    for word in words:
        assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ["generate", "-o", "x.mp4", "--seconds", "0"],
        ["generate"],
        ["frobnicate"],
        ["generate", "-o", "x.mp4", "--seconds", "long"],
    ],
)
def test_usage_mistakes(tmp_path: Path, args: list[str]) -> None:
    done = everframe(*args, cwd=tmp_path)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_full_disk_in_the_middle(bundle_path: Path, tmp_path: Path) -> None:
    """A limit on file size stands in for a disk that fills up while the stream runs."""
    command = f"{' '.join(map(repr, COMMAND))} generate -b {bundle_path} --endless -o out.mkv"
    shell = f"trap '' XFSZ; ulimit -f 100; exec {command}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: out.mkv: cannot write: ")
    assert done.stderr.count(b"\n") == 1
    assert [f.name for f in tmp_path.iterdir()] == ["out.mkv"]
    assert decoded(tmp_path / "out.mkv")


@pytest.mark.slow
def test_export_command(checkpoint: Path, tmp_path: Path) -> None:
    done = everframe("export", checkpoint, "-o", tmp_path / "x.everframe", "--size", "80x48")
    assert done.returncode == 0, done.stderr
    assert b"grey levels" in done.stderr
    done = everframe("export", tmp_path / "none", "-o", tmp_path / "y.everframe")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1
    assert [f.name for f in tmp_path.iterdir()] == ["x.everframe"]
