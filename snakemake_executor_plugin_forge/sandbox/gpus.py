"""The GPUs of this host, as device nodes."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Mapping

from ..spec.errors import UsageError
from ..spec.resources import choose_gpus
from .filesystem.mounts import is_gpu, mode_of


def find(wanted: tuple[str, ...] | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The device nodes that the jobs of this run may have.

    Args:
        wanted: ``--forge-gpus``; None: every GPU of the host.
        environment: see :func:`..spec.resources.choose_gpus`.

    Raises:
        UsageError: for a missing device, and as :func:`..spec.resources.choose_gpus`.
    """
    if wanted is None:
        nodes = [*glob.glob("/dev/*"), *glob.glob("/dev/dri/*")]
        return choose_gpus(filter(is_gpu, nodes), os.path.exists("/dev/kfd"), environment)
    for node in wanted:
        if not stat.S_ISCHR(mode_of(node)):
            raise UsageError(f"--forge-gpus: {node} is no character device of this host. Name others, or none.")
    return wanted
