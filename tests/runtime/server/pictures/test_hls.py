"""HLS over the lives of a server: numbers that go on, and marks where another encoder begins (RFC 8216, 4.3.3 and 6.2.2)."""

from __future__ import annotations

import io
import json
import re
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import pytest

from everframe.runtime.server.pictures import hls
from everframe.runtime.server.pictures.fmp4 import Fragment
from everframe.runtime.server.pictures.hls import AHEAD, HlsWindow, Numbers

from serving import Site, serve, wait_for


def sequence(text: str) -> list[tuple[int, int, str]]:
    """What a player reads: of every segment its number, its discontinuity sequence number, and its map."""
    number = int(re.findall(r"#EXT-X-MEDIA-SEQUENCE:(\d+)", text)[0])
    timeline = int(re.findall(r"#EXT-X-DISCONTINUITY-SEQUENCE:(\d+)", text)[0])
    found, init = [], ""
    for line in text.splitlines():
        if line == "#EXT-X-DISCONTINUITY":
            timeline += 1
        elif line.startswith("#EXT-X-MAP"):
            init = line.split('"')[1]
        elif not line.startswith("#"):
            assert line == f"{number}.m4s"
            found.append((number, timeline, init))
            number += 1
    return found


def fill(window: HlsWindow, segments: int) -> None:
    for _ in range(8 * segments):
        window.add(Fragment(b"x", key=_ % 8 == 0))


def test_a_player_sees_one_sequence_through_a_change_of_encoders() -> None:
    """Whatever it has read of a segment stays true in every later playlist."""
    window, seen = HlsWindow(4, 16), {}
    for count in (1, 2, 9, 3, 1):
        window.begin(f"init {count}".encode())
        for _ in range(count + 1):  # the first of them closes nothing
            fill(window, 1)
            text = window.playlist()
            for number, timeline, init in sequence(text) if text else ():
                assert seen.setdefault(number, (timeline, init)) == (timeline, init)
                assert window.file(init) is not None
    assert sorted(seen) == list(range(len(seen)))
    assert len({init for _, init in seen.values()}) == len({timeline for timeline, _ in seen.values()}) == 5


def test_numbers_go_on_in_the_next_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hls.json"
    last, timelines, began = -1, set(), time.time()
    for life in range(5):
        if life == 2:
            file.unlink()  # days later, the clock is far enough
        if life == 3:
            file.write_bytes(b"\xff rubbish")
        clock = began + 86400 * life if life < 4 else 0  # a board without a clock: the file is far enough
        monkeypatch.setattr(hls.time, "time", lambda now=clock: now)
        numbers = Numbers(file)
        assert numbers.next > last
        timeline = numbers.timeline()
        assert timeline not in timelines
        timelines.add(timeline)
        for _ in range(AHEAD + 5 if life == 0 else 3):
            last = numbers.take()
        wait_for(lambda n=numbers: Numbers(file).next > n.next, 5)


def test_a_late_writer_takes_no_number_back(tmp_path: Path) -> None:
    """Threads write, and one may come to it after another that was started later."""
    file = tmp_path / "hls.json"
    numbers = Numbers(file)
    with ThreadPoolExecutor(16) as many:
        list(many.map(numbers._write, reversed(range(numbers.timelines, last := numbers.timelines + 200))))
    assert json.loads(file.read_bytes())["timelines"] == last - 1
    assert [one.name for one in tmp_path.iterdir()] == ["hls.json"]


def test_where_nothing_can_be_written_the_clock_counts(tmp_path: Path) -> None:
    numbers = Numbers(tmp_path / "missing" / "hls.json")
    before = numbers.take()
    time.sleep(1.1)
    assert Numbers(tmp_path / "missing" / "hls.json").next > before


@pytest.mark.parametrize(
    "name", ["x.m4s", "-1.m4s", "1.mp4", "init-.mp4", "9" * 5000 + ".m4s", "", "init-0.mp4", "٣.m4s"]
)
def test_names_that_are_none(name: str) -> None:
    window = HlsWindow(3, 16)
    window.begin(b"init")
    fill(window, 5)
    assert window.file(name) is None


def listed(site: Site) -> list[tuple[int, int, str]]:
    status, text = site.ask("/hls/live.m3u8")
    return sequence(text.decode()) if status == 200 else []


def test_a_restarted_server_goes_on_with_a_mark(bundle_path: Path, tmp_path: Path) -> None:
    video = "[video]\nkeyframe_seconds = 0.5\nhls_segments = {}\n"
    with serve(tmp_path, bundle_path, video.format(3)) as site:
        before = wait_for(lambda: len(listed(site)) == 3 and listed(site))
        site.process.kill()
        site.process.wait()
    with serve(tmp_path, bundle_path, video.format(10)) as site:  # long enough for a slow machine to see the mark
        text = wait_for(lambda: listed(site) and site.ask("/hls/live.m3u8")[1]).decode()
        assert "#EXT-X-DISCONTINUITY\n" in text
        after = sequence(text)
        assert after[0][0] > before[-1][0]
        assert after[0][1] == before[-1][1] + 1
        assert after[0][2] != before[-1][2]
        number, _, init = wait_for(lambda: listed(site))[-1]
        data = site.ask(f"/hls/{init}")[1] + site.ask(f"/hls/{number}.m4s")[1]
        with av.open(io.BytesIO(data), "r") as container:
            assert len(list(container.decode(video=0))) == 8
        for name in ("live.m3u8", init, f"{number}.m4s"):  # a player in another page reads all of it by scripts
            with urllib.request.urlopen(f"{site.url}/hls/{name}") as answer:
                assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert site.ask(f"/hls/{before[-1][2]}")[0] == 404  # its segments are gone
        later = wait_for(lambda: (found := listed(site)) and found[0][0] > after[0][0] and found)
        assert later[0][1] == after[0][1]  # the mark has gone with its segment, and is counted
