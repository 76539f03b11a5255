"""`everframe serve`: the configuration, the service, uvicorn."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engines.errors import UserError
from ...engines.files import check_writable, reason, remove_parts
from .addresses import in_url, listening, page_of
from .config import Config, Server, read_config
from .discretion import secrets_of

if TYPE_CHECKING:
    from .survival.logs import Tail
    from .survival.seen import Seen

log = logging.getLogger(__name__)

FILES = 8192  # open files that are enough, connections included


def configure(
    file: Path | None, bundle: Path | None, host: str | None, port: int | None, state_dir: Path | None
) -> Config:
    """The configuration file with the command line's changes. Raises UserError."""
    config = Config() if file is None else read_config(file)
    server = config.server.model_copy(update={k: v for k, v in (("host", host), ("port", port)) if v is not None})
    stream = config.stream if bundle is None else config.stream.model_copy(update={"bundle": bundle})
    changed = config.model_copy(update={"server": server, "stream": stream})
    return changed if state_dir is None else changed.model_copy(update={"state_dir": state_dir})


def prepare(app: Any, server: Server) -> Any:
    """A uvicorn server for the application."""
    import uvicorn

    from .connections import Http, Socket, Web

    settings = uvicorn.Config(
        app,
        http=Http,
        ws=Socket,
        host=server.host,
        port=server.port,
        log_config=None,
        ws_max_size=64 << 10,
        ws_per_message_deflate=False,  # video does not get smaller; it would be tried for every fragment and viewer
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,
        server_header=False,
    )
    return Web(settings)


def run(web: Any, bound: socket.socket, server: Server) -> None:
    """Until a signal or `should_exit` ends it. Raises UserError when it cannot listen or start."""
    try:
        bound.listen(2048)
    except OSError as error:  # somebody was faster
        raise UserError(f"cannot listen on {in_url(server.host)}:{server.port}: {reason(error)}") from None
    web.run(sockets=[bound])
    if web.signals:
        signal.raise_signal(web.signals[0])
    if not web.started:
        raise UserError("the web process could not start; the log says why")


def make_state_dir(folder: Path) -> None:
    """Raises UserError where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"state_dir {folder}: {reason(error)}") from None
    check_writable(folder / "control.json")


def on_a_read_only_disk(folder: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def serve(config: Config, tell: Callable[[str], None] = lambda line: None) -> None:
    """Until a signal ends it; `tell` is told where it can be seen. Where another bundle takes the place of the one that it
    shows, it starts anew with that.

    Raises UserError for everything that can be known before the first frame.
    """
    from .orders.control import read_token
    from .survival.lock import hold
    from .survival.logs import set_up

    reading = config.state_dir.is_dir() and on_a_read_only_disk(config.state_dir)
    if not reading:
        make_state_dir(config.state_dir)
    tail = set_up(config.logging, secrets_in(config))
    end_by_signal()
    allow_files()
    if reading:  # as a box comes up after a power cut: a picture is better than none
        log.warning("state_dir %s: its disk is read-only: nothing is kept, neither states nor orders", config.state_dir)
    with hold(config.state_dir):
        remove_parts(config.state_dir)
        token = read_token(config.state_dir, config.server.token)
        another = one_life(config, token, tail, tell, None)
        while another is not None:
            another = one_life(config, token, tail, tell, another)


def make_pictures(config: Config, tell: Callable[[str], None]) -> None:
    """Of the prompts that have none in the state folder. Raises UserError."""
    from .pictures.make_thumbs import make_missing

    make_state_dir(config.state_dir)
    make_missing(config, tell)


def one_life(config: Config, token: str, tail: Tail, tell: Callable[[str], None], seen: Seen | None) -> Seen | None:
    """Serve one bundle. Another one to go on with; None: a signal has ended it. Raises UserError."""
    from .app import create_app
    from .orders.osc import serve_osc
    from .service import Service
    from .survival.seen import see

    bound = listening(config.server.host, config.server.port)  # before gigabytes are read
    osc = None
    try:
        service = Service(config, seen or see(config.stream.bundle))
        osc = serve_osc(config.osc, service.control, service.state) if config.osc.enabled else None
        web = prepare(create_app(service, token, tail), config.server)
        service.settled = lambda: tell(address_line(config.server, config.state_dir))
        service.first_life = seen is None
        service.finish = lambda: setattr(web, "should_exit", True)
        run(web, bound, config.server)
    finally:
        bound.close()
        if osc is not None:
            osc.shutdown()
    if service.fatal is not None:
        raise UserError(service.fatal)
    return service.another


def allow_files() -> None:
    """As many open files and connections as the system lets us have without asking: the usual 1,024 are fewer than the
    connections that are served, and who has none left can save nothing."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has none of this
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def end_by_signal() -> None:
    """SIGTERM ends the process by that signal, as service managers expect, and with a line: before the web server runs,
    which has its own way to the same end, and after it."""

    def end(number: int, _: object) -> None:
        log.info("stopped by %s", signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)


def secrets_in(config: Config) -> set[str]:
    """What no line of the log may show."""
    found = {secret for target in config.video.push for secret in secrets_of(target)}
    return found | ({config.server.token} if config.server.token else set())


def address_line(server: Server, folder: Path) -> str:
    """Where it can be seen, and where the token is."""
    return f"{page_of(server.host, server.port)} · token in {'server.token' if server.token else folder / 'token'}"
