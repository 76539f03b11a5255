"""`everframe serve`: the configuration, the service, uvicorn."""

from __future__ import annotations

import os
from pathlib import Path

from ...engines.errors import UserError
from ...engines.files import check_writable, reason
from ..demo import open_bundle
from .config import Config, read_config


def configure(
    file: Path | None, bundle: Path | None, host: str | None, port: int | None, state_dir: Path | None
) -> Config:
    """The configuration file with the command line's changes. Raises UserError."""
    config = Config() if file is None else read_config(file)
    server = config.server.model_copy(update={k: v for k, v in (("host", host), ("port", port)) if v is not None})
    stream = config.stream if bundle is None else config.stream.model_copy(update={"bundle": bundle})
    changed = config.model_copy(update={"server": server, "stream": stream})
    return changed if state_dir is None else changed.model_copy(update={"state_dir": state_dir})


def serve(config: Config) -> None:
    """Until a signal ends it. Raises UserError for everything that can be known before the first frame."""
    import uvicorn

    from .app import create_app
    from .control import read_token
    from .logs import set_up
    from .osc import serve_osc
    from .service import Service

    try:
        config.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"state_dir {config.state_dir}: {reason(error)}") from None
    check_writable(config.state_dir / "control.json")
    tail = set_up(config.logging)
    token = read_token(config)
    bundle = open_bundle(config.stream.bundle)
    service = Service(config, bundle)
    osc = serve_osc(config.osc, service.control) if config.osc.enabled else None
    app = create_app(service, token, tail)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.server.host,
            port=config.server.port,
            log_config=None,
            ws_max_size=64 << 10,
            timeout_graceful_shutdown=5,
            limit_concurrency=1000,
            server_header=False,
        )
    )
    try:
        sockets = [server.config.bind_socket()]
    except SystemExit:  # uvicorn has logged why
        where = f"{config.server.host}:{config.server.port}"
        raise UserError(f"cannot listen on {where}: the address is in use, or not this machine's") from None
    told = f"http://{config.server.host}:{config.server.port}"
    where = "server.token" if config.server.token else str(config.state_dir / "token")
    print(f"player {told}/ · operator {told}/operator · token in {where}", flush=True)
    try:
        server.run(sockets=sockets)
    finally:
        if osc is not None:
            osc.shutdown()
        for one in sockets:
            one.close()
    if server.started is False:
        os._exit(1)
