"""What all jobs of a supervisor see alike of the file system, in a mount namespace that they copy: a small /dev."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress

from . import sockets, syscalls
from .syscalls import Step

# Device nodes that an analysis may need. Everything else of /dev (disks above all) is not there: a root job
# could write to it past all mounts. Of the GPUs there is only what controls all of them: see GPU_STORE.
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "nvidiactl", "nvidia-modeset", "kfd")
_DEVICE_PREFIXES = ("nvidia",)
_DEVICE_DIRECTORIES = ("pts", "accel", "infiniband", "nvidia-caps")
_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}
_SHM = "/dev/shm"  # noqa: S108
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how it writes blanks and the like
# In a supervisor: a mount with the GPUs of the run in it, of which a job takes its own before it unmounts the rest.
_GPU_STORE = ".forge-gpus"
_GPU_NODE = re.compile(r"/dev/(nvidia|dri/renderD)\d+")


def is_gpu(node: str) -> bool:
    """Whether a path is one of those that drivers give to GPUs: each is one device, and none controls all of them.

    ``nvidia0``: NVIDIA's driver, README, chapter "How do I create the device nodes"; ``renderD128``: drm(7).
    """
    return _GPU_NODE.fullmatch(node) is not None


def prepare_base(device_dir: str, gpus: tuple[str, ...]) -> None:
    """In a new mount namespace: no propagation to the host, no way to its services, a small /dev.

    Args:
        device_dir: a directory, which the new /dev covers until it is whole: one made for that would stay, if the
            process were killed meanwhile.
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
            make_mount_point(target, is_directory=False)
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
        make_mount_point(target, is_directory=False)
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
            make_mount_point(node, is_directory=False)


def gpu_steps(gpus: tuple[str, ...]) -> list[Step]:
    """In a job, where the run has GPUs: show its own, and let go of all others."""
    store = f"/dev/{_GPU_STORE}"
    return [
        *(syscalls.bind_step(store + node, node, recursive=False) for node in gpus),
        syscalls.unmount_step(store),
    ]


def make_mount_point(path: str, is_directory: bool) -> None:
    """Make something on which a file or directory can be mounted."""
    if is_directory:
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def mount_points() -> tuple[str, ...]:
    """Where anything is mounted: proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", "rb") as file:
        fields = [line.split(b" ", 5)[4] for line in file]
    return tuple(sorted({os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m[1], 8)]), field)) for field in fields}))
