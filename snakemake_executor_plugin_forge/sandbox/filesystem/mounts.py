"""The mount namespace of a supervisor, which its jobs copy: a small /dev, and no sockets of the host's services."""

from __future__ import annotations

import _thread
import os
import re
import select
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ...kernel import procfs, syscalls
from ...kernel.syscalls import Step

# Device nodes that an analysis may need. All others (above all disks) are missing: a root job could write to them
# past all mounts. Of GPUs, only the nodes that control all of them are here: see _GPU_STORE.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "nvidiactl", "nvidia-modeset", "kfd")
_DEVICE_PREFIXES = ("nvidia",)
_DEVICE_DIRECTORIES = ("accel", "infiniband", "nvidia-caps")
_RDMA = "/dev/infiniband"
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_SHM = "/dev/shm"  # noqa: S108
# In a supervisor: a mount with the GPUs of the run. A job binds its own GPUs, then unmounts the store.
_GPU_STORE = ".forge-gpus"
_KEPT_STORE = ".forge-home"
_GPU_NODE = re.compile(r"/dev/(nvidia|dri/renderD)\d+")


def is_gpu(node: str) -> bool:
    """Whether a path is the device node of a single GPU.

    ``nvidia0``: NVIDIA's driver, README, chapter "How do I create the device nodes"; ``renderD128``: drm(7).
    """
    return _GPU_NODE.fullmatch(node) is not None


def enter_namespace(kind: str) -> None:
    """Move this (single-threaded) process into a new mount namespace, from which nothing spreads to the host.

    An ordinary user gets it in a user namespace in which only the user exists: user_namespaces(7).

    Args:
        kind: "root" or "user".
    """
    if kind == "root":
        syscalls.unshare(syscalls.CLONE_NEWNS)
    else:
        uid, gid = os.geteuid(), os.getegid()
        # An IPC namespace, because it can come back to that from a job's: kernel/shared_memory.py.
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC)
        procfs.write("/proc/self/setgroups", "deny")
        procfs.write("/proc/self/uid_map", f"{uid} {uid} 1")
        procfs.write("/proc/self/gid_map", f"{gid} {gid} 1")
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)


def prepare_base(device_dir: str, gpus: tuple[str, ...], console: str | None = None) -> None:
    """Prepare a new mount namespace: no sockets of its services, a small /dev, and no device nodes anywhere else.

    Args:
        device_dir: an existing directory on which the new /dev is assembled. A directory made for this would stay if
            the process were killed meanwhile.
        gpus: device nodes that jobs may get.
        console: a terminal that jobs see as /dev/console: ttyname(3) finds it there.
    """
    hide(os.environ)
    _private_dev(device_dir, gpus, console)


