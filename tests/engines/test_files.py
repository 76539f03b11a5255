"""File systems that can less, imitated by what their kernels answer, and a real mount where this machine allows it."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from pathlib import Path

import pytest

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.files import cache_place, check_replaceable, link_or_copy, new_folder, write_whole


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "x", b"1")
    with new_folder(tmp_path / "folder") as part:
        (part / "y").write_bytes(b"2")
    assert (tmp_path / "x").read_bytes() == b"1"
    assert (tmp_path / "folder" / "y").read_bytes() == b"2"


def test_a_full_disk_is_not_forgiven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(UserError, match="No space left"):
        write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_disk_that_became_read_only(tmp_path: Path) -> None:
    """As a worn card is mounted anew by the kernel: there even taking away what is not there is refused."""
    place = tmp_path / "card"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(UserError, match=r"cannot write: .*[Rr]ead-only"):
            write_whole(place / "x", b"new")
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "a").write_bytes(b"weights")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"weights"


def test_a_link_to_a_link_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "l").symlink_to(tmp_path / "a")
    link_or_copy(tmp_path / "l", tmp_path / "b")
    assert not (tmp_path / "b").is_symlink()
    assert (tmp_path / "b").read_bytes() == b"weights"


def test_links_that_leave_a_bundle(bundle_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "x.everframe"
    copy.mkdir()
    files = [file for file in bundle_path.iterdir() if file.is_file()]
    for file in files:
        (copy / file.name).symlink_to(file)
    with pytest.raises(UserError, match="leads out of the bundle"):
        Bundle.open(copy)
    inside = tmp_path / "y.everframe"
    inside.mkdir()
    for file in files:
        (inside / f"real-{file.name}").write_bytes(file.read_bytes())
        (inside / file.name).symlink_to(f"real-{file.name}")
    Bundle.open(inside)
    (tmp_path / "z.everframe").symlink_to(bundle_path)  # the folder itself may be a link
    Bundle.open(tmp_path / "z.everframe")


def test_a_mount_point_is_noticed_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "mounted.everframe"
    target.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "none", str(target)], capture_output=True).returncode
    ):
        pytest.skip("cannot mount here")
    try:
        with pytest.raises(UserError, match="mount point"), new_folder(target, replace=True):
            raise AssertionError("no work is done")
        with pytest.raises(UserError, match="mount point"):
            check_replaceable(target)
        assert target.is_dir()
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", str(target)], check=False)


def test_a_cache_of_a_bundle_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != theirs and real(path, mode)
    )  # root may write all
    assert cache_place(ours / "x.cache") == ours / "x.cache"
    place = cache_place(theirs / "x.cache")
    assert place.parent.parent == tmp_path / "cache" / "everframe"
    assert place.name == "x.cache"
    assert cache_place(theirs / "y.cache").parent == place.parent
