"""What was ordered last, on disk: read again by the next life, as long as the configuration that it started from stays."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from ....engines.bundle import first_problem
from ....engines.files import reason, remove_parts, write_whole

log = logging.getLogger(__name__)

Kept = TypeVar("Kept", bound=BaseModel)  # with a field `config`: the digest


def digest(text: str) -> str:
    """Of what the configuration says: another one begins anew."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_kept(file: Path, kept: BaseModel) -> None:
    """What was said, and not what that leaves to the machine or to a version of ours, as the time zone: a box that gets
    another zone is asked for it anew. Raises UserError where it cannot be written."""
    write_whole(file, kept.model_dump_json(indent=1, exclude_unset=True).encode() + b"\n")


def read_kept(file: Path, kind: type[Kept], config: str | None = None) -> Kept | None:
    """None where there is nothing, or nothing of this configuration (None: of any). What cannot be used is told in the
    log."""
    remove_parts(file.parent, f"{file.name}.")
    try:
        kept = kind.model_validate_json(file.read_bytes())
        if config in (None, kept.config):  # type: ignore[attr-defined]
            return kept
        log.warning("%s: ordered under another configuration; starting from the present one", file)
        return None
    except FileNotFoundError:
        return None
    except ValidationError as error:
        why = first_problem(error)
    except OSError as error:
        why = reason(error)
    log.warning("%s: not usable, starting from the configuration: %s", file, why)
    return None
