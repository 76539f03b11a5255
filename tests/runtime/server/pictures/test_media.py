"""What leaves the channel, decoded by PyAV: fragmented MP4, HLS, the beat, slow viewers, pushes."""

from __future__ import annotations

import io
import socket
import threading
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import av.error
import numpy as np
import pytest
from numpy.typing import NDArray

from everframe.engines.errors import UserError
from everframe.runtime.server.pictures.channel import Channel, Queue
from everframe.runtime.server.pictures.fmp4 import Encoder, Fragment
from everframe.runtime.server.pictures.hls import HlsWindow
from everframe.runtime.server.pictures.push import Push, PushSettings, speaks
from everframe.runtime.server.pictures.sound import RATE, check_sound, samples
from everframe.runtime.video import add_video, encoding_frame

from serving import wait_for

W, H, FPS = 64, 32, 16


def encoder() -> Encoder:
    return Encoder(W, H, FPS, "libx264", 20, 0.5)


def grey(level: int) -> NDArray[np.uint8]:
    return np.full((H, W, 3), level, np.uint8)


def levels(data: bytes) -> list[float]:
    """Mean level of every frame of a file."""
    with av.open(io.BytesIO(data), "r") as container:
        return [float(f.to_ndarray(format="rgb24").mean()) for f in container.decode(video=0)]


def encoded(count: int) -> tuple[Encoder, list[Fragment]]:
    made = encoder()
    return made, [f for i in range(count) for f in made.encode(grey(20 + 4 * i))]


def test_fragments_are_a_file_that_plays_from_any_keyframe() -> None:
    made, fragments = encoded(34)
    assert made.mime.startswith('video/mp4; codecs="avc1.')
    assert len(fragments) == 33  # a frame's fragment comes with the next frame
    keys = [i for i, f in enumerate(fragments) if f.key]
    assert keys == [0, 8, 16, 24, 32]
    for key in keys:
        found = levels(made.init + b"".join(f.data for f in fragments[key:]))
        assert found == pytest.approx([20 + 4 * i for i in range(key, 33)], abs=2.5)


def test_hls_is_a_sliding_window_whose_segments_play() -> None:
    made, fragments = encoded(50)
    window = HlsWindow(3, FPS)
    assert window.playlist() is None
    for fragment in fragments:
        window.add(fragment)
    text = window.playlist()
    assert text is not None
    lines = text.splitlines()
    assert lines[0] == "#EXTM3U"
    assert "#EXT-X-INDEPENDENT-SEGMENTS" in lines  # each begins with a keyframe, as the levels below show
    assert "#EXT-X-MEDIA-SEQUENCE:3" in lines
    assert [line for line in lines if line.endswith(".m4s")] == ["3.m4s", "4.m4s", "5.m4s"]
    assert lines.count("#EXTINF:0.500,") == 3
    assert window.segment(2) is None
    third = window.segment(3)
    assert third is not None
    assert levels(made.init + third) == pytest.approx([20 + 4 * i for i in range(24, 32)], abs=2.5)


def test_a_slow_viewer_loses_frames_and_begins_again_at_a_keyframe() -> None:
    queue, got, lost = Queue(limit=5), [], 0
    for i in range(36):
        lost += queue.put(Fragment(bytes([i]), key=i % 8 == 0))
        if i in (4, 35):  # it reads early, then not for long
            got += [data[0] for data in queue.take()]
    assert lost == 36 - len(got) >= 15
    assert got[:5] == [0, 1, 2, 3, 4]
    assert got[5] % 8 == 0  # a keyframe
    assert got[5:] == list(range(got[5], got[5] + len(got) - 5))


def test_a_late_viewer_begins_with_a_keyframe() -> None:
    queue = Queue(limit=50)
    for i in range(5, 20):
        queue.put(Fragment(bytes([i]), key=i % 8 == 0))
    assert [data[0] for data in queue.take()] == list(range(8, 20))


