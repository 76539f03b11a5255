"""`everframe fleet`: the streams, their gateway, uvicorn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..config import Logging
from ..orders.control import read_token
from ..start import make_state_dir, run, token_place
from ..survival.logs import set_up
from .actors import Fleet, read_fleet
from .gateway import create_gateway


def serve_fleet(file: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """The gateway of a fleet, and its streams. Raises UserError."""
    config = read_fleet(file)
    make_state_dir(config.state_dir)
    set_up(Logging())
    token = read_token(config.state_dir, config.server.token)
    fleet = Fleet(config)
    run(create_gateway(fleet, config.server, token), config.server, token_place(config.state_dir, config.server), tell)
