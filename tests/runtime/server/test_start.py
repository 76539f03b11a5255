"""Starts that are refused: one clear line and exit code 2, before anything is shown; and starts that are broken off."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from everframe.runtime.state import read_facts

from serving import COMMAND, TOKEN, free_port, serve, wait_for


def refused(folder: Path, *words: object, config: str | None = None) -> str:
    """The one line of a server that does not start."""
    if config is not None:
        (folder / "everframe.toml").write_text(config)
        words = (*words, "--config", "everframe.toml")
    done = subprocess.run([*COMMAND, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(last) == 1, done.stderr
    return done.stdout + done.stderr


SRT = "[video]\npush = ['srt://127.0.0.1:9000?passphrase=SECRETPASS']"
CONFIGS = [
    (SRT, "video.push srt://127.0.0.1:9000: the FFmpeg inside PyAV"),
    ("[video]\npush = ['rtmp:///live/SECRETKEY']", "expected a host"),
    ("[video]\npush = ['udp://239.0.0.1']", "its port"),
    ("[video]\npush = 'rtmp://mixer/live/SECRETKEY'", "expected a list of addresses"),
    ("[video]\npush = ['http://mixer/live/SECRETKEY']", "http://mixer"),
    ("[stream]\nground = '#204060'", "stream.ground: '#204060': expected an anchor"),
    ("[stream]\npush = 'rtmp://mixer/live/SECRETKEY'", "stream.push: Extra inputs"),
    ("[server]\ntokken = 'SECRET-of-this-server'", "server.tokken: Extra inputs"),
    ("[server]\nembed = ['https://user:SECRET@intranet.example']", "server.embed"),
    ("[server]\nhosts = ['https://user:SECRET@intranet.example']", "server.hosts"),
    ("[server]\nhost = ''", "server.host: found nothing"),
    ("[video]\nencoder = 'hevc_nvenc'", "video.encoder"),
    ("[video]\ncrf = 0\nwebrtc = 1", "video.crf: found 0, which is lossless"),
    ("[osc]\nenabled = true\nhost = ''", "osc.host: found nothing"),
    ("[stream]\nprompt = ''", "stream.prompt"),
    ("[stream]\nprovider = 'cuda'", "no CUDAExecutionProvider"),
    ("[stream]\nprovider = 'kuda'", "provider 'kuda'"),
    ("[stream]\nbackend = 'x'", "'x'"),
    ("[stream]\nanchor = '.'", "stream.anchor"),
    ("[stream]\nprompt = 'an elephant'", "not in the bundle's prompt bank"),
    ("[server]\nhosts = ['http://signage.example/']", "server.hosts"),
    ("[server]\nembed = ['intranet']", "server.embed"),
    ("[server]\norigins = ['*']", "server.origins"),
    ("[server]\ntoken = 'SECRET'", "server.token"),
    ("[server]\ntoken = 'SECRET with blanks in it'", "server.token"),
    ("[server]\nhost = 'no.such.host.invalid'", "cannot listen on no.such.host.invalid"),
    ("[schedule]\nentries = [{at = '08:00+02:00', pause = true}]", "'08:00+02:00'"),
    *((f"[stream]\nstall_seconds = {n}", "stream.stall_seconds") for n in ("nan", "inf", "-1", "0", "1e300")),
    *((f"[stream]\nsave_seconds = {n}", "stream.save_seconds") for n in ("nan", "inf", "-1", "1e300")),
    *((f"[server]\nrate = {n}", "server.rate") for n in ("nan", "inf", "0", "1e300")),
    ("[stream]\nthreads = 100000", "stream.threads"),
    ("[playlist]\nitems = [{prompt = 'a', seconds = inf}]", "seconds"),
]


@pytest.mark.parametrize(("config", "words"), CONFIGS)
def test_what_cannot_work_is_refused_at_start(bundle_path: Path, tmp_path: Path, config: str, words: str) -> None:
    server = "" if config.startswith("[server]") else f"[server]\nport = {free_port()}\n"
    said = refused(tmp_path, bundle_path, "--port", free_port(), config=f"state_dir = 'state'\n{server}{config}\n")
    assert words in said
    assert "SECRET" not in said


@pytest.mark.parametrize("content", [b"\xff\xfe\n", b"short\n", b"\xc3\xa9" * 20, b"with blanks in between\n"])
def test_a_token_that_no_browser_can_send_is_refused(bundle_path: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "token").write_bytes(content)
    said = refused(tmp_path, bundle_path, "--state-dir", "state", "--port", free_port())
    assert "remove the file to get a new" in said
    assert said.count("\n") == 1


def test_a_folder_that_takes_no_files(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "state_dir file" in refused(tmp_path, bundle_path, "--state-dir", "file")
    assert "state_dir" in refused(tmp_path, bundle_path, "--state-dir", "/proc/self/state")


def test_a_port_in_use_and_a_folder_in_use(bundle_path: Path, tmp_path: Path) -> None:
    with serve(tmp_path, bundle_path) as site:
        said = refused(tmp_path, bundle_path, "--port", site.port, "--state-dir", "other")
        assert f"cannot listen on 127.0.0.1:{site.port}: Address already in use" in said
        assert said.count("\n") == 1
        said = refused(tmp_path, bundle_path, "--port", free_port(), "--state-dir", "state")
        assert f"in use by another server (process {site.process.pid})" in said
        assert site.ask("/readyz")[0] == 200
        site.process.kill()  # the lock dies with its process
        site.process.wait()
    with serve(tmp_path, bundle_path) as site:
        assert site.ask("/readyz")[0] == 200


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_the_address_of_ipv6(bundle_path: Path, tmp_path: Path) -> None:
    port = free_port()
    words = ["--host", "::1", "--port", port, "--state-dir", "state"]
    process = subprocess.Popen(
        [*COMMAND, str(bundle_path), *map(str, words)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://[::1]:{port}/ ".encode())
    finally:
        process.terminate()
        process.wait(40)


def test_sigterm_during_the_start(bundle_path: Path, tmp_path: Path) -> None:
    """At any moment of it: the process ends soon, by that signal, without a traceback and without a child left behind."""
    for wait in (0.3, 0.7, 1.0, 1.3, 1.6):
        log = tmp_path / "log"
        with open(log, "wb") as out:
            words = ["--port", str(free_port()), "--state-dir", str(tmp_path / "state")]
            process = subprocess.Popen([*COMMAND, str(bundle_path), *words], stdout=out, stderr=out)
        time.sleep(wait)
        children = children_of(process.pid)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM
        assert time.monotonic() - began < 10
        assert "Traceback" not in log.read_text()
        wait_for(lambda pids=children: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # a thread that has ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def test_configurations_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    from everframe.runtime.server.config import read_config

    (tmp_path / "x.toml").write_bytes(b"\xef\xbb\xbf[server]\nport = 81\n")
    assert read_config(tmp_path / "x.toml").server.port == 81


def test_no_secret_anywhere(bundle_path: Path, tmp_path: Path) -> None:
    """Not in health, figures, state, log, nor in the names of processes and threads."""
    push = '[video]\npush = ["rtmp://operator:SECRETWORD@127.0.0.1:1/live2/SECRET-KEY", "rtmp://127.0.0.1:1/a/SECRET-K2"]\n'
    with serve(tmp_path, bundle_path, push) as site:
        wait_for(lambda: site.log.read_text().count("push rtmp://127.0.0.1:1: ") >= 2)
        health = site.ask("/healthz")[1]
        assert health["problems"] == ["push rtmp://127.0.0.1:1: not connected"] * 2
        shown = [str(site.ask(path)[1]) for path in ("/healthz", "/metrics", "/api/state", "/api/log", "/readyz")]
        for pid in (site.process.pid, *children_of(site.process.pid)):
            for file in Path("/proc", str(pid)).glob("task/*/comm"):
                shown.append(file.read_text())
            shown.append(Path(f"/proc/{pid}/cmdline").read_text())
        shown += [site.log.read_text()]
        shown += [file.read_text(errors="replace") for file in site.state.iterdir()]
        for text in shown:
            assert "SECRET" not in text
            assert TOKEN not in text


def test_the_first_generator_s_reason_ends_the_server_a_later_one_s_is_told(bundle_path: Path, tmp_path: Path) -> None:
    """The picture goes on where one ran before: health says why none runs now."""
    import shutil

    copy = tmp_path / "copy.everframe"
    shutil.copytree(bundle_path, copy)
    with serve(tmp_path, copy) as site:
        (copy / "decode.onnx").write_bytes(b"rubbish")
        os.kill(site.generator(), signal.SIGKILL)
        problems = wait_for(lambda: [p for p in site.ask("/healthz")[1]["problems"] if "decode.onnx" in p], 60)
        assert problems[0].startswith("generator: restarting: ")
        assert "truncated or altered" in problems[0]


def test_a_second_server_is_told_by_python_too(tmp_path: Path) -> None:
    """The lock itself, in two processes."""
    from everframe.engines.errors import UserError
    from everframe.runtime.server.survival.lock import hold

    held = hold(tmp_path)
    code = (
        "import sys; from pathlib import Path; from everframe.runtime.server.survival.lock import hold\n"
        "hold(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"UserError: state_dir {tmp_path}: in use by another server (process {os.getpid()})" in done.stderr.replace(
        "everframe.engines.errors.", ""
    )
    with pytest.raises(UserError):
        hold(tmp_path)
    held.close()
    hold(tmp_path).close()


def test_a_viewer_of_motion_jpeg_does_not_hold_up_the_end(bundle_path: Path, tmp_path: Path) -> None:
    with serve(tmp_path, bundle_path) as site, urllib.request.urlopen(f"{site.url}/video.mjpeg") as picture:
        assert picture.read(8) == b"--frame\r"
        site.process.terminate()
        while picture.read(1 << 16):  # it ends as an answer ends
            pass
        site.process.wait(60)
    said = (tmp_path / "log.txt").read_text()
    assert "Cancel" not in said
    assert "Traceback" not in said


def test_a_second_ctrl_c_saves_too(bundle_path: Path, tmp_path: Path) -> None:
    with serve(tmp_path, bundle_path) as site, socket.create_connection(("127.0.0.1", site.port)) as client:
        wait_for(lambda: site.state_of()["position"] > 30)
        # A request that is never whole, which the server waits for before its end begins.
        head = f"POST /api/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 9\r\n\r\nx"
        client.sendall(head.encode())
        time.sleep(0.5)
        site.process.send_signal(signal.SIGINT)
        wait_for(lambda: not answers(site.port))  # it has begun to end
        site.process.send_signal(signal.SIGINT)
        assert site.process.wait(60) == 130
    assert read_facts(tmp_path / "state" / "state.safetensors").position > 30
    said = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in said
    assert "timeout graceful shutdown exceeded" not in said  # which the first alone waits for


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
        return True
    except OSError:
        return False