@pytest.fixture
def channel():
    made = Channel(W, H, FPS, encoder, 3)
    made.start()
    yield made
    made.stop()


def test_the_channel_shows_something_whatever_happens(channel: Channel) -> None:
    shown = []
    channel.frames.append(lambda frame: shown.append(int(frame[0, 0, 0])))
    time.sleep(0.5)
    channel.offer(np.stack([grey(100 + i) for i in range(8)]))
    time.sleep(1.2)
    new = [level for level in dict.fromkeys(shown) if level >= 100]
    assert new == list(range(100, 108))  # each, in order
    assert shown[0] < 60  # the calm picture before
    assert shown[-1] == 107  # the last one stays
    assert shown.count(107) >= 5
    assert channel.png()[:8] == b"\x89PNG\r\n\x1a\n"
    with av.open(io.BytesIO(channel.jpeg()), "r") as picture:
        assert next(picture.decode(video=0)).to_ndarray(format="rgb24").mean() == pytest.approx(107, abs=2)


def test_a_frame_s_picture_is_made_once(channel: Channel) -> None:
    """However many ask for it at once."""
    channel.stop()
    with ThreadPoolExecutor(16) as many:
        for make in (channel.jpeg, channel.png):
            assert len({id(one) for one in many.map(lambda _, make=make: make(), range(64))}) == 1


def test_the_beat_is_the_frame_rate(channel: Channel) -> None:
    time.sleep(0.3)
    before, began = channel.shown, time.monotonic()
    time.sleep(2)
    rate = (channel.shown - before) / (time.monotonic() - began)
    assert rate == pytest.approx(FPS, rel=0.2)


def test_where_no_second_encoder_is_to_be_had_the_picture_goes_on_without_the_overlay_in_hls() -> None:
    """As on a card with no session left. Viewers keep the encoder that they began with."""
    made: list[Encoder] = []

    def scarce() -> Encoder:
        if made:
            raise OSError("no session left")
        made.append(encoder())
        return made[0]

    channel = Channel(W, H, FPS, scarce, 3)
    channel.start()
    try:
        channel.burn = lambda frame: frame // 2
        before, epoch = channel.shown, channel.epoch
        time.sleep(2)
        assert channel.shown - before > 1.5 * FPS
        assert channel.epoch == epoch
        text = channel.hls.playlist()
        assert text is not None
        assert text.count("#EXT-X-MAP") == 1
    finally:
        channel.stop()


