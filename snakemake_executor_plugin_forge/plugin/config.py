"""Checks of the command-line flags, and their conversion to :class:`..spec.job.Config` in the kernel's units."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from ..spec.errors import UsageError
from ..spec.job import (
    CheckFormats,
    Checksums,
    Config,
    CpuMode,
    DefaultResources,
    FilePolicy,
    KeepScratch,
    Nested,
    Network,
    OnDisconnect,
    Require,
    RunBlocks,
    Undeclared,
)
from ..spec.resources import FORGE_NUMBERS, NUMBERED_NODE
from ..spec.slurm import AUTO, MOST_PACKED, Partition, SlurmSettings, read_partitions
from ..spec.units import parse_bytes, parse_seconds, parse_share, show_bytes
from .settings import ExecutorSettings

SMALLEST_CAP_BYTES = 64 * 1024
MOST_RETRIES = 20
LARGEST_FACTOR = 100.0

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


def to_config(settings: ExecutorSettings) -> Config:
    """Check every flag and convert it to the kernel's units.

    Raises:
        UsageError: names the flag and the invalid value.
    """
    share = str(settings.run_memory)
    parse_share(share, 1, "--forge-run-memory")  # only to refuse it before the run starts
    return Config(
        require=_enum(Require, settings.require, "--forge-require"),
        cpu=_enum(CpuMode, settings.cpu, "--forge-cpu"),
        network=_enum(Network, settings.network, "--forge-network"),
        files=_enum(FilePolicy, settings.files, "--forge-files"),
        undeclared=_enum(Undeclared, settings.undeclared, "--forge-undeclared"),
        nested=_enum(Nested, settings.nested, "--forge-nested"),
        audit=bool(settings.audit),
        keep_scratch=_enum(KeepScratch, settings.keep_scratch, "--forge-keep-scratch"),
        scratch_dir=_directory(settings.scratch_dir, settings.backend),
        memory_bytes=_optional(settings.memory, parse_bytes, "--forge-memory"),
        pids=_optional(settings.pids, _parse_count, "--forge-pids"),
        wall_seconds=_optional(settings.wall, parse_seconds, "--forge-wall"),
        grace_seconds=parse_seconds(settings.grace, "--forge-grace"),
        run_memory=share,
        run_pids=_optional(settings.run_pids, _parse_count, "--forge-run-pids"),
        metrics_file=str(settings.metrics_file.absolute()) if settings.metrics_file else None,
        stream_bytes=_optional(settings.stream_cap, _parse_cap, "--forge-stream-cap"),
        gpus=_parse_nodes(settings.gpus, "--forge-gpus"),
        backend=settings.backend.strip() or "local",
        oom_retries=_parse_between(settings.oom_retries, (0, MOST_RETRIES), "--forge-oom-retries"),
        oom_factor=_parse_factor(settings.oom_factor, "--forge-oom-factor"),
        oom_max_bytes=_optional(settings.oom_max, parse_bytes, "--forge-oom-max"),
        checksums=_enum(Checksums, settings.checksums, "--forge-checksums"),
        check_formats=_enum(CheckFormats, settings.check_formats, "--forge-check-formats"),
        run_blocks=_enum(RunBlocks, settings.run_blocks, "--forge-run-blocks"),
        on_disconnect=_enum(OnDisconnect, settings.on_disconnect, "--forge-on-disconnect"),
        nice=_parse_between(settings.nice, FORGE_NUMBERS["forge_nice"], "--forge-nice"),
        default_resources=_enum(DefaultResources, settings.default_resources, "--forge-default-resources"),
        io_weight=_parse_between(settings.io_weight, FORGE_NUMBERS["forge_io_weight"], "--forge-io-weight"),
        slurm=_slurm(settings),
    )


def _slurm(settings: ExecutorSettings) -> SlurmSettings:
    pack = settings.slurm_pack.strip().lower()
    packs = {AUTO: None, "off": 1}
    at_most, where = (1, MOST_PACKED), "--forge-slurm-pack"
    if settings.slurm_requeue not in ("on", "off"):
        raise UsageError(f"--forge-slurm-requeue={settings.slurm_requeue}: not one of on, off.")
    return SlurmSettings(
        pack=packs[pack] if pack in packs else _parse_between(pack, at_most, where, ", auto or off"),
        account=_parse_name(settings.slurm_account, "--forge-slurm-account"),
        qos=_parse_name(settings.slurm_qos, "--forge-slurm-qos"),
        reservation=_parse_name(settings.slurm_reservation, "--forge-slurm-reservation"),
        requeue=settings.slurm_requeue == "on",
        exclude=_parse_excluded(settings.slurm_exclude),
        job_prefix=_parse_prefix(settings.slurm_job_prefix),
        partitions=_read_partitions(settings.slurm_partitions),
    )


def _parse_name(text: str, where: str) -> str:
    name = text.strip()
    if name and not re.fullmatch(r"[\w.,@+-]+", name):
        raise UsageError(f"{where}={text}: no name that Slurm knows: letters, digits, '.', ',', '@', '+', '_' and '-'.")
    return name


def _parse_excluded(text: str) -> tuple[str, ...] | None:
    """Nodes as sbatch takes them, such as ``n[1-3],x``; None for auto."""
    nodes = text.strip()
    if nodes.lower() == AUTO:
        return None
    if nodes.lower() in ("", "none"):
        return ()
    if not re.fullmatch(r"[\w.,\[\]-]+", nodes):
        raise UsageError(f"--forge-slurm-exclude={text}: no list of nodes, such as n1,n[3-5]. Or auto, or none.")
    return (nodes,)


def _parse_prefix(text: str) -> str:
    if len(text) > 50 or not re.fullmatch(r"[A-Za-z0-9_-]*", text):
        raise UsageError(f"--forge-slurm-job-prefix={text}: up to 50 letters, digits, '_' and '-'.")
    return text


def _read_partitions(path: Path | None) -> tuple[Partition, ...]:
    if path is None:
        return ()
    from ..software.safe_yaml import UnfitYamlError, load, read_text

    where = f"--forge-slurm-partitions={path}"
    try:
        data = load(read_text(str(path)))[1]
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where}: it is not UTF-8 text.") from None
    except UnfitYamlError as error:
        raise UsageError(f"{where}, line {error.line}: {error}") from None
    return read_partitions(data, where)


def _directory(path: Path | None, backend: str) -> str | None:
    """Return the path of a directory that exists; those of a cluster's nodes cannot be seen from here."""
    if path is None:
        return None
    if not path.is_dir() and backend.strip() in ("", "local"):
        raise UsageError(f"--forge-scratch-dir={path}: there is no such directory; make it, or correct the path.")
    return str(path.absolute())


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
    return _parse_between(text, (1, 4194304), where, " (the kernel's own limit), or none")  # PID_MAX_LIMIT, proc(5)


