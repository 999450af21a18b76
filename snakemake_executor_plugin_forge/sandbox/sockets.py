"""Ways out of a sandbox that lead through a service of the host: hidden from all jobs, whatever the file policy.

A message bus starts processes outside (``systemd-run``), a container service does so as root, an agent signs with the
user's keys, and a terminal multiplexer types into another session.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from . import syscalls

_DIRECTORIES = (
    "/run/dbus",  # the system's message bus: dbus-daemon(1)
    "/run/user",  # buses, agents and services of users: $XDG_RUNTIME_DIR of the XDG Base Directory Specification
    "/run/podman", "/run/containerd", "/run/crio", "/run/libvirt", "/run/docker",
    "/run/screen", "/run/uscreens",
)  # fmt: skip
_SOCKETS = (
    "/run/docker.sock", "/run/systemd/private", "/run/snapd.socket",
    "/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket", "/var/lib/incus/unix.socket",
)  # fmt: skip
VARIABLES = (
    "SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS",
    "XDG_RUNTIME_DIR", "DOCKER_HOST", "CONTAINER_HOST", "TMUX", "STY",
)  # fmt: skip
"""Variables that say where these are."""


def hide(environment: Mapping[str, str]) -> None:
    """In a supervisor's mount namespace: cover what there is of them with nothing.

    Not what the working directory lies in: it has to be seen.

    Args:
        environment: Snakemake's, which may name sockets in other places.

    Raises:
        OSError: the call that is refused.

    """
    named = [_socket_in(environment.get(name, "")) for name in VARIABLES]
    here = os.getcwd() + "/"
    for path in sorted({os.path.realpath(p) for p in (*_DIRECTORIES, *_SOCKETS, *named) if p}):
        mode = _mode(path)
        if stat.S_ISDIR(mode) and path in _DIRECTORIES and not here.startswith(path + "/"):
            flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
            syscalls.mount("forge-hidden", path, "tmpfs", flags, "mode=755,size=4k")
        elif stat.S_ISSOCK(mode):
            syscalls.bind(os.devnull, path, recursive=False)


def _socket_in(value: str) -> str:
    """The path in ``/run/x``, ``unix:///run/x`` or ``unix:path=/run/x,guid=…``; empty if there is none."""
    start = value.find("/")
    path = value[start:].replace(";", ",").split(",", maxsplit=1)[0] if start >= 0 else ""
    return "/" + path.lstrip("/") if path else ""


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0