def test_an_encoder_that_is_not_to_be_had_for_a_while_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a driver is reset."""
    monkeypatch.setattr("everframe.runtime.server.pictures.channel.RENEW", 0.1)
    tries = []

    def flaky() -> Encoder:
        tries.append(len(tries))
        if 1 <= len(tries) - 1 <= 2:
            raise OSError("the device is lost")
        return encoder()

    channel = Channel(W, H, FPS, flaky, 3)
    channel.start()
    try:
        channel.encoder.close()  # and so it fails at the next frame
        channel.encoder = None  # type: ignore[assignment]
        wait_for(lambda: channel.epoch == 2, 10)
        before = channel.shown
        wait_for(lambda: channel.shown > before + 4, 5)
        assert len(tries) == 4
    finally:
        channel.stop()


def test_a_broken_encoder_is_replaced(channel: Channel) -> None:
    channel.offer(np.stack([grey(90)] * 4))
    time.sleep(0.5)
    epoch = channel.epoch
    channel.offer(np.zeros((2, H, W, 3), np.float64))  # type: ignore[arg-type] - which it cannot take
    deadline = time.monotonic() + 5
    while channel.epoch == epoch and time.monotonic() < deadline:
        time.sleep(0.05)
    assert channel.epoch > epoch
    channel.offer(np.stack([grey(120)] * 4))
    while channel.frame[0, 0, 0] != 120 and time.monotonic() < deadline + 5:
        time.sleep(0.05)
    assert channel.is_alive()
    assert channel.frame[0, 0, 0] == 120


def test_a_slow_generator_is_shown_in_slow_motion(channel: Channel) -> None:
    """At a third of real time the picture settles to even steps instead of stopping after every chunk."""
    stop = threading.Event()

    def feed() -> None:
        for c in range(14):
            channel.offer(np.stack([grey((8 * c + i) % 200 + 20) for i in range(8)]))
            stop.wait(1.0)  # half of real time

    feeder = threading.Thread(target=feed)
    feeder.start()
    feeder.join()
    assert channel.pace < 0.75
    assert channel.repeated > 30


def push_until(push: Push, listener: threading.Thread, seconds: float) -> None:
    """Grey frames at their rate until the listener has heard enough, for so many seconds at most."""
    push.start()
    deadline = time.monotonic() + seconds
    while listener.is_alive() and time.monotonic() < deadline:
        push(grey(130))
        time.sleep(1 / FPS)
    push.stop()
    listener.join(5)


def test_push_over_udp_can_be_played() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    push = Push(f"udp://127.0.0.1:{port}?pkt_size=1316", W, H, FPS, PushSettings())
    found: list[float] = []

    def listen() -> None:
        with av.open(f"udp://127.0.0.1:{port}?timeout=15000000", format="mpegts") as container:
            for frame in container.decode(video=0):
                found.append(float(frame.to_ndarray(format="rgb24").mean()))
                if len(found) >= 5:
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    push_until(push, listener, 20)
    assert found == pytest.approx([130] * 5, abs=4)


def test_a_push_may_have_a_silent_track() -> None:
    """As long as the picture, and with nothing to be heard."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    push = Push(f"udp://127.0.0.1:{port}?pkt_size=1316", W, H, FPS, PushSettings(heard=True))
    found: dict[str, list[float]] = {"audio": [], "video": []}
    loudest = []

    def listen() -> None:
        with av.open(f"udp://127.0.0.1:{port}?timeout=15000000", format="mpegts") as container:
            for frame in container.decode(video=0, audio=0):
                assert isinstance(frame, av.AudioFrame | av.VideoFrame)
                kind = "audio" if isinstance(frame, av.AudioFrame) else "video"
                found[kind].append(frame.time or 0.0)
                if isinstance(frame, av.AudioFrame):
                    loudest.append(float(np.abs(frame.to_ndarray()).max()))
                if len(found["video"]) >= 40:
                    return

    listener = threading.Thread(target=listen)
    listener.start()
    push_until(push, listener, 30)
    assert max(loudest) < 1e-4
    assert found["audio"][-1] == pytest.approx(found["video"][-1], abs=0.5)
    assert len(found["audio"]) > 60


