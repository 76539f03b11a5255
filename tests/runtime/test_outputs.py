"""What is written is read back by a decoder: count, size, rate, timestamps, colours."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from everframe.engines.errors import UserError
from everframe.runtime import outputs
from everframe.runtime.outputs import open_output
from everframe.runtime.video import add_video, encoding_frame

FPS, WIDTH, HEIGHT = 16, 64, 48
LIMIT = 400_000  # bytes


def moving_frames(n: int) -> np.ndarray:
    """A bright bar that moves one pixel a frame over saturated colour fields."""
    frames = np.zeros((n, HEIGHT, WIDTH, 3), np.uint8)
    frames[:, :, : WIDTH // 2] = (200, 30, 40)
    frames[:, :, WIDTH // 2 :] = (20, 60, 180)
    for i in range(n):
        frames[i, 8:16, i % WIDTH] = 255
    return frames


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "OUT.MP4"])
def test_file_decodes_to_the_same_frames(tmp_path: Path, name: str) -> None:
    frames = moving_frames(40)
    with open_output(str(tmp_path / name), WIDTH, HEIGHT, FPS) as out:
        for part in (frames[:12], frames[12:24], frames[24:]):
            out.write(part)
        assert not (tmp_path / name).exists()  # the name appears when the file is whole
    assert [f.name for f in tmp_path.iterdir()] == [name]
    with av.open(tmp_path / name) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (WIDTH, HEIGHT, FPS)
        assert stream.codec_context.name == "h264"
        decoded = list(container.decode(stream))
    assert len(decoded) == 40
    # Matroska counts milliseconds, so 1/16 s is rounded to them
    assert [f.time for f in decoded] == pytest.approx([i / FPS for i in range(40)], abs=0.0006)
    got = np.stack([f.to_ndarray(format="rgb24") for f in decoded]).astype(float)
    error = np.abs(got - frames)
    assert error[:, 24:, 4:28].mean() < 6  # flat fields keep their colour: the matrix in use is the one declared
    assert error[:, 24:, 36:60].mean() < 6
    for i in (0, 20, 39):
        assert got[i, 12].sum(-1).argmax() == i  # and the frames are in order


def test_raw_frames_to_a_pipe(tmp_path: Path) -> None:
    frames = moving_frames(5)
    np.save(tmp_path / "frames.npy", frames)
    code = (
        "import sys, numpy; from everframe.runtime import open_output\n"
        f"with open_output('-', {WIDTH}, {HEIGHT}, {FPS}) as out: out.write(numpy.load(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "frames.npy"], capture_output=True, check=True)
    assert done.stdout == frames.tobytes()


@pytest.mark.parametrize("target", ["shots/", "shots/f-%03d.png"])
def test_png_sequence(tmp_path: Path, target: str) -> None:
    frames = moving_frames(5)
    with open_output(f"{tmp_path}/{target}", WIDTH, HEIGHT, FPS) as out:
        out.write(frames[:3])
        out.write(frames[3:])
    files = sorted((tmp_path / "shots").iterdir())
    assert len(files) == 5
    assert (np.stack([np.asarray(Image.open(f)) for f in files]) == frames).all()


def test_a_png_sequence_is_replaced_as_a_whole(tmp_path: Path) -> None:
    """What does not belong to it stays: a sequence has no gaps, and photographs may be named by their day."""
    frames, target = moving_frames(5), f"{tmp_path}/f-%03d.png"
    others = {"f-x.png": b"a", "f-002.jpg": b"b", "g-001.png": b"c", "f-7.png": b"d", "f-20240131.png": b"e"}
    for name, content in {**others, **dict.fromkeys((f"f-00{i}.png" for i in range(5)), b"old")}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"f-000\.png: already exists"):
        open_output(target, WIDTH, HEIGHT, FPS)
    with pytest.raises(RuntimeError), open_output(target, WIDTH, HEIGHT, FPS, replace=True):
        raise RuntimeError  # before the first frame: nothing is lost
    assert (tmp_path / "f-004.png").read_bytes() == b"old"
    with open_output(target, WIDTH, HEIGHT, FPS, replace=True) as out:
        out.write(frames[:3])
    assert {f.name for f in tmp_path.iterdir()} == {*others, "f-000.png", "f-001.png", "f-002.png"}
    assert {name: (tmp_path / name).read_bytes() for name in others} == others


def test_a_frame_never_takes_another_file_s_place_unasked(tmp_path: Path) -> None:
    (tmp_path / "f-900.png").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"f-900\.png: already exists"):
        open_output(f"{tmp_path}/f-%03d.png", WIDTH, HEIGHT, FPS)


def test_an_endless_mp4_is_not_remembered_whole(tmp_path: Path) -> None:
    """libav holds a list of all frames for one that is to become a plain file, and that is its index in the end."""
    for name, frames in (("known.mp4", 40), ("endless.mp4", None)):
        with open_output(str(tmp_path / name), WIDTH, HEIGHT, FPS, frames=frames) as out:
            out.write(moving_frames(40))
        assert decoded(tmp_path / name) == 40
    assert "moof" in boxes(tmp_path / "endless.mp4")
    assert "moof" not in boxes(tmp_path / "known.mp4")


def boxes(file: Path) -> list[str]:
    """The outermost boxes of an MP4 (ISO/IEC 14496-12, 4.2)."""
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
        found.append(kind.decode())
        at += size or len(data)
    return found


def test_gif(tmp_path: Path) -> None:
    frames = moving_frames(32)
    with open_output(str(tmp_path / "out.gif"), WIDTH, HEIGHT, FPS) as out:
        out.write(frames)
    with Image.open(tmp_path / "out.gif") as image:
        assert getattr(image, "n_frames") == 32  # noqa: B009
        total = 0
        for i in range(32):
            image.seek(i)
            total += image.info["duration"]
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frames[i]).mean() < 4
    assert total == 2000  # 32 frames at 16 fps


def test_a_gif_of_many_frames_a_second_is_not_slow_in_browsers(tmp_path: Path) -> None:
    """They show a frame that should last less than two hundredths for ten."""
    frames = moving_frames(65)
    with open_output(str(tmp_path / "out.gif"), WIDTH, HEIGHT, 64) as out:
        for i in range(0, 65, 5):
            out.write(frames[i : i + 5])
    with Image.open(tmp_path / "out.gif") as image:
        shown = [i.info["duration"] for i in ImageSequence.Iterator(image)]
    assert min(shown) >= 20
    assert abs(sum(shown) - 1000 * 66 / 64) <= 10


def test_names_that_are_no_place_for_pictures(bundle_path: Path) -> None:
    """An unset variable, and a bundle."""
    for name, words in (
        ("", "expected -, a folder/"),
        (str(bundle_path), "is a bundle"),
        (f"{bundle_path}/", "is a bundle"),
    ):
        with pytest.raises(UserError, match=words):
            open_output(name, WIDTH, HEIGHT, FPS)


def test_a_gif_that_is_too_large(tmp_path: Path) -> None:
    """It is held in memory: half a gigabyte of pixels, a byte each."""
    with pytest.raises(UserError, match=r"a GIF of 1280×704 holds at most 595 frames .*, this are 596"):
        open_output(str(tmp_path / "out.gif"), 1280, 704, FPS, frames=596)


def test_a_gif_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is made, where that is known; else what there is stays."""
    monkeypatch.setattr(outputs, "MAX_GIF_FRAMES", 30)
    with pytest.raises(UserError, match=r"a GIF of .* holds at most 30 frames"):
        open_output(str(tmp_path / "out.gif"), WIDTH, HEIGHT, FPS, frames=31)
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(UserError, match="which it has"),
        open_output(str(tmp_path / "out.gif"), WIDTH, HEIGHT, FPS) as out,
    ):
        out.write(np.concatenate([moving_frames(32), moving_frames(4)]))
    with Image.open(tmp_path / "out.gif") as image:
        assert getattr(image, "n_frames") >= 24  # noqa: B009 - frames that are the same become one
    assert [file.name for file in tmp_path.iterdir()] == ["out.gif"]


