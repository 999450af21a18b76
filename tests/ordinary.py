"""Runs a command as an ordinary user, from a test that root runs: with and without namespaces.

The user needs no entry in /etc/passwd. The Python of the tests may lie in a directory that only root can enter
(/root): in a new mount namespace, an empty directory that everybody can enter covers each closed one on the way to it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Each process that runs tests has its own number, as tests look for leftovers of this user; child processes inherit it.
UID = int(os.environ.setdefault(f"FORGE_TEST_UID_{os.environ.get('PYTEST_XDIST_WORKER', '')}", str(54321 + os.getpid() % 9000)))
NAME = "forge-test"
GROUPS = (64001, 64002)
"""More groups of the user, with ``--groups``."""
_SUBORDINATE, _COUNT = 6_500_000, 65536
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_PR_SET_PDEATHSIG = 1
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MAX_PROCESSES = 2000  # of the user: a fork bomb that escapes must not take down the host

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{arguments}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def _open_doors(paths: Sequence[str]) -> None:
    """Let everybody through to ``paths``: cover the first closed directory on the way to each."""
    behind: dict[str, list[tuple[str, int]]] = {}
    for target in sorted(map(os.path.realpath, paths)):  # a directory before its contents
        # Each start of pytest closes its directory in /tmp to others, even while the command runs.
        parents = reversed(Path(target).parents)
        closed = next((str(p) for p in parents if not p.stat().st_mode & 0o001 or p.name.startswith("pytest-of-")), None)
        if closed is not None:
            behind.setdefault(closed, []).append((target, os.open(target, os.O_PATH)))
    for closed, found in behind.items():
        _mount("none", closed, "tmpfs", 0, "mode=755")
        for target, fd in found:
            os.makedirs(target, mode=0o755, exist_ok=True)
            _mount(f"/proc/self/fd/{fd}", target, "", _MS_BIND | _MS_REC)
            os.close(fd)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, also after an execve(2): prctl(2)."""
    _call("prctl", ctypes.c_int(_PR_SET_PDEATHSIG), ctypes.c_ulong(signal.SIGKILL))


def enter_mounts(bound: Sequence[tuple[str, str]], laid: Sequence[tuple[str, str]], paths: Sequence[str]) -> None:
    """Enter a new mount namespace, in which everybody can reach ``paths``.

    Args:
        bound: source and target of each bind mount.
        laid: a directory, and the target whose files of the same names it replaces. It is an overlay, not a mount on each
            file: a package that is installed meanwhile may replace /etc/passwd, and the kernel removes a mount on a
            replaced file in every mount namespace (Linux: __detach_mounts() in fs/namespace.c).

    """
    _call("unshare", _CLONE_NEWNS)
    _mount("none", "/", "", _MS_PRIVATE | _MS_REC)
    for source, target in bound:
        _mount(source, target, "", _MS_BIND)
    for source, target in laid:
        _mount("none", target, "overlay", 0, f"lowerdir={source}:{target}")
    _open_doors(paths)


def _as_user_with_a_name(directory: str) -> list[tuple[str, str]]:
    """Write files for /etc with a line for the user, and one for its subordinate numbers."""
    lines = {
        "passwd": f"{NAME}:x:{UID}:{UID}::{directory}:/bin/bash",
        "group": f"{NAME}:x:{UID}:",
        "subuid": f"{NAME}:{_SUBORDINATE}:{_COUNT}",
        "subgid": f"{NAME}:{_SUBORDINATE}:{_COUNT}",
    }
    place = Path(directory, ".etc")
    place.mkdir(exist_ok=True)
    for name, line in lines.items():
        present = Path("/etc", name)
        (place / name).write_text(f"{present.read_text() if present.exists() else ''}{line}\n")
    return [(str(place), "/etc")]


def _map_all_users() -> None:
    """Enter a user namespace that maps every user to itself; a process outside writes the map."""
    inside_read, inside_write = os.pipe()
    mapped_read, mapped_write = os.pipe()
    parent = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.read(inside_read, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{parent}/{name}").write_text("0 0 65536")
        os.write(mapped_write, b"x")
        os._exit(0)
    _call("unshare", _CLONE_NEWUSER)
    os.write(inside_write, b"x")
    os.read(mapped_read, 1)
    os.waitpid(helper, 0)


def main() -> None:
    """``python -m tests.ordinary [--no-namespaces] [--named] [--groups] COMMAND ARGUMENT...``, run by root."""
    options = sys.argv[1:]
    no_namespaces, named, groups = (options[0] == word and bool(options.pop(0)) for word in ("--no-namespaces", "--named", "--groups"))
    directory = os.getcwd()
    enter_mounts([], _as_user_with_a_name(directory) if named else [], [sys.base_prefix, sys.prefix, str(Path(__file__).parents[1]), directory])
    if no_namespaces:
        _map_all_users()
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.setgroups(GROUPS if groups else [])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    resource.setrlimit(resource.RLIMIT_NPROC, (_MAX_PROCESSES, _MAX_PROCESSES))
    os.chdir(directory)
    os.environ.pop("XDG_CACHE_HOME", None)  # a directory of root
    os.environ |= {"HOME": directory, "USER": NAME, "LOGNAME": NAME, "PYTHONDONTWRITEBYTECODE": "1"}
    os.execvp(options[0], options)


def prefix(*, namespaces: bool = True, named: bool = False, groups: bool = False) -> list[str]:
    """The words that go before a command so that an ordinary user runs it.

    Args:
        named: with a name and subordinate numbers (subuid(5)), as a rootless podman needs.
        groups: also a member of :data:`GROUPS`.

    """
    chosen = {"--no-namespaces": not namespaces, "--named": named, "--groups": groups}
    options = [word for word, wanted in chosen.items() if wanted]
    return [sys.executable, "-m", "tests.ordinary", *options]


@contextmanager
def reachable() -> Iterator[Path]:
    """Make a directory that the user can reach without a mount namespace: pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="forge-test-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory).resolve()


def hand_over(*places: Path) -> None:
    """Give directories of the test to that user; :func:`main` lets the user reach them."""
    subprocess.run(["chown", "-Rh", f"{UID}:{UID}", *places], check=True)


def given_to(user: str, *places: Path, groups: bool = False) -> list[str]:
    """Give places to ``user``, "root" or "user"; return the words before its command, none if that user runs the tests."""
    if user != "user" or os.geteuid() != 0:
        return []
    hand_over(*places)
    return prefix(groups=groups)


if __name__ == "__main__":
    main()
