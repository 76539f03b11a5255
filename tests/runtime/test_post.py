"""Post graphs in a stream: every frame against a formula over what the decoder made, in all forms, over cuts and starts."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest

from everframe.engines.base import EngineOptions
from everframe.engines.bundle import Bundle
from everframe.engines.choose import open_backend
from everframe.engines.errors import UserError
from everframe.export.post import add
from everframe.runtime import Chunk, Stream, Transition, generate
from everframe.runtime.proof import proven
from everframe.runtime.state import load_state, save_state

from helpers import PROMPTS
from postfiles import enlarged, smooth_file, smoothed, upscale_file
from wanfiles import WAN_PROMPTS

CHANGES: dict[int, tuple[str, Transition]] = {3: (PROMPTS[1], "cut"), 5: (PROMPTS[2], "smooth"), 6: (PROMPTS[0], "cut")}
CHUNKS = 9


def with_both(source: Path, folder: Path, times: int = 2, scale: int = 2, position: bool = False) -> Bundle:
    path = Path(shutil.copytree(source, folder / "post.everframe"))
    nets = upscale_file(folder / "u.onnx", scale), smooth_file(folder / "s.onnx", position)
    add(path, *nets, times)
    return Bundle.open(path)


def stream(bundle: Bundle, overlap: bool = True, chunks: int = CHUNKS, backend: str = "onnxruntime") -> list[Chunk]:
    made = []
    engines = open_backend(backend, EngineOptions(threads=2))
    with Stream(bundle, seed=3, overlap=overlap, verify=False, backend=engines) as running:
        for i in range(chunks):
            if i in CHANGES:
                running.set_prompt(*CHANGES[i])
            made.append(running.next_chunk())
    return made


def with_cuts(chunks: list[Chunk]) -> list[tuple[np.ndarray, bool]]:
    """A cut begins the first chunk of a prompt that was ordered by one."""
    cuts = {prompt for prompt, how in CHANGES.values() if how == "cut"}
    before = [None, *(c.prompt for c in chunks)]
    return [
        (c.frames, c.prompt != old and old is not None and c.prompt in cuts)
        for c, old in zip(chunks, before, strict=False)
    ]


def assert_close(found: np.ndarray, expected: np.ndarray, grey: int = 1) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= grey


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("form", ["in-place", "portable"])
def test_frames_between_and_larger(
    bundle_path: Path, portable_path: Path, tmp_path: Path, form: str, overlap: bool
) -> None:
    bundle = with_both(bundle_path if form == "in-place" else portable_path, tmp_path)
    plain = stream(bundle.with_post("none"), overlap)
    assert (bundle.output.width, bundle.output.height, bundle.output.fps) == (128, 64, 32)
    for i, (chunk, middle) in enumerate(zip(stream(bundle, overlap), smoothed(with_cuts(plain)), strict=True)):
        assert len(chunk.frames) == bundle.output.chunk_frames == 24, i
        assert_close(chunk.frames, enlarged(middle))
        assert np.array_equal(chunk.latent, plain[i].latent)
        assert chunk.timings.smooth > 0
        assert chunk.timings.upscale > 0


@pytest.mark.parametrize("position", [False, True])
def test_four_times(bundle_path: Path, tmp_path: Path, position: bool) -> None:
    bundle = with_both(bundle_path, tmp_path, times=4, scale=4, position=position)
    assert (bundle.output.width, bundle.output.height, bundle.output.fps) == (256, 128, 64)
    plain = stream(bundle.with_post("none"), chunks=5)
    expected = smoothed(with_cuts(plain), 4, position)
    for chunk, middle in zip(stream(bundle, chunks=5), expected, strict=True):
        assert_close(chunk.frames, enlarged(middle, 4))


def test_either_alone(bundle_path: Path, tmp_path: Path) -> None:
    bundle = with_both(bundle_path, tmp_path)
    plain = stream(bundle.with_post("none"), chunks=5)
    middles = smoothed(with_cuts(plain))
    for chunk, middle in zip(stream(bundle.with_post("smooth"), chunks=5), middles, strict=True):
        assert_close(chunk.frames, middle)
    for chunk, small in zip(stream(bundle.with_post("upscale"), chunks=5), plain, strict=True):
        assert_close(chunk.frames, enlarged(small.frames), 0)
    with pytest.raises(UserError, match="has no graph smooth"):
        Bundle.open(bundle_path).with_post("smooth")
    with pytest.raises(UserError, match="expected one of all, smooth, upscale, none"):
        bundle.with_post("both")


def test_only_where_they_are_asked_for(bundle_path: Path, tmp_path: Path) -> None:
    path = with_both(bundle_path, tmp_path).path
    asked = stream(Bundle.open(path), chunks=3)
    add(path, None, tmp_path / "s.onnx", off=True)
    bundle = Bundle.open(path)
    assert (bundle.output.width, bundle.output.fps) == (64, 16)
    plain = stream(Bundle.open(bundle_path), chunks=3)
    for found, expected in zip(stream(bundle, chunks=3), plain, strict=True):
        assert np.array_equal(found.frames, expected.frames)
    for found, expected in zip(stream(bundle.with_post("all"), chunks=3), asked, strict=True):
        assert np.array_equal(found.frames, expected.frames)
    assert bundle.with_post(None).post == ()


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("at", [0, 1, 4, 6])
def test_the_frame_that_waits_is_saved(bundle_path: Path, tmp_path: Path, at: int, overlap: bool) -> None:
    bundle = with_both(bundle_path, tmp_path)
    whole = stream(bundle, overlap)

    def go(running: Stream, chunks: range) -> list[Chunk]:
        made = []
        for i in chunks:
            if i in CHANGES:
                running.set_prompt(*CHANGES[i])
            made.append(running.next_chunk())
        return made

    with Stream(bundle, seed=3, overlap=overlap, verify=False) as first:
        go(first, range(at))
        save_state(first, tmp_path / "state")
    with Stream(bundle, seed=3, overlap=overlap, verify=False) as second:
        load_state(second, tmp_path / "state")
        for found, expected in zip(go(second, range(at, CHUNKS)), whole[at:], strict=True):
            assert np.array_equal(found.frames, expected.frames)


def test_a_state_of_other_post_graphs_is_taken(bundle_path: Path, tmp_path: Path) -> None:
    """Saved without, loaded with: it begins with the first frame. And the other way round."""
    bundle = with_both(bundle_path, tmp_path)
    plain = stream(bundle.with_post("none"), chunks=3)
    for there, here in (("none", "all"), ("all", "none")):
        with Stream(bundle.with_post(there), seed=3, verify=False) as first:
            for _ in range(2):
                first.next_chunk()
            save_state(first, tmp_path / "state")
        with Stream(bundle.with_post(here), seed=3, verify=False) as second:
            load_state(second, tmp_path / "state")
            frames = second.next_chunk().frames
        expected = plain[2].frames
        if here == "all":
            expected = enlarged(next(smoothed([(plain[2].frames, False)])))
        assert_close(frames, expected)


@pytest.mark.slow
def test_a_first_chunk_that_decodes_to_less(whole_wan_path: Path, tmp_path: Path) -> None:
    bundle = with_both(whole_wan_path, tmp_path)
    plain, made = ([], [])
    for chunks, one in ((plain, bundle.with_post("none")), (made, bundle)):
        with Stream(one, prompt=WAN_PROMPTS[0], verify=False) as running:
            for i in range(4):
                if i == 2:
                    running.set_prompt(WAN_PROMPTS[1], "cut")
                chunks.append(running.next_chunk())
    assert len(plain[0].frames) < len(plain[1].frames)
    prompts = [None, *(c.prompt for c in plain)]
    cuts = [(c.frames, old is not None and c.prompt != old) for c, old in zip(plain, prompts, strict=False)]
    for chunk, middle in zip(made, smoothed(cuts), strict=True):
        assert_close(chunk.frames, enlarged(middle))


@pytest.mark.slow
def test_nothing_between_two_shots(wan22_paths: dict[str, Path], tmp_path: Path) -> None:
    """A cut of a model of many shots empties no decoder, and is a cut all the same."""
    bundle = with_both(wan22_paths["portable"], tmp_path)
    if bundle.manifest.shots is None:
        pytest.skip("a bundle without shots")
    for overlap in (False, True):
        plain, made = ([], [])
        for chunks, one in ((plain, bundle.with_post("none")), (made, bundle)):
            with Stream(one, prompt=WAN_PROMPTS[0], overlap=overlap, verify=False) as running:
                for i in range(5):
                    if i == 2:
                        running.set_prompt(WAN_PROMPTS[1], "cut")
                    chunks.append(running.next_chunk())
        prompts = [None, *(c.prompt for c in plain)]
        cuts = [(c.frames, old is not None and c.prompt != old) for c, old in zip(plain, prompts, strict=False)]
        assert sum(cut for _, cut in cuts) == 1
        for chunk, middle in zip(made, smoothed(cuts), strict=True):
            assert_close(chunk.frames, enlarged(middle))


def test_openvino_makes_the_same(bundle_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    bundle = with_both(bundle_path, tmp_path)
    for a, b in zip(stream(bundle, backend="openvino"), stream(bundle), strict=True):
        assert_close(a.frames, b.frames, 2)


def test_the_proof_is_of_the_decoder(bundle_path: Path, tmp_path: Path) -> None:
    bundle = with_both(bundle_path, tmp_path)
    backend = open_backend("onnxruntime", EngineOptions())
    with Stream(bundle, seed=3, backend=backend) as running:
        assert proven(bundle, backend)
        found = running.next_chunk()
    assert np.array_equal(found.frames, stream(bundle, chunks=1)[0].frames)  # nothing of the proof waits in it


def test_a_file_has_its_size_and_rate(bundle_path: Path, tmp_path: Path) -> None:
    bundle, file = with_both(bundle_path, tmp_path), tmp_path / "out.mkv"
    video = generate(bundle, str(file), seconds=2, verify=False)
    with av.open(str(file)) as container:
        picture = container.streams.video[0]
        assert (picture.width, picture.height, picture.average_rate) == (128, 64, 32)
        assert sum(1 for _ in container.decode(video=0)) == video.frames == 64
