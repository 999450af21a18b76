"""Run a command as on a machine of the cluster: ``python -m tests.slurm.machine ROOT NAME COMMAND ARGUMENT...``, as root.

The command runs in its own mount namespace, with

* the machine NAME's own /var/tmp, which stands for the local disk of a node;
* an entry of the tests' ordinary user in the user database, without which Slurm runs nothing for it;
* its parent's end as its own, so that no daemon outlives tests that were killed;
* access for jobs of that user to the Python of the tests, which may lie in /root;
* with ``--bare``: a kernel that refuses new namespaces, as on some clusters' nodes;
* with ``--named``: its own host name, by which MPI tells nodes apart.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
import sys
from pathlib import Path

from tests import ordinary


def write_users(root: Path) -> None:
    """Make the user database of the cluster whose directory is ``root``."""
    number = ordinary.UID
    (root / "etc").mkdir()
    for name, line in (("passwd", f"forge-test:x:{number}:{number}::/nonexistent:/bin/sh"),
                       ("group", f"forge-test:x:{number}:")):
        (root / "etc" / name).write_text(Path("/etc", name).read_text().rstrip("\n") + f"\n{line}\n")


def prefix(root: Path, name: str, *, bare: bool = False, named: bool = False) -> list[str]:
    """The words that go before a command."""
    return [sys.executable, "-m", "tests.slurm.machine", *(["--bare"] if bare else []), *(["--named"] if named else []), str(root), name]


def refuse_namespaces() -> None:
    """Have unshare(2) fail with EPERM in this process and its descendants: seccomp(2)."""
    number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
    program = b"".join((
        struct.pack("=HBBI", 0x20, 0, 0, 0),  # load the number of the call
        struct.pack("=HBBI", 0x15, 0, 1, number),  # is it that one?
        struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | 1),  # SECCOMP_RET_ERRNO, EPERM
        struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    ))
    kept = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("@HP", 4, ctypes.addressof(kept))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, ctypes.c_ulong(2), filters, 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), "the filter was refused")


def main() -> None:
    """Enter the machine, then execute."""
    arguments = sys.argv[1:]
    options = {word for word in arguments[:2] if word.startswith("--")}
    root, name, *command = arguments[len(options):]
    parent = os.getppid()
    ordinary.die_with_parent()
    if os.getppid() != parent:
        sys.exit("too late")
    local = Path(root, "local", name)
    local.mkdir(parents=True, exist_ok=True)
    local.chmod(0o1777)
    ordinary.enter_mounts([(str(local), "/var/tmp")], [(f"{root}/etc", "/etc")],
                          [sys.base_prefix, sys.prefix, str(Path(__file__).parents[2])])
    if "--named" in options:
        ctypes.CDLL(None).unshare(0x04000000)  # CLONE_NEWUTS: unshare(2)
        socket.sethostname(name)
    if "--bare" in options:
        refuse_namespaces()
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
