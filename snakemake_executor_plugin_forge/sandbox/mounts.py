"""What a job sees of the file system.

Two steps, because some of it is the same for all jobs: :func:`prepare_base` is done once by a supervisor, in a mount
namespace that its jobs copy; :func:`enter_view` is done by each job for itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from . import syscalls

# Device nodes that an analysis may need. Everything else of /dev (disks above all) is not there: a root job
# could write to it past all mounts.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "nvidiactl", "nvidia-modeset", "kfd")
_DEVICE_PREFIXES = ("nvidia",)
_DEVICE_DIRECTORIES = ("pts", "dri", "accel", "infiniband", "nvidia-caps")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
# Parts of a new /proc with which a root job could change the host: proc(5), proc_sys(5).
_PROC_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")


def prepare_base(device_dir: str) -> None:
    """In a new mount namespace: no propagation to the host, a small /dev.

    Args:
        device_dir: an empty directory, used as the place where the new /dev is put together.

    """
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
    _private_dev(device_dir)


def _private_dev(device_dir: str) -> None:
    syscalls.mount("forge-dev", device_dir, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=755,size=64k")
    for name in sorted(os.listdir("/dev")):
        source, target = f"/dev/{name}", f"{device_dir}/{name}"
        if name in _DEVICE_DIRECTORIES and os.path.isdir(source):
            os.mkdir(target)
            syscalls.bind(source, target)
        elif (name in _DEVICES or name.startswith(_DEVICE_PREFIXES)) and stat.S_ISCHR(os.stat(source).st_mode):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            syscalls.bind(source, target, recursive=False)
    for name, text in _LINKS.items():
        os.symlink(text, f"{device_dir}/{name}")
    os.mkdir(f"{device_dir}/shm", 0o1777)
    syscalls.mount(device_dir, "/dev", "", syscalls.MS_MOVE)


def enter_view(private: dict[str, str], exposed: Iterable[str], shm_bytes: int | None, new_proc: bool) -> None:
    """Make this process's mount namespace the job's own.

    Args:
        private: directory to the directory that shall be seen in its place (/tmp to a part of the scratch).
        exposed: paths below those, which stay visible with their real content.
        shm_bytes: size of the private /dev/shm; None for the kernel's default, half of the memory.
        new_proc: whether this process is in a PID namespace of its own and needs the /proc of it.

    """
    # Opened before anything is covered; /proc/self/fd/N then still leads to what is below.
    handles = [(path, os.open(path, os.O_PATH | os.O_CLOEXEC)) for path in exposed if os.path.exists(path)]
    sources = [(path, os.open(source, os.O_PATH | os.O_CLOEXEC)) for path, source in private.items()]
    for target, fd in sources:
        syscalls.bind(f"/proc/self/fd/{fd}", target, recursive=False)
        os.close(fd)
    size = f",size={shm_bytes}" if shm_bytes else ""
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("forge-shm", "/dev/shm", "tmpfs", flags, f"mode=1777{size}")  # noqa: S108
    for path, fd in handles:
        _make_mount_point(path, is_directory=stat.S_ISDIR(os.fstat(fd).st_mode))
        syscalls.bind(f"/proc/self/fd/{fd}", path)
        os.close(fd)
    syscalls.bind_read_only("/sys")  # not in the base: the supervisor itself writes to cgroups there
    if new_proc:
        _new_proc()


def _make_mount_point(path: str, *, is_directory: bool) -> None:
    if is_directory:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _new_proc() -> None:
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("proc", "/proc", "proc", flags)
    for path in _PROC_READ_ONLY:
        with suppress(FileNotFoundError):
            syscalls.bind_read_only(path)
