"""The one error path of all commands."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend, said in one line: what is wrong, what was found, what was expected.

    Commands print it without a traceback and exit with code 2.
    """