def test_an_overlay_that_fails_does_not_cost_the_picture(caplog: pytest.LogCaptureFixture) -> None:
    channel = Channel(W, H, FPS, encoder, 4)
    failing = [True]

    def burn(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if failing:
            raise MemoryError("too large")
        return 255 - frame

    channel.burn = burn
    channel.offer(np.stack([grey(200)] * 6))
    for _ in range(4):
        channel._show()
    assert (channel.shown, channel.epoch) == (4, 1)
    assert channel.frame.mean() == 200
    assert caplog.text.count("the overlay cannot be burned in") == 1
    failing.clear()
    channel._show()
    assert channel.frame.mean() == 55


def test_a_cut_takes_the_place_of_what_waits() -> None:
    channel = Channel(W, H, FPS, encoder, 4)
    channel.offer(np.stack([grey(10)] * 8))
    channel._show()
    channel.offer(np.stack([grey(200)] * 8), at_once=True)
    channel._show()
    assert channel.frame.mean() == 200


def test_a_file_is_heard_over_and_over(tmp_path: Path) -> None:
    """Half a second of 440 Hz and half of 880, mono at another rate: by the strongest frequency of every quarter, without a
    gap where the file begins again."""
    rate = 22_050
    tone = np.concatenate([np.sin(2 * np.pi * f * np.arange(rate // 2) / rate) for f in (440, 880)])
    with wave.open(str(tmp_path / "tone.wav"), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(rate)
        f.writeframes((tone * 20_000).astype("<i2").tobytes())
    pieces, heard = samples(tmp_path / "tone.wav"), np.zeros((2, 0), np.float32)
    while heard.shape[1] < 3 * RATE:
        heard = np.concatenate([heard, next(pieces)], 1)
    assert (heard[0] == heard[1]).all()
    quarter = RATE // 4
    for i in range(12):
        part = heard[0, i * quarter : (i + 1) * quarter]
        loudest = np.abs(np.fft.rfft(part * np.hanning(quarter))).argmax() * 4
        assert loudest == pytest.approx(440 if i % 4 < 2 else 880, abs=8), i


def test_sounds_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "x.mp3").write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"x\.mp3: cannot be read"):
        check_sound(tmp_path / "x.mp3")
    with pytest.raises(UserError, match=r"none\.wav: cannot be read: No such file"):
        check_sound(tmp_path / "none.wav")
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=8, width=16, height=16)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode(None))
    with pytest.raises(UserError, match=r"mute\.mp4: has no sound"):
        check_sound(tmp_path / "mute.mp4")


@pytest.mark.parametrize("kbits", [400, 2000])
def test_a_constant_bit_rate(kbits: int) -> None:
    """Of a picture that hardly needs any: the rate that was asked for all the same."""
    out = io.BytesIO()
    with av.open(out, "w", format="mpegts") as container:
        stream = add_video(container, "libx264", (256, 144), 16, PushSettings(kbits=kbits).encoding, 32)
        for number in range(8 * 16):
            container.mux(stream.encode(encoding_frame(np.full((144, 256, 3), 90, np.uint8), number, 16)))
        container.mux(stream.encode(None))
    assert 8 * len(out.getvalue()) / 8000 == pytest.approx(kbits, rel=0.15)


def test_what_libav_speaks() -> None:
    """Against the message of libav itself, which comes when such an address is opened."""
    assert speaks("rtmp")
    assert speaks("udp")
    with pytest.raises(av.error.FFmpegError) as error:
        av.open("srt://127.0.0.1:0", "r", format="mpegts")
    assert speaks("srt") == (not isinstance(error.value, av.error.ProtocolNotFoundError))


def test_a_push_without_a_peer_costs_frames_and_nothing_else() -> None:
    push = Push("rtmp://127.0.0.1:9/live", W, H, FPS, PushSettings())  # nobody listens there
    push.start()
    began = time.monotonic()
    for _ in range(200):
        push(grey(1))
    assert time.monotonic() - began < 1
    assert push.dropped > 100
    assert not push.connected
    push.stop()


def test_what_waits_for_a_peer_is_the_newest_and_not_much() -> None:
    push = Push("rtmp://127.0.0.1:9/live", 1920, 1080, 30, PushSettings())
    frame = np.zeros((1080, 1920, 3), np.uint8)
    for level in range(100):
        push(np.broadcast_to(np.uint8(level), frame.shape))
    waiting = [int(push._frames.get_nowait()[0, 0, 0]) for _ in range(push._frames.qsize())]
    assert waiting == list(range(100 - len(waiting), 100))
    assert 2 <= len(waiting) <= (64 << 20) // frame.nbytes


def test_the_recorded_stream_is_one_timeline(tmp_path: Path) -> None:
    """Two encoders' output does not mix: each has an initialisation of its own and starts at zero."""
    for _ in range(2):
        made, fragments = encoded(10)
        file = tmp_path / "x.mp4"
        file.write_bytes(made.init + b"".join(f.data for f in fragments))
        with av.open(str(file)) as container:
            stamps = [float(f.pts * f.time_base) for f in container.decode(video=0)]  # type: ignore[operator]
        assert stamps == pytest.approx([i / FPS for i in range(9)])
