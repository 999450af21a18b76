"""The abilities of a host, whether they meet ``--forge-require``, and the line that describes them: pure values."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import RequirementError
from .job import DEFAULT_IO_WEIGHT, FilePolicy, Network, Require
from .units import show_bytes

POLLED = "soft"
"""The name in records of limits that Forge polls, where the host allows no cgroup."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A place for the cgroup of the run that Forge tried: one rung of a ladder."""

    name: str  # such as "systemd scope"; docs/reference/doctor.md lists them
    refusal: str | None  # None: Forge uses this place


@dataclass(frozen=True, slots=True)
class Host:
    """The abilities of a host. Forge probes them once, at the start of the run."""

    run_memory_bytes: int  # how much of its memory all jobs together may use: --forge-run-memory
    cpus: int
    cgroup: str  # "cgroup-v2", "cgroup-v1" or POLLED
    cgroup_note: str  # where, or why not
    namespaces: str  # "root", "user" or "none"
    namespaces_note: str  # why not
    mechanisms: tuple[str, ...]
    gpus: tuple[str, ...] = ()  # device nodes that this run may give to its jobs
    tried: tuple[Rung, ...] = ()  # in their order, up to the rung that Forge uses
    layers_note: str = ""  # why changes cannot be staged in layers; "" if they can
    layers_apart: bool = False  # whether the changes in layers have to lie on the scratch's file system
    home_layer: bool = True  # whether jobs have a $HOME of the workflow
    home_note: str = ""  # why not, if they need one
    not_enforced: tuple[str, ...] = ()  # see Isolation
    io_weight_note: str = ""  # why a weight for I/O has no effect; "" if it has one
    io_devices: tuple[str, ...] = ()  # the disks that the kernel divides by weight
    io_controller: bool = True  # whether the cgroup of the run has one
    memory_bytes: int | None = None  # of the host, or of the smallest cgroup around the run; None: unknown


def check_requirement(require: Require, host: Host, io_weight: int = DEFAULT_IO_WEIGHT) -> None:
    """Refuse a host that enforces less than the user demands.

    Args:
        io_weight: the weight that the user asks for, 1 to 10000.

    Raises:
        RequirementError: names what is missing and the command that says what would provide it.
    """
    missing = missing_for(require, host)
    if require is not Require.NONE and io_weight != DEFAULT_IO_WEIGHT and host.io_weight_note:
        missing.append(f"a weight for I/O, which --forge-io-weight={io_weight} asks for ({host.io_weight_note})")
    if missing:
        raise RequirementError(
            f"--forge-require={require}: this host does not give Forge {' nor '.join(missing)}. "
            f"What would change that: snakemake-forge doctor --require {require}"
        )


def missing_for(require: Require, host: Host) -> list[str]:
    """The parts of a level of isolation that a host lacks, in words, with the kernel's reasons."""
    missing = []
    if require is not Require.NONE:
        if host.cgroup == POLLED:
            missing.append(f"limits that the kernel enforces ({host.cgroup_note})")
        elif host.not_enforced:
            missing.append(f"limits of {' and '.join(host.not_enforced)} ({host.cgroup_note})")
    if require is Require.FULL and host.namespaces == "none":
        missing.append(f"namespaces ({host.namespaces_note})")
    elif require is Require.FULL and host.layers_note:
        missing.append(f"staging of outputs ({host.layers_note})")
    return missing


def isolation_line(host: Host, network: Network, files: FilePolicy, *, io_weights: bool = False) -> str:
    """The line that says what encloses the jobs of a run: at its start, in its record and from ``doctor``.

    Args:
        io_weights: whether a setting or a rule asks for weights for I/O.
    """
    memory = show_bytes(host.run_memory_bytes)
    if host.memory_bytes is not None and host.run_memory_bytes > host.memory_bytes:
        memory += f" (--forge-run-memory; there are only {show_bytes(host.memory_bytes)})"
    if host.cgroup == POLLED:
        limits = f"soft limits (memory and processes polled, none of CPU, {memory} for each job)"
    else:
        without = f" but not of {' and '.join(host.not_enforced)}" if host.not_enforced else ""
        limits = f"limits by {host.cgroup}{without}, {memory} for all jobs together"
    inside = ", ".join(host.mechanisms) + (" (no namespaces)" if host.namespaces == "none" else "")
    advice = "; more: snakemake-forge doctor" if missing_for(Require.FULL, host) else ""
    gpus = f"; GPUs {', '.join(host.gpus)}" if host.gpus else ""
    unable = files is not FilePolicy.OPEN and (host.namespaces == "none" or host.layers_note)
    policy = f"files {files}"
    if unable:
        policy = f"files {FilePolicy.OPEN} ({files} cannot be had: {host.layers_note or 'no namespaces'})"
    if io_weights and host.io_weight_note:
        advice = f"; no weights for I/O ({host.io_weight_note}); more: snakemake-forge doctor"
    return f"Forge: {limits}; {inside}; {policy}; network {network}{gpus}{advice}."