def decoded(file: Path) -> int:
    with av.open(file) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_recorded_stays(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    with contextlib.suppress(error), open_output(str(tmp_path / name), WIDTH, HEIGHT, FPS) as out:
        out.write(moving_frames(20))
        raise error
    assert os.listdir(tmp_path) == [name]
    assert decoded(tmp_path / name) == 20


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_kill_leaves_a_recording_that_plays_under_a_name_that_shows(tmp_path: Path, name: str) -> None:
    code = (
        "import os, signal, sys, numpy as np\n"
        "from everframe.runtime import open_output\n"
        "noise = np.random.default_rng(0).integers(0, 255, (160, 48, 64, 3)).astype(np.uint8)\n"
        f"with open_output(sys.argv[1], {WIDTH}, {HEIGHT}, {FPS}) as out:\n"
        "    out.write(noise)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for left in (
        ["a.part" + name[1:]],
        ["a.part" + name[1:], "a.part-2" + name[1:]],
    ):  # the next run spares the first's
        subprocess.run([sys.executable, "-c", code, tmp_path / name])
        assert sorted(os.listdir(tmp_path)) == sorted(left)
        for file in left:
            assert decoded(tmp_path / file) >= 160 - 6 * FPS  # x264's lookahead and the last piece are lost


def test_a_second_run_does_not_overwrite(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.gif"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(UserError, match="already exists"):
            open_output(str(tmp_path / name), WIDTH, HEIGHT, FPS)
        assert (tmp_path / name).read_text() == "precious"
    with open_output(f"{tmp_path}/shots/", WIDTH, HEIGHT, FPS) as out:
        out.write(moving_frames(1))
    with pytest.raises(UserError, match="already exists"):
        open_output(f"{tmp_path}/shots/", WIDTH, HEIGHT, FPS)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("out.avi", ["out.avi", ".mp4", ".mkv"]),
        ("out", ["out", ".mp4"]),
        ("nowhere/out.mp4", ["nowhere", "does not exist"]),
        ("frame.png", ["frame.png", "%06d"]),
        ("file/out.mp4", ["file"]),
    ],
)
def test_impossible_targets(tmp_path: Path, target: str, words: list[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        open_output(str(tmp_path / target), WIDTH, HEIGHT, FPS)
    for word in words:
        assert word in str(caught.value)
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_existing_file_survives_a_failed_run(tmp_path: Path) -> None:
    target = tmp_path / "a.mkv"
    target.write_text("precious")
    with (
        contextlib.suppress(RuntimeError),
        open_output(str(target), WIDTH, HEIGHT, FPS, replace=True) as out,
    ):
        out.write(moving_frames(20))
        raise RuntimeError
    assert target.read_text() == "precious"
    assert decoded(tmp_path / "a.part.mkv") == 20


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.gif", "f-%d.png"])
def test_full_disk(tmp_path: Path, name: str) -> None:
    """A file-size limit stands in for a full disk: one line, exit code 2, and what was recorded of a video plays."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from everframe.runtime import open_output, UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT}, {LIMIT}))\n"
        "noise = np.random.default_rng(0).integers(0, 255, (400, 48, 64, 3)).astype(np.uint8)\n"
        "try:\n"
        f"    with open_output(sys.argv[1], {WIDTH}, {HEIGHT}, {FPS}) as out:\n"
        "        for i in range(0, 400, 12): out.write(noise[i : i + 12])\n"
        "except UserError as error: print(error); sys.exit(2)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / name], capture_output=True, text=True)
    if name == "f-%d.png":  # every file is below the limit
        assert done.returncode == 0
        return
    assert done.returncode == 2, done.stderr
    assert done.stdout.count("\n") == 1
    assert "cannot write" in done.stdout
    if name == "a.gif":
        assert os.listdir(tmp_path) == []
        return
    assert os.listdir(tmp_path) == [name]
    assert str(tmp_path / name) in done.stdout.rsplit(";", 1)[1]
    assert decoded(tmp_path / name) > 40


@pytest.mark.parametrize(("container", "tag"), [("mp4", "hvc1"), ("mov", "hvc1"), ("matroska", None)])
def test_hevc_is_tagged_as_apple_s_players_want_it(tmp_path: Path, container: str, tag: str | None) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this PyAV has no encoder for HEVC on the CPU")
    file = tmp_path / f"x.{container}"
    with av.open(str(file), "w", format=container) as out:
        stream = add_video(out, "libx265", (64, 48), 16, {"preset": "ultrafast", "x265-params": "log-level=none"}, 16)
        for i in range(4):
            out.mux(stream.encode(encoding_frame(np.full((48, 64, 3), 60 * i, np.uint8), i, 16)))
        out.mux(stream.encode(None))
    with av.open(str(file)) as again:
        assert again.streams.video[0].codec_context.codec.canonical_name == "hevc"
        assert len(list(again.decode(video=0))) == 4
    if tag is not None:
        assert tag.encode() in file.read_bytes()
        assert b"hev1" not in file.read_bytes()
