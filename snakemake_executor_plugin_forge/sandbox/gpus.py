"""The GPUs of this host, as device nodes."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

from ..errors import UsageError
from ..plan import choose_gpus
from .mounts import is_gpu


def find(wanted: tuple[str, ...] | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The device nodes that the jobs of this run may have.

    Args:
        wanted: ``--forge-gpus``; None: whatever is there.
        environment: see :func:`..plan.choose_gpus`.

    Raises:
        UsageError: for a wanted one that is not there, and as :func:`..plan.choose_gpus`.

    """
    if wanted is None:
        return choose_gpus(filter(is_gpu, _nodes()), os.path.exists("/dev/kfd"), environment)
    for node in wanted:
        if not _is_device(node):
            raise UsageError(f"--forge-gpus: {node} is no character device of this host. Name others, or none.")
    return wanted


def _nodes() -> list[str]:
    found = [f"/dev/{name}" for name in os.listdir("/dev")]
    if os.path.isdir("/dev/dri"):
        found += [f"/dev/dri/{name}" for name in os.listdir("/dev/dri")]
    return found


def _is_device(node: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(node).st_mode)
    except OSError:
        return False
