"""`everframe fleet`: the streams, their gateway, uvicorn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ....engines.errors import UserError
from ..addresses import listening
from ..config import Logging
from ..discretion import secrets_of
from ..orders.control import read_token
from ..pictures.push import check_protocols
from ..start import address_line, make_state_dir, prepare, run
from ..survival.lock import hold
from ..survival.logs import set_up
from .actors import Fleet, read_fleet
from .gateway import create_gateway


def serve_fleet(file: Path, tell: Callable[[str], None] = lambda line: None) -> None:
    """The gateway of a fleet, and its streams. Raises UserError."""
    config = read_fleet(file)
    make_state_dir(config.state_dir)
    secrets = {secret for target in config.video.push for secret in secrets_of(target)}
    set_up(Logging(), secrets | ({config.server.token} if config.server.token else set()))
    check_protocols(config.video.push)
    with hold(config.state_dir):
        token = read_token(config.state_dir, config.server.token)
        bound = listening(config.server.host, config.server.port)
        try:
            try:
                fleet = Fleet(config)
            except UserError as error:
                raise UserError(f"{file}: {error}") from None
            web = prepare(create_gateway(fleet, config.server, token), config.server)
            tell(address_line(config.server, config.state_dir))
            run(web, bound, config.server)
        finally:
            bound.close()
