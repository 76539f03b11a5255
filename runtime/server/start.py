"""`everframe serve`: the configuration, the service, uvicorn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...engines.errors import UserError
from ...engines.files import check_writable, reason
from ..demo import open_bundle
from .config import Config, Server, read_config


def configure(
    file: Path | None, bundle: Path | None, host: str | None, port: int | None, state_dir: Path | None
) -> Config:
    """The configuration file with the command line's changes. Raises UserError."""
    config = Config() if file is None else read_config(file)
    server = config.server.model_copy(update={k: v for k, v in (("host", host), ("port", port)) if v is not None})
    stream = config.stream if bundle is None else config.stream.model_copy(update={"bundle": bundle})
    changed = config.model_copy(update={"server": server, "stream": stream})
    return changed if state_dir is None else changed.model_copy(update={"state_dir": state_dir})


def run(app: Any, server: Server, token_in: str, tell: Callable[[str], None]) -> None:
    """uvicorn on the configured address until a signal ends it. Raises UserError when it cannot listen."""
    import uvicorn

    settings = uvicorn.Config(
        app,
        host=server.host,
        port=server.port,
        log_config=None,
        ws_max_size=64 << 10,
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
        server_header=False,
    )
    try:
        sockets = [settings.bind_socket()]
    except SystemExit:  # uvicorn has logged why
        where = f"{server.host}:{server.port}"
        raise UserError(f"cannot listen on {where}: the address is in use, or not this machine's") from None
    tell(f"http://{server.host}:{server.port}/ · token in {token_in}")
    try:
        uvicorn.Server(settings).run(sockets=sockets)
    finally:
        for one in sockets:
            one.close()


def make_state_dir(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"state_dir {folder}: {reason(error)}") from None
    check_writable(folder / "control.json")


def serve(config: Config, tell: Callable[[str], None] = lambda line: None) -> None:
    """Until a signal ends it; `tell` is told where it can be seen.

    Raises UserError for everything that can be known before the first frame.
    """
    from .app import create_app
    from .orders.control import read_token
    from .orders.osc import serve_osc
    from .service import Service
    from .survival.logs import set_up

    make_state_dir(config.state_dir)
    tail = set_up(config.logging)
    token = read_token(config.state_dir, config.server.token)
    service = Service(config, open_bundle(config.stream.bundle))
    osc = serve_osc(config.osc, service.control) if config.osc.enabled else None
    try:
        run(create_app(service, token, tail), config.server, token_place(config.state_dir, config.server), tell)
    finally:
        if osc is not None:
            osc.shutdown()


def token_place(folder: Path, server: Server) -> str:
    return "server.token" if server.token else str(folder / "token")
