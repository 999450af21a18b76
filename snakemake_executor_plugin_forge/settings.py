"""The command line: ``--forge-…`` flags (also ``SNAKEMAKE_FORGE_…`` and profiles) to a checked :class:`Config`.

No ``from __future__ import annotations`` here and no ``X | None``: Snakemake reads the annotations at run time and
knows ``Optional[...]`` only; ``%`` in a help text breaks ``--help`` (snakemake-interface-common 1.23).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Optional, TypeVar

from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase

from .errors import UsageError
from .model import Config, CpuMode, KeepScratch, Network, Require
from .units import parse_bytes, parse_seconds, parse_share

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def _choice(values: type[StrEnum], text: str) -> dict[str, object]:
    return {
        "help": text,
        "env_var": True,
        "required": False,
        "choices": [str(v) for v in values],
        "metavar": "{" + ",".join(str(v) for v in values) + "}",
    }


def _text(text: str, metavar: str) -> dict[str, object]:
    return {"help": text, "env_var": True, "required": False, "metavar": metavar}


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """The flags. Every one has a default, so that ``--executor forge`` alone is enough."""

    require: str = field(
        default="none",
        metadata=_choice(Require, "Refuse to start if this host enforces less: 'limits' asks for "
                         "kernel-enforced memory, CPU and process limits, 'full' for namespaces as well."),
    )
    cpu: str = field(
        default="cap",
        metadata=_choice(CpuMode, "What a rule's threads mean: a hard cap on its CPU time, a share of "
                         "the machine relative to the other jobs, or no limit."),
    )
    network: str = field(
        default="on",
        metadata=_choice(Network, "Network of the jobs: the host's, or only a loopback of the job's own. "
                         "A rule overrides it with the resource forge_network."),
    )
    keep_scratch: str = field(
        default="never",
        metadata=_choice(KeepScratch, "Whose temporary directories are kept after the job."),
    )
    scratch_dir: Optional[Path] = field(
        default=None,
        metadata=_text("Directory below which the jobs' private temporary directories are made. "
                       "Default: the job's tmpdir resource, which is the system's temporary directory.", "DIR"),
    )
    memory: str = field(
        default="none",
        metadata=_text("Memory limit of a job whose rule has no mem_mb, for example 4GiB. "
                       "none: only the limit of the run holds.", "SIZE"),
    )
    pids: str = field(
        default="4096",
        metadata=_text("How many processes and threads one job may have, or none.", "N"),
    )
    wall: str = field(
        default="none",
        metadata=_text("Wall time limit of a job whose rule has no runtime, for example 30m or 24h.", "TIME"),
    )
    grace: str = field(
        default="10s",
        metadata=_text("Time between TERM and KILL for a job that is ended.", "TIME"),
    )
    run_memory: str = field(
        default="90%",
        metadata=_text("Memory that all jobs of the run may use together: a size, or a percentage of what "
                       "the host (or the cgroup that Snakemake runs in) has. Default: 90 percent.", "SIZE"),
    )
    run_pids: str = field(
        default="16384",
        metadata=_text("How many processes and threads all jobs of the run may have together, or none.", "N"),
    )


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
    )


def _enum(kind: type[E], value: str, flag: str) -> E:
    try:
        return kind(value)
    except ValueError:
        # The command line checks choices itself; an environment variable or a profile may get here.
        allowed = ", ".join(str(v) for v in kind)
        raise UsageError(f"{flag}={value}: not one of {allowed}.") from None


def _optional(value: str, parse: Callable[[str, str], T], flag: str) -> Optional[T]:
    return None if value.strip().lower() in ("none", "") else parse(value, flag)


def _parse_count(text: str, where: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"{where}={text}: not a whole number.") from None
    if not 1 <= number <= 4194304:  # PID_MAX_LIMIT, proc(5)
        raise UsageError(f"{where}={text}: must be between 1 and 4194304 (the kernel's own limit), or none.")
    return number
