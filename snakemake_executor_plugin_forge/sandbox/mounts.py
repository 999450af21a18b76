"""What a job sees of the file system.

Two steps, because some of it is the same for all jobs: :func:`prepare_base` is done once by a supervisor, in a mount
namespace that its jobs copy; :func:`view_steps` are done by each job for itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from . import sockets, syscalls
from .gpus import is_gpu
from .syscalls import Step

# Device nodes that an analysis may need. Everything else of /dev (disks above all) is not there: a root job
# could write to it past all mounts. Of the GPUs there is only what controls all of them: see GPU_STORE.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "nvidiactl", "nvidia-modeset", "kfd")
_DEVICE_PREFIXES = ("nvidia",)
_DEVICE_DIRECTORIES = ("pts", "accel", "infiniband", "nvidia-caps")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_SHM = "/dev/shm"  # noqa: S108
# Parts of a new /proc with which a root job could change the host: proc(5), proc_sys(5).
_PROC_READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
# In a supervisor: a mount with the GPUs of the run in it, of which a job takes its own before it unmounts the rest.
_GPU_STORE = ".forge-gpus"


def prepare_base(device_dir: str, gpus: tuple[str, ...]) -> None:
    """In a new mount namespace: no propagation to the host, no way to its services, a small /dev.

    Args:
        device_dir: an empty directory, used as the place where the new /dev is put together.
        gpus: device nodes that jobs may be given.

    """
    syscalls.mount("none", "/", "", syscalls.MS_SLAVE | syscalls.MS_REC)
    sockets.hide(os.environ)
    _private_dev(device_dir, gpus)


def _private_dev(device_dir: str, gpus: tuple[str, ...]) -> None:
    syscalls.mount("forge-dev", device_dir, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=755,size=64k")
    for name in sorted(os.listdir("/dev")):
        source, target = f"/dev/{name}", f"{device_dir}/{name}"
        if source in gpus or is_gpu(source):
            continue
        if name in _DEVICE_DIRECTORIES and os.path.isdir(source):
            os.mkdir(target)
            syscalls.bind(source, target)
        elif (name in _DEVICES or name.startswith(_DEVICE_PREFIXES)) and stat.S_ISCHR(os.stat(source).st_mode):
            _make_mount_point(target, is_directory=False)
            syscalls.bind(source, target, recursive=False)
    if gpus:
        _store_gpus(f"{device_dir}/{_GPU_STORE}", gpus)
    for name, text in _LINKS.items():
        os.symlink(text, f"{device_dir}/{name}")
    os.mkdir(f"{device_dir}/shm", 0o1777)
    if os.path.isdir(_SHM):  # for what jobs must see of it; they cover the rest
        syscalls.bind(_SHM, f"{device_dir}/shm")
    syscalls.mount(device_dir, "/dev", "", syscalls.MS_MOVE)


def _store_gpus(store: str, gpus: tuple[str, ...]) -> None:
    os.mkdir(store, 0o700)
    syscalls.mount("forge-gpus", store, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "mode=700,size=64k")
    for node in gpus:
        target = store + node
        _make_mount_point(target, is_directory=False)
        syscalls.bind(node, target, recursive=False)


def place_gpus(old: tuple[str, ...], new: tuple[str, ...]) -> None:
    """In a supervisor, before a job's process is made: the mount points of its GPUs, and none of the last one's.

    They lie in the small /dev, which is the supervisor's; what is mounted on them is seen by the job alone.

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
            _make_mount_point(node, is_directory=False)


def gpu_steps(gpus: tuple[str, ...]) -> list[Step]:
    """In a job, where the run has GPUs: show its own, and let go of all others."""
    store = f"/dev/{_GPU_STORE}"
    return [
        *(syscalls.bind_step(store + node, node, recursive=False) for node in gpus),
        syscalls.unmount_step(store),
    ]


def view_steps(private: dict[str, str], places: str, exposed: Iterable[str]) -> list[Step]:
    """What makes a process's new mount namespace the job's own: to be run in it, in a PID namespace of its own.

    Every private directory is put together at a place of its own, with what stays visible of the real one mounted in
    it, and then moved to where it covers that. The order matters: who covers the places comes last.

    Args:
        private: directory to the directory that shall be seen in its place (/tmp to a part of the scratch).
        places: an empty directory for each of those, named by number, lies in here.
        exposed: existing paths below those, which stay visible with their real content. Each has its mount point: see
            :func:`make_mount_points`.

    """
    steps: list[Step] = []
    exposed = list(exposed)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    order = sorted((*private, _SHM), key=lambda d: (places + "/").startswith(d + "/"))
    for number, directory in enumerate(order):
        place = f"{places}/{number}"
        if directory == _SHM:
            steps.append(
                syscalls.mount_step("forge-shm", place, "tmpfs", flags, "mode=1777,size=100%")
            )  # the cgroup limits it
        else:
            steps.append(syscalls.bind_step(private[directory], place, recursive=False))
        for path in (p for p in exposed if p.startswith(directory + "/")):
            mount_point = place + path.removeprefix(directory)
            if directory == _SHM:
                steps.append((_make_mount_point, (mount_point, os.path.isdir(path)), ""))
            steps.append(syscalls.bind_step(path, mount_point))
        steps.append(syscalls.mount_step(place, directory, "", syscalls.MS_MOVE))
    steps += syscalls.bind_read_only_steps("/sys")  # not in the base: the supervisor itself writes to cgroups there
    steps.append(syscalls.mount_step("proc", "/proc", "proc", flags | syscalls.MS_NOEXEC))
    for path in _PROC_READ_ONLY:
        if os.path.exists(path):
            steps += syscalls.bind_read_only_steps(path)
    return steps


def make_mount_points(private: dict[str, str], exposed: Iterable[str]) -> None:
    """Make those mount points of :func:`view_steps` that lie on disk, if they are not there."""
    for path in exposed:
        for directory, source in private.items():
            if path.startswith(directory + "/"):
                mount_point = source + path.removeprefix(directory)
                if not os.path.lexists(mount_point):
                    _make_mount_point(mount_point, os.path.isdir(path))


def _make_mount_point(path: str, is_directory: bool) -> None:
    if is_directory:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
