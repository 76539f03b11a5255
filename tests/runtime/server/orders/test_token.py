"""The token file: whole and for its owner, or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from everframe.engines.errors import UserError
from everframe.runtime.server.orders.control import read_token


def test_it_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    token = read_token(tmp_path, None)
    assert read_token(tmp_path, None) == token
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["token"]
    assert read_token(tmp_path, "a-token-of-the-configuration") == "a-token-of-the-configuration"


def test_what_a_power_cut_left_is_no_token(tmp_path: Path) -> None:
    (tmp_path / "token").touch(0o644)
    token = read_token(tmp_path, None)
    assert len(token) >= 16
    assert (tmp_path / "token").read_text().strip() == token
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next start, with room again, makes one."""

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="token: cannot write: No space left"):
            read_token(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    assert read_token(tmp_path, None)
