"""The same orders over OSC, for show control. Off by default: OSC knows no authentication.

/everframe/prompt  text [transition [crossfade seconds]]     /everframe/next
/everframe/pause   /everframe/resume                         /everframe/seed  number
/everframe/state   is answered, to where it came from, with the same address and: prompt, "running" or what else it does,
                   1 while paused, latent frame, real-time factor

Controllers send their buttons with a value, 1 when pressed and 0 when let go, and every number as a float; other arguments
of a button are ignored. Text that is not UTF-8 is read as Latin-1. Each packet that cannot be obeyed is one line of the log.
"""

from __future__ import annotations

import contextlib
import logging
import math
import socket
import threading
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from ....engines.bundle import first_problem
from ....engines.errors import UserError
from ....engines.files import reason
from ...noise import MAX_SEED
from ..addresses import in_url, own_host
from ..config import Osc
from ..discretion import printable, shortened
from ..guard import Rates
from .control import Control
from .playlist import Change

log = logging.getLogger(__name__)

HOME = "/everframe/"
DEEPEST = 8  # bundles in bundles
LARGEST = 65535  # bytes of a datagram
LENGTHS = {"i": 4, "f": 4, "c": 4, "r": 4, "m": 4, "h": 8, "d": 8, "t": 8}  # bytes of an argument
ANSWERS = 10.0  # a second to one address: the sender of a datagram can be forged
MOST_SAID = 400  # characters of a prompt in an answer


class Listener:
    """A socket and its thread."""

    def __init__(self, settings: Osc, control: Control, state: Callable[[], dict[str, Any]]):
        self._state, self._answers = state, Rates(ANSWERS)
        bare = own_host("osc.host", settings.host)
        self._control, self._ending = control, threading.Event()
        self._socket = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.bind((bare, settings.port))
        except (OSError, TypeError, ValueError) as error:  # the others: what is no host name at all
            self._socket.close()
            why = reason(error) if isinstance(error, OSError) else "not a host name"
            raise UserError(f"osc: cannot listen on {in_url(bare)}:{settings.port}: {why}") from None
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
                if packet(self._control, data) and self._answers.wait(sender[0]) == 0:
                    with contextlib.suppress(OSError):
                        self._socket.sendto(answer(self._state()), sender)
            except UserError as error:
                log.warning("OSC from %s: %s", sender[0], shortened(printable(str(error)), 500))
            except Exception:  # a datagram must not end the thread
                log.exception("OSC from %s", sender[0])


def serve_osc(settings: Osc, control: Control, state: Callable[[], dict[str, Any]]) -> Listener:
    """Start listening in a thread; shutdown() ends it. state: what /everframe/state tells. Raises UserError."""
    try:
        import pythonosc  # noqa: F401 - asked for when it is needed
    except ImportError:
        raise UserError("osc.enabled: needs python-osc: pip install 'everframe[serve]'") from None
    return Listener(settings, control, state)


def answer(state: dict[str, Any]) -> bytes:
    """What is running, as a message."""
    from pythonosc.osc_message_builder import OscMessageBuilder

    made = OscMessageBuilder(HOME + "state")
    made.add_arg(shortened(state["prompt"] or "", MOST_SAID), OscMessageBuilder.ARG_TYPE_STRING)
    made.add_arg(state["generator"], OscMessageBuilder.ARG_TYPE_STRING)
    made.add_arg(int(state["paused"]), OscMessageBuilder.ARG_TYPE_INT)
    made.add_arg(min(state["position"], 2**31 - 1), OscMessageBuilder.ARG_TYPE_INT)
    made.add_arg(float(state["real_time_factor"] or 0), OscMessageBuilder.ARG_TYPE_FLOAT)
    return made.build().dgram


def packet(control: Control, data: bytes) -> bool:
    """Obey a datagram's messages, at once whatever its time tag says. Returns whether one asks for the state. Raises
    UserError for what cannot be obeyed."""
    from pythonosc.osc_packet import OscPacket

    check_sizes(data)
    try:
        try:
            packets = OscPacket(data)
        except UnicodeDecodeError:
            packets = OscPacket(as_utf8(data))
        messages = [timed.message for timed in packets.messages]
        orders = [(message.address, tuple(message.params)) for message in messages]
    except Exception as error:  # python-osc raises many types, for bytes that anybody can send
        raise UserError(f"{len(data)} bytes that are no OSC message: {error}") from None
    problems, asked = [], False
    for address, values in orders:
        if address == HOME + "state":
            asked = True
            continue
        if not address.startswith(HOME):
            continue  # controllers send their page changes and pings to everybody
        try:
            order(control, address.removeprefix(HOME), values)
        except UserError as error:
            problems.append(f"{address}: {error}")
    if problems:
        raise UserError("; ".join(problems))
    return asked


def as_utf8(data: bytes) -> bytes:
    """A datagram whose text is Latin-1, which some desks send."""
    if data.startswith(b"#bundle\0"):
        parts, at = [data[:16]], 16
        while at < len(data):
            size = int.from_bytes(data[at : at + 4], "big")
            part = as_utf8(data[at + 4 : at + 4 + size])
            parts += [len(part).to_bytes(4, "big"), part]
            at += 4 + size
        return b"".join(parts)
    address, at = _text(data, 0)
    kinds, at = _text(data, at)
    parts = [_padded(address), _padded(kinds)]
    for kind in kinds[1:].decode("ascii", "replace"):
        if kind in "sS":
            text, at = _text(data, at)
            parts.append(_padded(text.decode("latin-1").encode()))
        else:
            size = LENGTHS.get(kind, 0) if kind != "b" else 4 + -(-int.from_bytes(data[at : at + 4], "big") // 4) * 4
            parts.append(data[at : at + size])
            at += size
    return b"".join(parts)


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    """A string and where the next thing begins: four bytes each, with at least one zero."""
    end = data.find(b"\0", at)
    end = len(data) if end < 0 else end
    return data[at:end], at + (end - at) // 4 * 4 + 4


def _padded(text: bytes) -> bytes:
    return text + b"\0" * (4 - len(text) % 4)


def check_sizes(data: bytes, depth: int = 0) -> None:
    """Raises UserError for a bundle whose elements do not fill it one after the other: python-osc never comes back from
    sizes below zero."""
    if not data.startswith(b"#bundle\0"):
        return
    at = 16  # behind the name and the time tag
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big", signed=True)
        if depth > DEEPEST or size <= 0 or size % 4 or at + 4 + size > len(data):
            raise UserError(f"{len(data)} bytes that are no OSC message: an element of {size} bytes at {at}")
        check_sizes(data[at + 4 : at + 4 + size], depth + 1)
        at += 4 + size
    if at != len(data):
        raise UserError(f"{len(data)} bytes that are no OSC message: the bundle is cut off")


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
    """Whether a button's message is its press: no value, 1 or true; 0 or false when it is let go. What follows, or is no
    number, is ignored. Raises UserError."""
    if not values or not isinstance(values[0], int | float):
        return True
    if values[0] in (0, 1):
        return bool(values[0])
    raise UserError(f"{values}: expected no value, or a button's 1 or 0")


def whole(value: Any) -> int:
    """A seed: 7 or 7.0. Raises UserError."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value != int(value) or not 0 <= value <= MAX_SEED:
        raise UserError(f"{value!r}: expected a whole number from 0 to {MAX_SEED}")
    return int(value)