def _parse_between(text: str, bounds: tuple[int, int], where: str, more: str = "") -> int:
    try:
        number = int(text)
    except ValueError:
        raise UsageError(f"{where}={text}: not a whole number.") from None
    lowest, highest = bounds
    if not lowest <= number <= highest:
        raise UsageError(f"{where}={text}: must be between {lowest} and {highest}{more}.")
    return number


def _parse_factor(text: str, where: str) -> float:
    try:
        factor = float(text)
    except ValueError:
        raise UsageError(f"{where}={text}: not a number.") from None
    if not 1 < factor <= LARGEST_FACTOR:  # false for NaN as well
        raise UsageError(
            f"{where}={text}: must be above 1 and at most {LARGEST_FACTOR:g}: with 2 each retry has twice the memory."
        )
    return factor


def _parse_cap(text: str, where: str) -> int:
    size = parse_bytes(text, where)
    if size < SMALLEST_CAP_BYTES:
        raise UsageError(f"{where}={text}: must be at least {show_bytes(SMALLEST_CAP_BYTES)}, or none.")
    return size


def _parse_nodes(text: str, where: str) -> tuple[str, ...] | None:
    """The device nodes of the GPUs; None for "auto". sandbox/gpus.py checks that they exist."""
    if text.strip().lower() == "auto":
        return None
    if text.strip().lower() in ("none", ""):
        return ()
    nodes = tuple(part.strip() for part in text.split(","))
    for node in nodes:
        if not NUMBERED_NODE.fullmatch(node):
            raise UsageError(
                f"{where}={text}: {node!r} is no device node with a number. Write auto, none, or nodes separated by "
                "commas, like /dev/nvidia0,/dev/nvidia1."
            )
    if len(set(nodes)) < len(nodes):
        raise UsageError(f"{where}={text}: a device stands there twice.")
    return nodes