def _private_dev(device_dir: str, gpus: tuple[str, ...], console: str | None) -> None:
    shown = []
    syscalls.mount("forge-dev", device_dir, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=755,size=64k")
    for name in sorted(os.listdir("/dev")):
        source, target = f"/dev/{name}", f"{device_dir}/{name}"
        if source in gpus or is_gpu(source):
            continue
        if name in _DEVICE_DIRECTORIES and os.path.isdir(source):
            os.mkdir(target)
            syscalls.bind(source, target)
            shown.append(target)
        elif (name in _DEVICES or name.startswith(_DEVICE_PREFIXES)) and stat.S_ISCHR(os.stat(source).st_mode):
            shown.append(_show(source, target))
    if console is not None:
        shown.append(_show(console, f"{device_dir}/console"))
    if gpus:
        shown += _store_gpus(f"{device_dir}/{_GPU_STORE}", gpus)
    if syscalls.has_mount_setattr():
        syscalls.run([syscalls.devices_step("/", recursive=True, allowed=False)])
        syscalls.run(syscalls.devices_step(path, recursive=os.path.isdir(path), allowed=True) for path in shown)
    os.mkdir(f"{device_dir}/pts")  # each job mounts its own
    for name, text in _LINKS.items():
        os.symlink(text, f"{device_dir}/{name}")
    os.mkdir(f"{device_dir}/shm", 0o1777)
    if os.path.isdir(_SHM):  # jobs must see parts of it, and cover the rest
        syscalls.bind(_SHM, f"{device_dir}/shm")
    syscalls.mount(device_dir, "/dev", "", syscalls.MS_MOVE)


def _show(source: str, target: str) -> str:
    make_mount_point(target, is_directory=False)
    syscalls.bind(source, target, recursive=False)
    return target


def _store_gpus(store: str, gpus: tuple[str, ...]) -> list[str]:
    os.mkdir(store, 0o700)
    syscalls.mount("forge-gpus", store, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=700,size=64k")
    return [_show(node, store + node) for node in gpus if os.path.exists(node)]  # a driver may take one away


def place_kept(kept: Iterable[int]) -> tuple[str, ...]:
    """Attach the overlays of the workflow's home in a supervisor's /dev; return the places. A job binds, then unmounts.

    Args:
        kept: see :meth:`.kept.Connection.mounts`; they are closed.
    """
    found = []
    for number, fd in enumerate(kept):
        found.append(f"/dev/{_KEPT_STORE}/{number}")
        os.makedirs(found[-1], mode=0o700)
        syscalls.attach_mount(fd, found[-1])
        os.close(fd)
    return tuple(found)


def place_gpus(old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """Make mount points for a job's GPUs in the supervisor's /dev, and remove those of the last job's.

    Only the job sees what is mounted on them.

    Raises:
        OSError: if they cannot be made.
    """
    for node in old:
        if node not in new:
            os.unlink(node)
    for node in new:
        if node not in old:
            with suppress(FileNotFoundError):
                os.unlink(node)  # a job of root may have made one
            make_mount_point(node, is_directory=False)


def gpu_steps(gpus: tuple[str, ...]) -> list[Step]:
    """Steps that give a job its own GPUs and hide all others, where the run has GPUs."""
    store = f"/dev/{_GPU_STORE}"
    return [
        *(syscalls.bind_step(store + node, node, recursive=False) for node in gpus),
        syscalls.unmount_step(store),
    ]


def offline_steps() -> list[Step]:
    """Steps that hide what no network namespace keeps in: InfiniBand's adapters, and services that ask the network."""
    sockets = [path for path in map(os.path.realpath, _NAME_SERVICES) if stat.S_ISSOCK(mode_of(path))]
    found = [syscalls.bind_step(os.devnull, path, recursive=False) for path in sockets]
    if os.path.isdir(_RDMA):
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        found.append(syscalls.mount_step("forge-hidden", _RDMA, "tmpfs", flags, "mode=755,size=4k"))
    return found


def in_user_namespace() -> bool:
    """Whether this process is in a user namespace, where even root writes no trusted attributes: xattr(7)."""
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def make_link(target: str, path: str) -> None:
    """Make a symbolic link, and the directories around it, unless there is something."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with suppress(FileExistsError):
        os.symlink(target, path)


def make_mount_point(path: str, is_directory: bool) -> None:
    """Make an empty file or a directory as a mount point, unless it exists."""
    if is_directory:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def mount_points() -> tuple[str, ...]:
    """All mount points of this mount namespace, sorted: proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", "rb") as file:
        return tuple(sorted({procfs.mount_path(line.split(b" ", 5)[4]) for line in file}))


def is_usable(point: str) -> bool:
    """Whether a mount point is there, and is no FUSE file system without its daemon (ENOTCONN)."""
    try:
        os.stat(point)
    except PermissionError:  # another user's FUSE
        return True
    except OSError:
        return False
    return True


class MountTable:
    """The mount points of this mount namespace, read again when the kernel says that they have changed.

    Source: proc_pid_mounts(5), mounts_poll() of fs/proc_namespace.c.
    """

    def __init__(self, others: tuple[str, ...] = ()) -> None:
        """Read the mount points.

        Args:
            others: directories that count as mount points: read-only to jobs, also below a layer.
        """
        self._others = others
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)
        self._points = (*mount_points(), *others)
        self._lock = _thread.allocate_lock()  # threading is too large for the launcher

    def points(self) -> tuple[str, ...]:
        """Return the mount points as they are now."""
        with self._lock:  # members of groups come in threads, and poll() refuses two at once
            if self._poll.poll(0):
                self._points = (*mount_points(), *self._others)
            return self._points

    def close(self) -> None:
        """Close its descriptor."""
        os.close(self._fd)


_DIRECTORIES = (
    "/run/dbus",  # the system's message bus: dbus-daemon(1)
    "/run/user",  # buses, agents and services of users: $XDG_RUNTIME_DIR of the XDG Base Directory Specification
    "/run/podman", "/run/containerd", "/run/crio", "/run/libvirt", "/run/docker",
    "/run/screen", "/run/uscreens",
)  # fmt: skip
_SOCKETS = (
    "/run/docker.sock", "/run/systemd/private", "/run/systemd/notify", "/run/snapd.socket", "/run/udev/control",
    "/run/systemd/journal/stdout", "/run/systemd/journal/socket", "/run/systemd/journal/dev-log",
    "/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket", "/var/lib/incus/unix.socket",
)  # fmt: skip
# They look up any name, and so carry data to another machine: nscd(8), systemd-resolved(8), avahi-daemon(8).
_NAME_SERVICES = (
    "/run/nscd/socket", "/run/avahi-daemon/socket",
    "/run/systemd/resolve/io.systemd.Resolve", "/run/systemd/resolve/io.systemd.Resolve.Monitor",
)  # fmt: skip
VARIABLES = (
    "SSH_AUTH_SOCK", "SSH_AGENT_PID", "GPG_AGENT_INFO", "DBUS_SESSION_BUS_ADDRESS", "DBUS_SYSTEM_BUS_ADDRESS",
    "XDG_RUNTIME_DIR", "DOCKER_HOST", "CONTAINER_HOST", "TMUX", "STY",
)  # fmt: skip
"""Environment variables with paths of such sockets."""


def hide(environment: Mapping[str, str]) -> None:
    """Cover the directories and sockets of the host's services, in a supervisor's mount namespace.

    A directory that contains the working directory stays visible.

    Args:
        environment: of Snakemake, which may name further sockets: see VARIABLES.

    Raises:
        OSError: the call that the kernel refused.
    """
    named = [_socket_in(environment.get(name, "")) for name in VARIABLES]
    here = os.getcwd() + "/"
    for path in sorted({os.path.realpath(p) for p in (*_DIRECTORIES, *_SOCKETS, *named) if p}):
        mode = mode_of(path)
        with suppress(FileNotFoundError):  # its service ends at this moment
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


def mode_of(path: str) -> int:
    """The mode of a file, links followed; 0 if there is none."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0
