"""File systems that can less, imitated by what their kernels answer, and a real mount where this machine allows it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from everframe.engines.bundle import Bundle
from everframe.engines.errors import UserError
from everframe.engines.files import cache_place, check_replaceable, link_or_copy, new_folder, write_whole
from everframe.export.weightfile import scratch


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(tmp_path / "x", b"1")
    with new_folder(tmp_path / "folder", "y") as part:
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
        with pytest.raises(UserError, match="mount point"), new_folder(target, "x", replace=True):
            raise AssertionError("no work is done")
        with pytest.raises(UserError, match="mount point"):
            check_replaceable(target, "x")
        assert target.is_dir()
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", str(target)], check=False)


AS_NOBODY = """
import os, sys
from pathlib import Path
from everframe.engines.errors import UserError
from everframe.engines.files import check_replaceable
os.setgroups([])
os.setuid(65534)
for name in sys.argv[1:]:
    try:
        check_replaceable(Path(name), "x")
        print("may")
    except UserError as error:
        print(error)
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become somebody else")
def test_what_another_user_holds_is_noticed_before_the_work() -> None:
    """Write-protected; in a folder like /tmp, where each renames their own only; and what may be replaced."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        places = {kind: Path(name) / kind / "a.everframe" for kind in ("protected", "sticky", "mine", "shared")}
        modes = {
            "protected": (0o777, 0o555),
            "sticky": (0o1777, 0o777),
            "mine": (0o1777, 0o755),
            "shared": (0o777, 0o777),
        }
        Path(name).chmod(0o755)
        for kind, place in places.items():
            place.mkdir(parents=True)
            (place / "x").touch()
            for folder, mode in zip((place.parent, place), modes[kind], strict=True):
                folder.chmod(mode)
        try:
            os.chown(places["mine"], 65534, 65534)
        except OSError:
            pytest.skip("this container has no other user")
        found = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *map(str, places.values())], capture_output=True, text=True
        )
    told = dict(zip(places, found.stdout.splitlines(), strict=True))
    assert "is write-protected for this user" in told["protected"], found.stderr
    assert "each renames their own only" in told["sticky"]
    assert told["mine"] == told["shared"] == "may"


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


KILLED = """
import os, signal, sys
from pathlib import Path
from everframe.engines.files import new_folder
target, when = Path(sys.argv[1]), sys.argv[2]
os.getpid = lambda: 1  # as in a container
if when == "between":
    real, calls = Path.rename, []
    def rename(self, to):
        calls.append(to)
        if len(calls) == 2:
            os.kill(int(os.readlink("/proc/self")), signal.SIGKILL)
        return real(self, to)
    Path.rename = rename
with new_folder(target, None, replace=True) as part:
    (part / "x").write_text("new")
    if when == "at work":
        os.kill(int(os.readlink("/proc/self")), signal.SIGKILL)
    if when == "waits":
        print("ready", flush=True)
        sys.stdin.read()
