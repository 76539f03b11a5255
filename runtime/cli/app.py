"""The `everframe` command. Every command ends in one of two ways: 0, or one clear line on standard error and 2.

(1 says that something was measured and did not hold: a soak out of bounds, a gate not passed.)
"""

from __future__ import annotations

import contextlib
import sys
from importlib import import_module
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ...engines.errors import RunError, UserError
from ...engines.files import reason
from .commands import COMMANDS
from .console import fail, let_go
from .numbers import guard

BROKEN_PIPE = 141  # 128 and the number of SIGPIPE


class Rooms(TyperGroup):
    """Shows the commands of all rooms, and imports the room of the one that is called."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=place.line) for name, place in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, guard(load(str(name))), rest


def load(name: str) -> Any:
    """The command itself."""
    house = __name__.split(".")[0]
    commands = import_module(COMMANDS[name].module, house).app
    return typer.main.get_group(commands).commands[name]


app = typer.Typer(cls=Rooms, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"everframe {version('everframe')}")
        raise typer.Exit


@app.callback()
def everframe(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Endless real-time video from few-step causal diffusion transformers, without PyTorch at run time."""


def run() -> None:
    """The command line of this process."""
    for stream in (sys.stdout, sys.stderr):  # a locale that lacks a prompt's letters must not end the command
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(started())
    except (UserError, RunError) as error:
        fail(str(error))
    except MemoryError:
        fail("out of memory")
    except BrokenPipeError:
        # A reader went away, as with `| head`; keep Python from complaining about it at exit. What the command would have
        # said is not known, so it ends as one that the signal of a broken pipe has ended.
        let_go(sys.stdout, sys.stderr)
        sys.exit(BROKEN_PIPE)
    except OSError as error:  # a disk that is full, a file that is gone: what no command expects but every one can meet
        fail(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
        with contextlib.suppress(OSError):
            sys.stdout.close()  # its rest cannot be written either
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        usage(error)
    sys.exit(2)


def started() -> int:
    """The command; its exit code. Typer and Rich make an exit with 1, a verdict's, of a reader that has gone away."""
    try:
        return app(standalone_mode=False) or 0
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            raise BrokenPipeError from None
        raise


def usage(error: Exception) -> None:
    """What Typer raises for words that are no command: its classes have moved between versions, their names have not."""
    kind = type(error).__name__
    if kind == "Abort":  # what it makes of Ctrl-C
        sys.exit(130)
    if kind == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
    elif hasattr(error, "format_message"):
        path = getattr(getattr(error, "ctx", None), "command_path", "everframe")
        fail(f"{error.format_message().rstrip('.')} (see {path} --help)")  # type: ignore[attr-defined]
    else:
        raise error
