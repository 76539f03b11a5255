"""Run where every dependency has its lowest declared version (`make test-lowest`): the demo is streamed into a file that
decodes, every command shows its help, and the server serves. Needs nothing but the package itself.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import av

EVERFRAME = [sys.executable, "-m", "everframe.runtime.cli"]
PORT = 18746


def get(path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=5) as answer:
        return answer.read()


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "x.mp4"
        subprocess.run([*EVERFRAME, "generate", "--seconds", "2", "-o", out], check=True)
        with av.open(out) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 32
        assert frames[0].std() > 5
        for command in ("", "generate", "bench", "plan", "inspect", "doctor", "serve", "prompts"):
            subprocess.run([*EVERFRAME, *command.split(), "--help"], check=True, stdout=subprocess.DEVNULL)
        for words in (["plan", "--size", "320x192"], ["inspect"], ["doctor"]):
            subprocess.run([*EVERFRAME, *words], check=True, stdout=subprocess.DEVNULL)
        server = subprocess.Popen([*EVERFRAME, "serve", "--port", str(PORT), "--state-dir", f"{home}/state"])
        try:
            deadline = time.monotonic() + 90
            while True:
                try:
                    if json.loads(get("/readyz"))["ready"] and get("/api/snapshot.png")[1:4] == b"PNG":
                        break
                except OSError:
                    assert server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline
                time.sleep(0.5)
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(30)
    print("the lowest versions work")


if __name__ == "__main__":
    main()
