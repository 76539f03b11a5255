"""How the command line speaks. This is the one place that prints for people: whatever comes from outside (paths, prompts,
names, messages of libraries) is shown as it is, because nothing here reads markup.
"""

from __future__ import annotations

import json
import math
import os
import signal
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ...engines.errors import UserError
from ...engines.progress import Report
from ...engines.text import DIRECTIONS, first_line

_errors = Console(stderr=True)


def visible(text: str) -> str:
    """One line without control characters: a name must neither break a message nor command the terminal."""
    return "".join(_shown(c) for c in text)


def _shown(c: str) -> str:
    if unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") and c not in DIRECTIONS:
        return c
    return " " if c.isspace() else f"\\x{ord(c):02x}"


def say(text: str) -> None:
    """A message on standard error, neither wrapped nor coloured, so that a path in it can be copied."""
    _errors.print(Text(visible(text)), soft_wrap=True)


def warn(text: str, mark: str = "warning") -> None:
    """A message that somebody should act on."""
    _errors.print(Text.assemble((f"{mark}:", "bold red"), f" {visible(text)}"), soft_wrap=True)


def fail(text: str) -> None:
    """The one line of a command that cannot do what was asked."""
    warn(text, "error")


def tell(text: str) -> None:
    """A line of the answer, on standard output."""
    print(visible(text), flush=True)


def tell_json(record: Any) -> None:
    """The answer for programs, on standard output: what is not ASCII is escaped, so nothing in it commands a terminal. A
    number that JSON does not have is null."""
    print(json.dumps(_finite(record), indent=1, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_quality(quality: dict[str, Any]) -> None:
    """Print the figures of a comparison; exit code 1 when the gate is not passed."""
    for name, value in quality.items():
        say(f"{name:16} {value}")
    if not quality["passed"]:
        raise typer.Exit(1)


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", left: Sequence[str] = ()
) -> None:
    """A table on standard output; the first column and those in `left` are aligned to the left."""
    out = Console()
    if not out.is_terminal:
        out = Console(width=120)  # a file or a pipe has no width of its own
    table = Table(title=Text(visible(title)) if title else None)
    for i, column in enumerate(columns):
        table.add_column(
            Text(visible(column)), justify="left" if i == 0 or column in left else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    out.print(table)


@contextmanager
def reporting() -> Iterator[Report]:
    """Messages of long work as lines, its steps as a bar that goes when it is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_errors, transient=True, disable=not _errors.is_terminal) as bars:
        shown: dict[str, Any] = {}

        def step(what: str, done: int, total: int | None) -> None:
            if what not in shown:
                for task in shown.values():
                    bars.remove_task(task)
                shown.clear()
                shown[what] = bars.add_task(visible(what), total=total)
            bars.update(shown[what], completed=done, total=total)

        yield Report(say, step)


@contextmanager
def status(words: str) -> Iterator[Any]:
    """A line that is replaced by `update(text)`, on a terminal."""
    with _errors.status(Text(words)) as shown:
        yield lambda text: shown.update(Text(visible(text)))


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn a missing optional package into one line that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"this command needs {error.name}: pip install 'everframe[{extra}]'") from None
    except ImportError as error:  # it is installed, and something of the system is not
        raise UserError(f"this command cannot load {error.name or 'a library'}: {first_line(error)}") from None


def let_go(*streams: TextIO) -> None:
    """Whoever read them has gone: keep Python from complaining about it at exit."""
    for stream in streams:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class StopSignals:
    """Turns SIGINT and SIGTERM into a wish to stop after the present chunk, so that outputs are closed properly.

    A second signal interrupts at once.
    """

    requested = False

    def __enter__(self) -> StopSignals:
        self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _handle(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
