"""Landlock on the real kernel: the calls that it forbids a process, and those that it allows."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import syscalls
from snakemake_executor_plugin_forge.sandbox import landlock
from snakemake_executor_plugin_forge.sandbox.landlock import Right, Ruleset, Scope

from .. import ordinary
from ..child import in_child
from ..conftest import ending

ABI = landlock.abi()
needs_scopes = pytest.mark.skipif(ABI < 6, reason="this kernel's Landlock has no scopes (ABI 6, Linux 6.12)")

users = pytest.mark.parametrize("as_user", [False, True], ids=["as_is", "ordinary"])


@pytest.fixture
def place() -> Iterator[Path]:
    """``in`` and ``in2`` are writable for the process, ``out`` is not, whoever the user is. Every user can reach the place."""
    place = Path("/tmp", f"forge-landlock-{os.getpid()}")
    shutil.rmtree(place, ignore_errors=True)
    for name in ("in/sub", "in2", "out/sub"):
        (place / name).mkdir(parents=True)
        (place / name / "file").write_text("old")
    (place / "single").write_text("old")
    if os.geteuid() == 0:
        ordinary.hand_over(place)
    yield place
    shutil.rmtree(place)


def _restrict(place: Path, version: int = ABI) -> None:
    allowed = landlock.rules(version, [f"{place}/in", f"{place}/in2", f"{place}/single", f"{place}/missing"])
    ruleset = Ruleset(version, allowed)
    syscalls.run([*ruleset.prepare_steps(), syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1), *ruleset.restrict_steps()])


def _errno(action: Callable[[], object]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or 0
    return 0


def _write(path: str, how: str = "w") -> Callable[[], object]:
    def write() -> None:
        with open(path, how) as file:
            file.write("new")

    return write


def _tried(place: Path) -> dict[str, int]:
    _restrict(place)
    os.chdir(place)
    actions: dict[str, Callable[[], object]] = {
        "write": _write("out/sub/file"),
        "append": _write("out/sub/file", "a"),
        "new": _write("out/new"),
        "mkdir": lambda: os.mkdir("out/dir"),
        "rmdir": lambda: os.rmdir("out/sub"),
        "unlink": lambda: os.unlink("out/sub/file"),
        "symlink": lambda: os.symlink("x", "out/link"),
        "fifo": lambda: os.mkfifo("out/fifo"),
        "rename there": lambda: os.rename("in/file", "out/moved") if os.path.exists("in/file") else os.rename("in/sub/file", "out/moved"),
        "rename from there": lambda: os.rename("out/sub/file", "in/moved"),
        "rename there inside": lambda: os.rename("out/sub/file", "out/moved"),
        "link to there": lambda: os.link("out/sub/file", "in/linked"),
        "mount": lambda: syscalls.mount("x", f"{place}/in", "tmpfs"),
        "device": lambda: os.mknod("in/device", 0o20600, os.makedev(1, 3)),
    }
    return {name: _errno(action) for name, action in actions.items()}


@users
def test_what_is_outside_cannot_be_changed(place: Path, as_user: bool) -> None:
    found = in_child(lambda: _tried(place), ordinary=as_user)
    assert found.pop("link to there") == errno.EXDEV
    assert found.pop("mount") == errno.EPERM
    assert found.pop("rename there") in (errno.EACCES, errno.EXDEV)
    assert found.pop("rename from there") in (errno.EACCES, errno.EXDEV)
    assert found.pop("rename there inside") in (errno.EACCES, errno.EXDEV)
    assert found.pop("device") in ((errno.EACCES, errno.EPERM) if as_user else (errno.EACCES,))
    assert set(found.values()) == {errno.EACCES}, found
    assert (place / "out/sub/file").read_text() == "old"
    assert sorted(os.listdir(place / "out")) == ["sub"]


def _worked(place: Path) -> None:
    _restrict(place)
    os.chdir(place)
    Path("in/new").write_text("new")
    Path("single").write_text("new")  # a single file that is writable
    os.mkdir("in/dir")
    os.rename("in/new", "in2/new")
    os.rename("in/dir", "in2/dir")
    os.link("in2/new", "in/hard")
    os.symlink("new", "in/soft")
    os.mkfifo("in/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("in/socket")
    os.truncate("in2/new", 1)
    shutil.rmtree("in/sub")
    subprocess.run(["mv", "in2/new", "in/moved"], check=True)
    assert Path("in/moved").read_text() == "n"
    assert Path("out/sub/file").read_text() == "old"
    assert os.listdir("out/sub") == ["file"]
    for device in ("/dev/null", "/dev/full", "/dev/zero"):
        os.close(os.open(device, os.O_RDWR))
    subprocess.run(["bash", "-c", "echo x > /dev/null; echo x | tee /dev/stderr >&2; echo x > /dev/stdout; cat <(echo y)"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    subprocess.run(["bash", "-c", "set -e; echo x > /dev/stderr; (echo x > /dev/stdout) | cat; echo n > /proc/self/comm"],
                   check=True, capture_output=True)


@users
def test_what_is_inside_goes_on_working(place: Path, as_user: bool) -> None:
    in_child(lambda: _worked(place), ordinary=as_user)
    assert (place / "single").read_text() == "new"


def test_attributes_are_not_covered(place: Path) -> None:
    """Read-only mounts protect attributes, as the module says. If Landlock learns it, that text must change."""

    def attributes() -> list[int]:
        _restrict(place)
        file = f"{place}/out/sub/file"
        return [_errno(lambda: os.chmod(file, 0o600)), _errno(lambda: os.utime(file, (1, 1))),
                _errno(lambda: os.truncate(file, 1))]

    chmod, utime, truncate = in_child(attributes, ordinary=True)
    assert (chmod, utime) == (0, 0)
    assert truncate == (errno.EACCES if ABI >= 3 else 0)


@pytest.mark.parametrize("version", range(landlock._LEAST_ABI, ABI + 1))
def test_the_rules_of_every_older_abi_hold_too(place: Path, version: int) -> None:
    """Forge asks a newer kernel for no more than the older ABI has."""

    def old() -> list[int]:
        _restrict(place, version)
        os.chdir(place)
        return [_errno(_write("out/sub/file")), _errno(_write("in/new")),
                _errno(lambda: os.rename("in/new", "in2/new")), _errno(lambda: os.truncate("out/sub/file", 2))]

    assert in_child(old, ordinary=True) == [errno.EACCES, 0, 0, errno.EACCES if version >= 3 else 0]


def test_a_path_that_is_not_there(place: Path) -> None:
    ruleset = Ruleset(ABI, landlock.rules(ABI, [f"{place}/missing", f"{place}/single/missing"]))
    assert in_child(lambda: _errno(lambda: syscalls.run(ruleset.prepare_steps()))) == 0


def test_prepared_ahead_and_restricted_later(place: Path) -> None:
    """Between the two parts nothing is forbidden, and the names may change: the rules belong to the directories."""

    def job() -> list[int]:
        ruleset = Ruleset(ABI, landlock.rules(ABI, [f"{place}/in"]))
        syscalls.run(ruleset.prepare_steps())
        free = _errno(_write(f"{place}/out/new"))
        os.rename(f"{place}/in", f"{place}/other")
        os.mkdir(f"{place}/in")
        before = len(os.listdir("/proc/self/fd"))
        syscalls.run([syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1), *ruleset.restrict_steps()])
        left = before - len(os.listdir("/proc/self/fd"))
        return [free, _errno(_write(f"{place}/other/x")), _errno(_write(f"{place}/in/x")), left]

    assert in_child(job, ordinary=True) == [0, 0, errno.EACCES, 1]


@needs_scopes
@users
def test_abstract_sockets_of_others_cannot_be_reached(place: Path, as_user: bool) -> None:
    name = f"\0forge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()

        def job() -> list[int]:
            _restrict(place)
            own = socket.socket(socket.AF_UNIX)
            own.bind(name + "-own")
            own.listen()
            with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
                return [_errno(lambda: one.connect(name)), _errno(lambda: other.connect(name + "-own"))]

        assert in_child(job, ordinary=as_user) == [errno.EPERM, 0]


@needs_scopes
def test_processes_of_others_cannot_be_signalled(place: Path) -> None:
    before = [] if os.geteuid() else ["setpriv", "--reuid", str(ordinary.UID), "--regid", str(ordinary.UID), "--clear-groups"]
    sleeper = subprocess.Popen([*before, "sleep", "60"])
    with ending(sleeper):
        def job() -> list[int]:
            allowed = _errno(lambda: os.kill(sleeper.pid, 0))
            _restrict(place)
            own = subprocess.Popen(["sleep", "60"])
            return [allowed, _errno(lambda: os.kill(sleeper.pid, signal.SIGKILL)), _errno(own.kill), own.wait()]

        while "sleep" not in Path(f"/proc/{sleeper.pid}/comm").read_text():
            pass
        assert in_child(job, ordinary=True) == [0, errno.EPERM, 0, -signal.SIGKILL]
        assert sleeper.poll() is None


RIGHTS = {0: 0, 1: 0x1FF2, 2: 0x3FF2, 3: 0x7FF2, 4: 0x7FF2, 5: 0x7FF2, 6: 0x7FF2, 7: 0x7FF2, 8: 0x7FF2}


@pytest.mark.parametrize("version", sorted(RIGHTS))
def test_what_each_abi_can_forbid(version: int) -> None:
    assert landlock.rights(version) == RIGHTS[version]
    assert landlock.scopes(version) == (3 if version >= 6 else 0)
    assert bool(landlock.refusal(version)) == (version < 2)
    for rule in landlock.rules(version, ["/w"]):
        assert rule.rights & ~landlock.rights(version) == 0
        assert not rule.rights & (Right.MAKE_CHAR | Right.MAKE_BLOCK)


def test_this_host_has_landlock() -> None:
    assert landlock.refusal(ABI) == ""
    assert Scope.SIGNAL in landlock.scopes(ABI) or ABI < 6


def test_programs_work(place: Path) -> None:
    """A process pool, a pseudo terminal and a program on it work under the rules."""
    code = (
        "import concurrent.futures as c, pty, subprocess, sys, tempfile\n"
        "with c.ProcessPoolExecutor(2) as e: assert sum(e.map(abs, range(5))) == 10\n"
        "master, slave = pty.openpty()\n"
        "subprocess.run(['tty'], stdin=slave, stdout=subprocess.DEVNULL, check=True)\n"
    )

    def job() -> int:
        ruleset = Ruleset(ABI, landlock.rules(ABI, [f"{place}/in", "/dev/shm"]))
        syscalls.run([*ruleset.prepare_steps(), syscalls.prctl_step(syscalls.PR_SET_NO_NEW_PRIVS, 1), *ruleset.restrict_steps()])
        return subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | {"TMPDIR": f"{place}/in"}).returncode

    assert in_child(job) == 0
