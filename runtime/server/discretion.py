"""What may be shown of the configuration: of an address only where it leads, and of a secret nothing.

A push address carries its stream key in the path or the query, others a name and a password before the host. Whatever
shows an address (health, metrics, log, thread names, errors) shows `redacted` of it; log lines, which may come from
libraries, also go through `Veil`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

HIDDEN = "…"
LONGEST = 2000  # characters of a log message that are kept
SHORTEST = 4  # characters of a secret: hiding less would blot out every line
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)


def redacted(url: str) -> str:
    """'rtmp://name:password@host:1935/live/KEY' -> 'rtmp://host:1935'. What cannot be told apart safely is not shown."""
    found = _ADDRESS.fullmatch(url)
    if found is None:
        return HIDDEN
    host = found["authority"].rpartition("@")[2]
    if "@" in found["rest"] or not re.fullmatch(
        r"[A-Za-z0-9._\-\[\]:%]*", host
    ):  # a password with a slash in it: what looks like the host is part of it
        host = HIDDEN
    return f"{found['scheme']}://{host}"


def secrets_of(url: str) -> set[str]:
    """The address itself and the parts of it that nobody may read."""
    found = _ADDRESS.fullmatch(url)
    if found is None:
        return {url}
    parts = {url, url.removeprefix(f"{found['scheme']}://")}
    user = found["authority"].rpartition("@")[0]
    parts |= {user, *user.split(":", 1)}
    if "@" in found["rest"]:
        parts |= {found["authority"], *found["authority"].split(":", 1)}
    if found["scheme"].lower() != "udp":  # whose query holds sizes and addresses
        rest = urlsplit(found["rest"])
        parts |= {found["rest"], found["rest"].strip("/"), rest.path.rstrip("/").rpartition("/")[2], rest.query}
        parts |= {value for _, value in parse_qsl(rest.query)}  # as they are meant, and as they are written:
        parts |= {pair.partition("=")[2] for pair in rest.query.split("&")}
    return {one for part in parts for one in (part, unquote(part)) if len(one) >= SHORTEST}


class Veil(logging.Formatter):
    """Log lines without the given secrets, whoever wrote them, and none longer than anybody reads."""

    def __init__(self, form: str, secrets: Iterable[str] = ()):
        super().__init__(form)
        self._secrets = sorted(secrets, key=len, reverse=True)  # a part of another one goes last

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = shortened(record.message, LONGEST)
        return super().formatMessage(record)


def shortened(text: str, most: int) -> str:
    """At most so many characters of something from outside, and how many there were."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def printable(text: str) -> str:
    """Text that can be encoded and is one line: lone surrogates and control characters are spelled out."""
    whole = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda c: c[0].encode("unicode_escape").decode(), whole)
