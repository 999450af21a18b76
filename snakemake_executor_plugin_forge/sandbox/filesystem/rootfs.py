"""The root directory of an image as the root of a job, with the job's own directories mounted in it.

These steps come after those of the mount plan, and bind what the plan has mounted (private directories, devices, the
working directory) into the image. So a job in an image has the same sandbox as any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ...kernel import syscalls
from ...kernel.syscalls import Step
from ...spec.errors import SandboxError

ALWAYS = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp")  # noqa: S108
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts")


def make_mount_points(root: str, shown: Iterable[str]) -> tuple[str, ...]:
    """Make missing mount points in the image, before the job starts.

    Args:
        shown: absolute paths of the host that the job must see.

    Returns:
        The paths that exist on the host, outermost first.

    Raises:
        SandboxError: if the image is not writable, or a symbolic link in it leads out of it.
    """
    chosen: list[str] = []
    for path in sorted({*ALWAYS, *NETWORK_FILES, *shown}, key=lambda p: (p.count("/"), p)):
        covered = any(path == c or path.startswith(c + "/") for c in chosen)
        if not covered and os.path.exists(path) and path != "/":
            chosen.append(path)
            _make(root, path)
    return tuple(chosen)


def _make(root: str, path: str) -> None:
    inner = root + path
    if not os.path.realpath(inner).startswith(os.path.realpath(root) + "/"):
        raise SandboxError(f"{path} cannot be shown in the image {root}: a link in there leads out of it.")
    try:
        if os.path.isdir(path):
            os.makedirs(inner, exist_ok=True)
        elif not os.path.exists(inner):
            os.makedirs(os.path.dirname(inner), exist_ok=True)
            os.close(os.open(inner, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    except OSError as error:
        raise SandboxError(
            f"{path} cannot be shown in the image {root}: {inner} cannot be made ({error.strerror}). "
            "Make it by hand, or use an image that Forge unpacks itself (oci-archive:, or a name)."
        ) from error


def steps(root: str, shown: Iterable[str]) -> list[Step]:
    """Steps that make an image, read-only, the root of the calling process, which has a mount namespace of its own.

    Args:
        shown: see :func:`make_mount_points`.
    """
    return [
        *syscalls.bind_read_only_steps(root),
        *(syscalls.bind_step(path, root + path) for path in shown),
        (os.chroot, (root,), f"chroot {root}"),
        (os.chdir, ("/",), "chdir /"),
    ]
