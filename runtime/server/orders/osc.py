"""The same orders over OSC, for show control. Off by default: OSC knows no authentication.

/everframe/prompt  text [transition [crossfade seconds]]     /everframe/next
/everframe/pause   /everframe/resume                         /everframe/seed  number
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from pydantic import ValidationError

from ....engines.bundle import first_problem
from ....engines.errors import UserError
from ..config import Osc
from .control import Control
from .playlist import Change

log = logging.getLogger(__name__)


def serve_osc(settings: Osc, control: Control) -> Any:
    """Start listening in a thread; returns the server, whose shutdown() ends it. Raises UserError."""
    try:
        from pythonosc.dispatcher import Dispatcher
        from pythonosc.osc_server import BlockingOSCUDPServer
    except ImportError:
        raise UserError("osc.enabled: needs python-osc: pip install 'everframe[serve]'") from None

    def obey(address: str, *values: Any) -> None:
        try:
            order(control, address.removeprefix("/everframe/"), values)
        except UserError as error:
            log.warning("OSC %s: %s", address, error)

    dispatcher = Dispatcher()
    dispatcher.map("/everframe/*", obey)
    try:
        server = BlockingOSCUDPServer((settings.host, settings.port), dispatcher)
    except OSError as error:
        raise UserError(f"osc: cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, name="osc", daemon=True).start()
    return server


def order(control: Control, name: str, values: tuple[Any, ...]) -> None:
    """One message. Raises UserError when its arguments are not what the order wants."""
    if name == "prompt" and 1 <= len(values) <= 3:
        try:
            control.set_prompt(Change(**dict(zip(("prompt", "transition", "crossfade"), values, strict=False))))
        except ValidationError as error:
            raise UserError(first_problem(error)) from None
    elif name == "seed" and len(values) == 1 and isinstance(values[0], int) and values[0] >= 0:
        control.set_seed(values[0])
    elif name in ("pause", "resume") and not values:
        control.pause(name == "pause")
    elif name == "next" and not values:
        control.skip()
    else:
        raise UserError(f"{name} {values}: no such order, or not its arguments")
