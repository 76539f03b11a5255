"""Host names and addresses: what can be listened on, what browsers may ask for, and how it is written in a URL."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket

from ...engines.errors import UserError
from ...engines.files import reason
from .discretion import redacted

UNREAD = 60_000  # milliseconds
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


def in_url(host: str) -> str:
    """'::1' -> '[::1]': an IPv6 address stands in brackets."""
    return f"[{host.replace('%', '%25')}]" if ":" in host and not host.startswith("[") else host


def page_of(host: str, port: int) -> str:
    """The address of the page, one that a browser on this machine takes."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
    return f"http://{in_url(near.get(host, host))}:{port}/"


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return host.lower().rstrip(".") == "localhost"


def asked_name(host: str) -> str:
    """A Host header without its port, as names are compared: 'LOBBY.example.:8080' -> 'lobby.example'."""
    name = host.strip().lower()
    return (name if name.endswith("]") else name.rsplit(":", 1)[0]).rstrip(".")


def host_name(text: str) -> str:
    """An entry of a list of names as browsers send it. Raises ValueError for one that no browser can ever send."""
    name = text.strip().lower().rstrip(".")
    if name == "*":
        return name
    with contextlib.suppress(ValueError):
        return in_url(str(ipaddress.ip_address(name.removeprefix("[").removesuffix("]") if name[:1] == "[" else name)))
    with contextlib.suppress(UnicodeError):
        plain = name.encode("idna").decode("ascii")
        if plain and all(_LABEL.fullmatch(label) for label in plain.split(".")):
            return plain
    raise ValueError(
        f"{_shown(text)!r} is never what a browser asks for: expected a name such as signage.example or an address, "
        "without http://, port, path or *."
    )


def _shown(text: str) -> str:
    return redacted(text) if "@" in text else text


def origin(text: str) -> str:
    """An origin such as https://intranet.example:8443, or * for any. Raises ValueError."""
    found = re.fullmatch(
        r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[^/:\[\]]+)(?P<port>:\d{1,5})?", text.strip().lower()
    )
    if text.strip() == "*":
        return "*"
    if found is None:
        raise ValueError(f"{_shown(text)!r}: expected an origin such as https://intranet.example, or *")
    return f"{found['scheme']}://{host_name(found['host'])}{found['port'] or ''}"


def _plain(host: str) -> bool:
    """Whether a host that ends in a number is an address as it is written: the system takes 127.1 and 0x7f000001 for
    loopback, and the guard of names would not."""
    if not re.fullmatch(r"\d+|0x[\da-f]*", host.lower().rstrip(".").rsplit(".", 1)[-1]):
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host) is not None
    return False


def own_host(field: str, host: str) -> str:
    """What is listened on, as the system takes it: without brackets. Raises UserError naming the field."""
    bare = host.strip("[]")
    if not bare:  # which would listen on every address
        raise UserError(f"{field}: found nothing, expected an address such as 127.0.0.1, or 0.0.0.0 for every one")
    if not _plain(bare):
        raise UserError(f"{field}: found {host!r}, expected a name or a whole address such as 127.0.0.1")
    return bare


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet. Raises UserError with the reason."""
    where = f"{in_url(host)}:{port}"
    bare = own_host("server.host", host)
    one = socket.socket(socket.AF_INET6 if ":" in bare else socket.AF_INET)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Of every connection: one whose peer reads nothing any more is closed, however much waits for it.
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD)
        one.bind((bare, port))
        return one
    except OSError as error:
        one.close()
        raise UserError(f"cannot listen on {where}: {reason(error)}") from None
    except (UnicodeError, ValueError, TypeError):
        one.close()
        raise UserError(f"cannot listen on {where}: not a host name") from None
