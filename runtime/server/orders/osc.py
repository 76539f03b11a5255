"""The same orders over OSC, for show control. Off by default: OSC knows no authentication.

/everframe/prompt  text [transition [crossfade seconds]]     /everframe/next
/everframe/pause   /everframe/resume                         /everframe/seed  number

Controllers send their buttons with a value, 1 when pressed and 0 when let go, and every number as a float. Each packet that
cannot be obeyed is one line of the log.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
from typing import Any

from pydantic import ValidationError

from ....engines.bundle import first_problem
from ....engines.errors import UserError
from ....engines.files import reason
from ...stream import MAX_SEED
from ..addresses import in_url
from ..config import Osc
from ..discretion import printable, shortened
from .control import Control
from .playlist import Change

log = logging.getLogger(__name__)

HOME = "/everframe/"
LARGEST = 65535  # bytes of a datagram


class Listener:
    """A socket and its thread."""

    def __init__(self, settings: Osc, control: Control):
        bare = settings.host.strip("[]")
        self._control, self._ending = control, threading.Event()
        self._socket = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((bare, settings.port))
        except OSError as error:
            self._socket.close()
            raise UserError(f"osc: cannot listen on {in_url(bare)}:{settings.port}: {reason(error)}") from None
        self._socket.settimeout(0.5)
        self._thread = threading.Thread(target=self._listen, name="osc", daemon=True)
        self._thread.start()

    def shutdown(self) -> None:
        self._ending.set()
        self._thread.join(2)
        self._socket.close()

    def _listen(self) -> None:
        while not self._ending.is_set():
            try:
                data, sender = self._socket.recvfrom(LARGEST)
            except TimeoutError:
                continue
            except OSError:  # an answer to nothing we sent, or the end
                continue
            try:
                packet(self._control, data)
            except UserError as error:
                log.warning("OSC from %s: %s", sender[0], shortened(printable(str(error)), 500))
            except Exception:  # a datagram must not end the thread
                log.exception("OSC from %s", sender[0])


def serve_osc(settings: Osc, control: Control) -> Listener:
    """Start listening in a thread; shutdown() ends it. Raises UserError."""
    try:
        import pythonosc  # noqa: F401 - asked for when it is needed
    except ImportError:
        raise UserError("osc.enabled: needs python-osc: pip install 'everframe[serve]'") from None
    return Listener(settings, control)


def packet(control: Control, data: bytes) -> None:
    """Obey a datagram's messages, at once whatever its time tag says. Raises UserError for what cannot be obeyed."""
    from pythonosc.osc_packet import OscPacket

    try:
        messages = [timed.message for timed in OscPacket(data).messages]
        orders = [(message.address, tuple(message.params)) for message in messages]
    except UnicodeDecodeError:
        raise UserError(f"{len(data)} bytes: text that is not UTF-8") from None
    except Exception as error:  # python-osc raises many types, for bytes that anybody can send
        raise UserError(f"{len(data)} bytes that are no OSC message: {error}") from None
    problems = []
    for address, values in orders:
        if not address.startswith(HOME):
            continue  # controllers send their page changes and pings to everybody
        try:
            order(control, address.removeprefix(HOME), values)
        except UserError as error:
            problems.append(f"{address}: {error}")
    if problems:
        raise UserError("; ".join(problems))


def order(control: Control, name: str, values: tuple[Any, ...]) -> None:
    """One message. Raises UserError when its arguments are not what the order wants."""
    if name == "prompt" and 1 <= len(values) <= 3:
        try:
            control.set_prompt(Change(**dict(zip(("prompt", "transition", "crossfade"), values, strict=False))))
        except ValidationError as error:
            raise UserError(first_problem(error)) from None
    elif name == "seed" and len(values) == 1:
        control.set_seed(whole(values[0]))
    elif name in ("pause", "resume", "next"):
        if pressed(values):
            control.skip() if name == "next" else control.pause(name == "pause")
    else:
        raise UserError(f"{values}: no such order, or not its arguments")


def pressed(values: tuple[Any, ...]) -> bool:
    """Whether a button's message is its press: no value, 1 or true; 0 or false when it is let go. Raises UserError."""
    if not values:
        return True
    if len(values) == 1 and isinstance(values[0], int | float) and values[0] in (0, 1):
        return bool(values[0])
    raise UserError(f"{values}: expected no value, or a button's 1 or 0")


def whole(value: Any) -> int:
    """A seed: 7 or 7.0. Raises UserError."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value) or not 0 <= value <= MAX_SEED:
        raise UserError(f"{value!r}: expected a whole number from 0 to {MAX_SEED}")
    return int(value)
