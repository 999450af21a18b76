"""Another root directory for a job: that of an image, with what belongs to the job shown in it.

The steps come after those that put the job's view together, whatever they are, and show that view inside the image: its
private directories, its devices, its working directory. So a job in an image has the same sandbox as any other.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..errors import SandboxError
from . import syscalls
from .syscalls import Step

ALWAYS = ("/proc", "/sys", "/dev", "/tmp", "/var/tmp")  # noqa: S108
NETWORK_FILES = ("/etc/resolv.conf", "/etc/hosts")


def make_mount_points(root: str, shown: Iterable[str]) -> tuple[str, ...]:
    """Make in the image what the job's directories are mounted on, where it is not there yet.

    Done ahead of the job, and for each path only once, as the image stays as it is then.

    Args:
        root: of the image.
        shown: absolute paths of the host.

    Returns:
        Those that exist on the host, outermost first.

    Raises:
        SandboxError: if the image cannot be written, or has a link where a directory is needed.

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
    """What makes an image, read-only, the root of the calling process, in a mount namespace of its own.

    Args:
        root: of the image.
        shown: see :func:`make_mount_points`.

    """
    return [
        *syscalls.bind_read_only_steps(root),
        *(syscalls.bind_step(path, root + path) for path in shown),
        (os.chroot, (root,), f"chroot {root}"),
        (os.chdir, ("/",), "chdir /"),
    ]
