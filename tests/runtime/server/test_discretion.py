"""What may be shown of an address with a key in it."""

from __future__ import annotations

import logging
import sys

import pytest

from everframe.runtime.server.discretion import Veil, redacted, secrets_of

ADDRESSES = [
    ("rtmp://127.0.0.1:1935/live2/SECRET-KEY", "rtmp://127.0.0.1:1935"),
    ("rtmps://a.example/app/SECRET-KEY?auth=SECRET2", "rtmps://a.example"),
    ("srt://10.0.0.5:9000?passphrase=SECRETPASS&mode=caller", "srt://10.0.0.5:9000"),
    ("rtmp://operator:SECRETWORD@mixer:1935/live/x", "rtmp://mixer:1935"),
    ("rtmp://operator:SEC/RET@mixer/live", "rtmp://…"),  # where the password ends nobody can tell
    ("rtmp://mixer/live/stream@SECRET", "rtmp://…"),
    ("rtmp://[::1]:1935/live/SECRET-KEY", "rtmp://[::1]:1935"),
    ("udp://239.0.0.1:5004?pkt_size=1316", "udp://239.0.0.1:5004"),
    ("SECRET without an address", "…"),
]


@pytest.mark.parametrize(("url", "shown"), ADDRESSES)
def test_of_an_address_only_where_it_leads_is_shown(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert url in secrets_of(url)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("rtmp://mixer/live/KEY-123456", "libav: rtmp://mixer/live/KEY-123456: refused"),
        ("rtmp://mixer/live/KEY-123456", "server said: no stream KEY-123456"),
        ("srt://mixer:9000?passphrase=p%C3%A4ssword123", "srt: bad passphrase pässword123"),
        ("srt://mixer:9000?passphrase=p%C3%A4ssword123", "srt: bad passphrase p%C3%A4ssword123"),
        ("rtmp://operator:wordword@mixer/x", "401 for operator:wordword"),
    ],
)
def test_lines_of_libraries_show_no_secret(url: str, line: str) -> None:
    record = logging.LogRecord("libav", logging.INFO, "", 0, "%s", (line,), None)
    text = Veil("%(message)s", secrets_of(url)).format(record)
    for secret in ("123456", "ssword", "wordword"):
        assert secret not in text
    assert "…" in text


def test_neither_do_tracebacks() -> None:
    try:
        raise ValueError("rtmp://mixer/live/KEY-123456")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    text = Veil("%(message)s", secrets_of("rtmp://mixer/live/KEY-123456")).format(record)
    assert "Traceback" in text
    assert "KEY" not in text


def test_sizes_in_an_address_do_not_blot_the_log() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "1316 frames", (), None)
    assert Veil("%(message)s", secrets_of("udp://239.0.0.1:5004?pkt_size=1316")).format(record) == "1316 frames"


def test_long_lines_are_cut() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", ("x" * 200_000,), None)
    assert len(Veil("%(message)s").format(record)) < 2100
