"""systemd's notification protocol (sd_notify(3)): one datagram to the socket that it names."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(message: str) -> None:
    """READY=1, WATCHDOG=1, STOPPING=1, STATUS=…; nothing where systemd has not asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(message.encode(), address)


def watchdog_seconds() -> float | None:
    """How often systemd wants to hear WATCHDOG=1, halved as sd_watchdog_enabled(3) advises; None: not at all."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) / 2e6 if usec.isdigit() and int(usec) else None
