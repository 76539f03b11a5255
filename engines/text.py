"""Text from outside: files that editors write in their own ways, and the form in which two texts count as the same."""

from __future__ import annotations

import html
import re
import unicodedata
from pathlib import Path

from .errors import UserError
from .files import reason

DIRECTIONS = (
    "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # marks that show letters in another order
)
# Byte order mark, zero-width space, word joiner, soft hyphen, marks of direction: two texts that differ in these look alike.
INVISIBLE = "\ufeff\u200b\u2060\u00ad" + DIRECTIONS


def read_text(file: Path) -> str:
    """A UTF-8 file, with or without a byte order mark, its line ends as \\n. Raises UserError."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot read: {reason(error)}") from None
    except UnicodeDecodeError as error:
        found = "UTF-16" if file.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte {error.start} is not"
        raise UserError(f"{file}: expected UTF-8, found {found}" + ("" if found == "UTF-16" else " UTF-8")) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def tidy(text: str) -> str:
    """One line: HTML's names of characters resolved, as the models' own pipelines do; composed characters (NFC), every run
    of whitespace one blank, nothing invisible. What is tidy stays as it is: who judges a text sees what will be shown.

    Line and paragraph separators inside a text (U+2028, U+0085, …) are whitespace, not line ends.
    """
    while True:
        plain = unicodedata.normalize("NFC", html.unescape(text)).translate(dict.fromkeys(map(ord, INVISIBLE)))
        plain = re.sub(r"\s+", " ", plain).strip()
        if plain == text:
            return text
        text = plain


def key(text: str) -> str:
    """Texts with equal keys are the same prompt: case, blanks and the form of accents do not matter."""
    return unicodedata.normalize("NFC", tidy(text).casefold())


def quoted(text: str, longest: int = 80) -> str:
    """A text in a message: quoted, and shortened in its middle where it is long."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} … {text[-longest // 4 :]}"
    return repr(text)


def first_line(error: BaseException) -> str:
    """What an exception of a library says, in one line; its name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def few(names: list[str], most: int = 8) -> str:
    """A list in a message: the first few, and how many more."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
