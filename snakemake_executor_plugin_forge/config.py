"""The flags, checked and in the units of the kernel: :class:`.settings.ExecutorSettings` to :class:`.model.Config`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from .errors import UsageError
from .model import Config, CpuMode, KeepScratch, Network, Require
from .plan import NUMBERED_NODE
from .settings import ExecutorSettings
from .units import parse_bytes, parse_seconds, parse_share

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def to_config(settings: ExecutorSettings) -> Config:
    """Check every flag and convert it to the kernel's units.

    Raises:
        UsageError: names the flag and the value that cannot be used.

    """
    share = str(settings.run_memory)
    parse_share(share, 1, "--forge-run-memory")  # only to complain early
    return Config(
        require=_enum(Require, settings.require, "--forge-require"),
        cpu=_enum(CpuMode, settings.cpu, "--forge-cpu"),
        network=_enum(Network, settings.network, "--forge-network"),
        keep_scratch=_enum(KeepScratch, settings.keep_scratch, "--forge-keep-scratch"),
        scratch_dir=str(settings.scratch_dir.absolute()) if settings.scratch_dir else None,
        memory_bytes=_optional(settings.memory, parse_bytes, "--forge-memory"),
        pids=_optional(settings.pids, _parse_count, "--forge-pids"),
        wall_seconds=_optional(settings.wall, parse_seconds, "--forge-wall"),
        grace_seconds=parse_seconds(settings.grace, "--forge-grace"),
        run_memory=share,
        run_pids=_optional(settings.run_pids, _parse_count, "--forge-run-pids"),
        gpus=_parse_nodes(settings.gpus, "--forge-gpus"),
    )


def _enum(kind: type[E], value: str, flag: str) -> E:
    try:
        return kind(value)
    except ValueError:
        # The command line checks choices itself; an environment variable or a profile may get here.
        allowed = ", ".join(str(v) for v in kind)
        raise UsageError(f"{flag}={value}: not one of {allowed}.") from None


def _optional(value: str, parse: Callable[[str, str], T], flag: str) -> T | None:
    return None if value.strip().lower() in ("none", "") else parse(value, flag)


def _parse_count(text: str, where: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"{where}={text}: not a whole number.") from None
    if not 1 <= number <= 4194304:  # PID_MAX_LIMIT, proc(5)
        raise UsageError(f"{where}={text}: must be between 1 and 4194304 (the kernel's own limit), or none.")
    return number


def _parse_nodes(text: str, where: str) -> tuple[str, ...] | None:
    """Device nodes; None for "auto". Whether they are there is seen by sandbox/gpus.py."""
    if text.strip().lower() == "auto":
        return None
    if text.strip().lower() in ("none", ""):
        return ()
    nodes = tuple(part.strip() for part in text.split(","))
    for node in nodes:
        if not NUMBERED_NODE.fullmatch(node):
            raise UsageError(
                f"{where}={text}: {node!r} is no device node with a number. Write auto, none, or nodes with commas "
                "between them, like /dev/nvidia0,/dev/nvidia1."
            )
    if len(set(nodes)) < len(nodes):
        raise UsageError(f"{where}={text}: a device is named twice.")
    return nodes