"""


def killed(target: Path, when: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), when], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr


def aged(folder: Path) -> None:
    for file in folder.iterdir():
        os.utime(file, (1, 1), follow_symlinks=False)


def replaced(target: Path) -> str:
    with new_folder(target, "x", replace=True) as part:
        (part / "x").write_text("newest")
    return (target / "x").read_text()


def test_what_a_killed_run_left_is_no_hindrance_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # every run in a container is process 1
    target = tmp_path / "b.everframe"
    for _ in range(2):
        killed(target, "at work")
    assert len(list(tmp_path.iterdir())) == 2
    assert replaced(target) == "newest"  # whatever is young may be of somebody who has only just begun
    aged(tmp_path)
    (tmp_path / ".b.everframe.1.part").mkdir()  # as earlier versions left them
    (tmp_path / ".b.everframe.more.1-ab.part").mkdir()  # another bundle's
    os.utime(tmp_path / ".b.everframe.1.part", (1, 1))
    assert replaced(target) == "newest"
    assert {file.name for file in tmp_path.iterdir()} == {"b.everframe", ".b.everframe.more.1-ab.part"}


def test_what_a_living_run_makes_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "b.everframe"
    code = [sys.executable, "-c", KILLED, str(target), "waits"]
    with subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        aged(tmp_path)
        assert replaced(target) == "newest"
        assert len(list(tmp_path.iterdir())) == 2
        other.stdin.close()
        assert other.wait(60) == 0
    assert (target / "x").read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["b.everframe"]


def test_a_crash_between_the_two_renames(bundle_path: Path, tmp_path: Path) -> None:
    """The bundle of before is there again, for whoever asks for it first, by a link too. Who only reads removes nothing."""
    copy = Path(shutil.copytree(bundle_path, tmp_path / "b.everframe"))
    (link := tmp_path / "link").symlink_to(copy)
    for asked in (copy, link):
        killed(copy, "between")
        left = {file.name for file in tmp_path.iterdir()}
        assert not copy.exists()
        Bundle.open(asked)
        kept = {name for name in left if not name.endswith(".old")}
        assert {file.name for file in tmp_path.iterdir()} == {*kept, "b.everframe"}
    killed(copy, "between")
    aged(tmp_path)
    with pytest.raises(UserError, match="already exists"), new_folder(copy, "x"):
        raise AssertionError("no work is done")
    assert {file.name for file in tmp_path.iterdir()} == {"b.everframe", "link"}
    Bundle.open(copy)


def test_only_what_is_ours_is_replaced(tmp_path: Path) -> None:
    """Not a folder of other things, not one of bundles, not a file; but an empty one, and one of the kind."""
    films = tmp_path / "films"
    (films / "one.everframe").mkdir(parents=True)
    (films / "one.everframe" / "x").write_text("old")
    (file := tmp_path / "x").write_text("mine")
    for target in (films, file, Path(".")):
        with pytest.raises(UserError, match="holds no x and is not replaced"), new_folder(target, "x", replace=True):
            raise AssertionError("no work is done")
    assert (films / "one.everframe" / "x").read_text() == "old"
    assert file.read_text() == "mine"
    assert replaced(films / "one.everframe") == "newest"
    (tmp_path / "empty").mkdir()
    assert replaced(tmp_path / "empty") == "newest"


def test_what_another_process_writes_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "b"
    with pytest.raises(UserError, match="another process"), new_folder(target, "x"):
        replaced(target)
    assert (target / "x").read_text() == "newest"
    with pytest.raises(UserError, match="another process"), new_folder(target, "x", True, lambda: False) as late:
        (late / "x").write_text("late")
    assert (target / "x").read_text() == "newest"
    assert {file.name for file in tmp_path.iterdir()} == {"b"}


def test_a_cache_s_own_folder_may_be_somebody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that a container made as root in a folder of ours. Root may write anywhere, so here the system is asked by
    another name."""
    (engines := tmp_path / "engines").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_place(engines) == engines
    monkeypatch.setattr(os, "access", lambda place, how: Path(place) != engines)
    assert cache_place(engines).is_relative_to(tmp_path / "cache")
    assert cache_place(tmp_path / "other") == tmp_path / "other"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "b.everframe"
    link.symlink_to("disk/real.everframe")
    for _ in range(2):  # to nothing at first
        assert replaced(link) == "newest"
        assert link.is_symlink()
        assert (tmp_path / "disk" / "real.everframe" / "x").read_text() == "newest"
        assert len(list(tmp_path.iterdir())) + len(list((tmp_path / "disk").iterdir())) == 3


def test_an_error_names_the_file_that_it_is_of(tmp_path: Path) -> None:
    """Much is read while a bundle is written: only what is refused of the bundle itself is the bundle's."""
    target = tmp_path / "b.everframe"
    for _ in range(2):
        with pytest.raises(UserError, match=rf"^{tmp_path}/vae\.pth: No such file"), new_folder(target, "x"):
            (tmp_path / "vae.pth").read_bytes()
        with pytest.raises(UserError, match=rf"^{target}: cannot write: No such file"), new_folder(target, "x") as part:
            (part / "no" / "folder").write_bytes(b"")
        with pytest.raises(UserError, match=rf"^{target}: cannot write: No space"), new_folder(target, "x"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with pytest.raises(UserError, match=rf"^{target}: cannot write: No space"), new_folder(target, "x") as part:
            # as shutil.copyfile says it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "a"), None, str(part / "a"))
    with scratch(target) as weights:
        weights.append(b"weights")
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


def test_scratch_for_weights_blames_the_same(tmp_path: Path) -> None:
    target = tmp_path / "b.everframe"
    with pytest.raises(UserError, match=rf"^{tmp_path}/vae\.pth: No such file"), scratch(target):
        (tmp_path / "vae.pth").read_bytes()
    with pytest.raises(UserError, match=rf"^{target}: cannot write: No space"), scratch(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with scratch(target) as weights:
        weights.append(b"weights")
        assert len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())
