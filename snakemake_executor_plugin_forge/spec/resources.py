"""The resources of a rule: pure functions that check them and turn them into limits, GPUs and priorities."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from .errors import RequirementError, ResourceError, UsageError, near_miss
from .host import Host
from .job import (
    DEFAULT_IO_WEIGHT,
    CheckFormats,
    Checksums,
    Config,
    CpuMode,
    FilePolicy,
    KeepScratch,
    Nested,
    Network,
    Priority,
    Require,
    RunBlocks,
    Undeclared,
)
from .units import MEBIBYTE, show_bytes

FORGE_NUMBERS: Mapping[str, tuple[int, int]] = {"forge_nice": (0, 19), "forge_io_weight": (1, 10_000)}
"""Resources with which a rule overrides a number of the run: the lowest and the highest value. setpriority(2) allows
at most 19, io.weight (Linux' cgroup-v2.rst) at most 10000."""

UNKNOWN_YET = "<TBD>"
"""Snakemake's value of a resource whose function it does not call before the job starts."""


def forge_number(rule: str, resources: Mapping[str, object], key: str) -> int | None:
    """The value of one of :data:`FORGE_NUMBERS`; None if the rule sets none, or Snakemake does not know it yet.

    Raises:
        UsageError: for a value that is not a whole number between the bounds; names rule, resource and value.
    """
    value = resources.get(key)
    if value is None or value == UNKNOWN_YET:
        return None
    lowest, highest = FORGE_NUMBERS[key]
    if isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):  # it may be text: a profile or --default-resources may put quotes around it
            if lowest <= int(value) <= highest:
                return int(value)
    raise UsageError(f"Rule {rule}: resource {key}={value!r} must be a whole number between {lowest} and {highest}.")


def priority_of_run(config: Config) -> Priority:
    """The priority of the cgroup that holds all jobs of the run."""
    differ = config.io_weights or config.io_weight != DEFAULT_IO_WEIGHT
    return Priority(config.nice, config.io_weight, differ)


def check_required(rule: str, resources: Mapping[str, object], require: Require, host: Host) -> None:
    """Refuse priorities that are not numbers, and what ``--forge-require`` demands and the host lacks.

    Raises:
        RequirementError: names the rule, the resource and the reason.
        UsageError: see :func:`forge_number`.
    """
    lack = missing_gpus(rule, resources, host.gpus)
    if lack is not None and require is not Require.NONE:
        raise RequirementError(
            f"--forge-require={require}: {lack} Run it on a host that has them, or ask for fewer: "
            f"--set-resources {rule}:gpu={len(host.gpus)}."
        )
    forge_number(rule, resources, "forge_nice")  # a batch backend does not check it
    weight = forge_number(rule, resources, "forge_io_weight")
    if weight not in (None, DEFAULT_IO_WEIGHT) and host.io_weight_note and require is not Require.NONE:
        raise RequirementError(
            f"--forge-require={require}: Rule {rule} asks for forge_io_weight={weight}, which this host does not give "
            f"({host.io_weight_note}). What would change that: snakemake-forge doctor; or leave it out."
        )


MIN_MEMORY_BYTES = 4 * MEBIBYTE
"""The smallest limit that Forge accepts. The process that starts a job and its shell take 1 to 2 MiB (measured with
Snakemake 9.27; see docs/explanation/job.md). A lower value most likely has the wrong unit:
docs/decisions/0007-refuse-impossible-memory.md."""

FORGE_RESOURCES: Mapping[
    str,
    type[CheckFormats | Checksums | CpuMode | FilePolicy | KeepScratch | Nested | Network | RunBlocks | Undeclared],
] = {
    "forge_check_formats": CheckFormats,
    "forge_checksums": Checksums,
    "forge_cpu": CpuMode,
    "forge_files": FilePolicy,
    "forge_nested": Nested,
    "forge_undeclared": Undeclared,
    "forge_network": Network,
    "forge_keep_scratch": KeepScratch,
    "forge_run_blocks": RunBlocks,
}
"""The resources with which a rule overrides a setting of the run."""

GPU_RESOURCES = ("gpu", "gpus")
"""Both names of the number of GPUs that a job has for itself."""

NUMBERED_NODE = re.compile(r"/dev/(?:\w[\w.-]*/)*(?:\w[\w.-]*?)?(\d+)")
"""A device node whose name ends in a number, which is the group."""

AMD_NODES = "/dev/dri/renderD"


def check_resources(rule: str, resources: Mapping[str, object], host: Host) -> None:
    """Refuse resources that no job could run with.

    Raises:
        UsageError: names the rule, the resource, its value and what would be right.
    """
    memory = positive_number(rule, resources, "mem_mb")
    if memory is not None:
        size = int(memory * MEBIBYTE)
        if size < MIN_MEMORY_BYTES:
            raise UsageError(
                f"Rule {rule}: mem_mb={memory:g} is less than the {MIN_MEMORY_BYTES // MEBIBYTE} MB "
                "below which next to nothing runs. It counts MB, not GB. "
                "Raise mem_mb, or leave it out to be limited by the run alone."
            )
        if size > host.run_memory_bytes:
            most = host.run_memory_bytes // MEBIBYTE
            raise ResourceError(
                rule,
                f"Rule {rule}: mem_mb={memory:.15g} is more than the {show_bytes(host.run_memory_bytes)} "
                f"({most} MB) that the jobs of this run may use together on this host",
                f"Lower it: --set-resources {rule}:mem_mb={most}, or for all rules --resources mem_mb={most}; "
                "or raise --forge-run-memory if the host has more",
                (("mem_mb", most),),
            )
    positive_number(rule, resources, "runtime")
    positive_number(rule, resources, "disk_mb")
    gpu_count(rule, resources, host.gpus)
    for key, value in resources.items():
        if key.startswith("forge_") and key != "forge_runtime":  # catalog.choose checks that one
            _check_forge_resource(rule, key, value)


def _check_forge_resource(rule: str, key: str, value: object) -> None:
    if key in FORGE_NUMBERS:
        forge_number(rule, {key: value}, key)
        return
    if key not in FORGE_RESOURCES:
        hint = near_miss(key, (*FORGE_RESOURCES, *FORGE_NUMBERS, "forge_runtime"), "forge_")
        given = "" if value == UNKNOWN_YET else f"={value!r}"
        raise UsageError(f"Rule {rule}: resource {key}{given} is not known to Forge.{hint}")
    if value == UNKNOWN_YET:
        return
    allowed = [str(v) for v in FORGE_RESOURCES[key]]
    if str(value) not in allowed:
        raise UsageError(f"Rule {rule}: resource {key}={value!r} is not one of {', '.join(allowed)}.")


def positive_number(rule: str, resources: Mapping[str, object], key: str) -> float | None:
    """The value of mem_mb, disk_mb or runtime; None if the rule does not set it, or Snakemake does not know it yet.

    None for 0, too: many functions of the size of the input give that for small inputs.

    Raises:
        UsageError: for less than zero; names rule, resource, value and unit.
    """
    value = resources.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
        return None
    if value < 0:
        unit = {"runtime": "minutes", "mem_mb": "MB", "disk_mb": "MB"}[key]
        raise UsageError(
            f"Rule {rule}: {key}={value:g} is below zero. It counts {unit}; 0 means the same as no {key} at all."
        )
    return float(value)


def whole_number(rule: str, resources: Mapping[str, object], key: str) -> int | None:
    """The value of a resource that counts things; None if the rule does not set it, or Snakemake does not know it yet.

    Raises:
        UsageError: for a value that is not a whole number, 0 or more; names rule, resource and value.
    """
    value = resources.get(key)
    if value is None or value == UNKNOWN_YET:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"Rule {rule}: {key}={value!r} must be a whole number, 0 or more.")
    return value


def capped(
    resources: Mapping[str, object], attempt: int, run_memory_bytes: int
) -> tuple[Mapping[str, object], str | None]:
    """Lower the ``mem_mb`` of a job's second or later try to what the run may use.

    ``mem_mb=lambda wildcards, attempt: attempt * 16000`` outgrows the host in the end. The try before had less, and
    Snakemake tries a job again for other reasons than memory, too.

    Returns:
        The resources, and in words what was lowered, if anything was.
    """
    asked, most = resources.get("mem_mb"), run_memory_bytes // MEBIBYTE
    if isinstance(asked, bool) or not isinstance(asked, int | float) or asked <= most:
        return resources, None
    words = f"asks for mem_mb={asked:.15g} at attempt {attempt}; it has mem_mb={most}, all that this run may use"
    return {**resources, "mem_mb": most}, words


def without_tiny(resources: Mapping[str, object]) -> tuple[Mapping[str, object], str | None]:
    """Leave out limits in which nothing runs: what functions of the size of the input give for small inputs.

    Returns:
        The resources, and in words what was left out, if anything was.
    """
    least = {"mem_mb": MIN_MEMORY_BYTES // MEBIBYTE, "disk_mb": 1, "runtime": 1}
    tiny = {}
    for key, lowest in least.items():
        value = resources.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < lowest:
            tiny[key] = value
    if not tiny:
        return resources, None
    words = " and ".join(f"{key}={value:g}" for key, value in tiny.items())
    kept = {key: value for key, value in resources.items() if key not in tiny}
    return kept, f"asks for {words}, in which nothing runs; it counts as not declared"


def all_at_once(errors: Sequence[UsageError]) -> UsageError:
    """One error for all rules that are refused, with the lines to paste."""
    if len(errors) == 1:
        return errors[0]
    lines = [f"{len(errors)} rules cannot run as they are:"]
    lines += [f"  {f'{error.happened}.' if isinstance(error, ResourceError) else error}" for error in errors]
    lower = [
        (error.rule, key, most) for error in errors if isinstance(error, ResourceError) for key, most in error.fits
    ]
    if lower:
        lines.append(f"Lower them: --set-resources {' '.join(f'{rule}:{key}={most}' for rule, key, most in lower)}")
        fits = " ".join(dict.fromkeys(f"{key}={most}" for _, key, most in lower))
        lines.append(f"or for all rules: --resources {fits}; or raise --forge-run-memory if the host has more.")
    return UsageError("\n".join(lines))


def missing_gpus(rule: str, resources: Mapping[str, object], gpus: tuple[str, ...]) -> str | None:
    """Say that a job asks for more GPUs than the run has; None if it does not.

    Raises:
        UsageError: see :func:`gpu_count`.
    """
    asked = _asked_gpus(rule, resources)
    if asked <= len(gpus):
        return None
    none = "no GPU: no /dev/nvidia0, no /dev/kfd with /dev/dri/renderD128, or not allowed to use them"
    has = f"{len(gpus)} ({', '.join(gpus)})" if gpus else none
    return f"Rule {rule}: gpu={asked}, but this run has {has}."


def gpu_count(rule: str, resources: Mapping[str, object], gpus: tuple[str, ...]) -> int:
    """The number of GPUs that a job gets: what it asks for, or all that the run has; 0 if that is not known yet.

    Raises:
        UsageError: for a value that is no number, and for two different numbers.
    """
    return min(_asked_gpus(rule, resources), len(gpus))


def _asked_gpus(rule: str, resources: Mapping[str, object]) -> int:
    asked = {key: number for key in GPU_RESOURCES if (number := whole_number(rule, resources, key)) is not None}
    if len(set(asked.values())) > 1:
        raise UsageError(f"Rule {rule}: gpu={asked['gpu']} and gpus={asked['gpus']} mean the same; leave one out.")
    return next(iter(asked.values()), 0)


def check_group(members: Iterable[tuple[str, Mapping[str, object]]], gpus: tuple[str, ...]) -> None:
    """Refuse a pipe or service group in which two members ask for GPUs.

    They would get their GPUs one after the other, so that two such groups could wait for each other for ever.

    Args:
        members: rule and resources of each member.

    Raises:
        UsageError: names the rules.
    """
    asking = [rule for rule, resources in members if gpu_count(rule, resources, gpus)]
    if len(asking) > 1:
        raise UsageError(
            f"Rules {' and '.join(asking)} run at the same time, as a group, and each asks for GPUs; only one job of "
            "a group can have some. Give all of them to one rule, or connect the rules with a file instead of a pipe."
        )


def gpu_number(node: str) -> int:
    """The number at the end of a device node's name."""
    match = NUMBERED_NODE.fullmatch(node)
    assert match is not None, node  # plugin/config.py and sandbox/gpus.py accept no other
    return int(match[1])


def choose_gpus(found: Iterable[str], has_kfd: bool, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Choose the GPUs of ``--forge-gpus auto``: NVIDIA's or, if there are none, AMD's, if Snakemake may use them.

    Args:
        found: device nodes of GPUs.
        has_kfd: whether /dev/kfd exists, without which no AMD device computes.
        environment: Snakemake's environment. SLURM_JOB_GPUS holds numbers of the host (sbatch(1)); the variables that
            end in VISIBLE_DEVICES count the devices that exist, from 0.

    Raises:
        UsageError: for variables that do not give numbers.
    """
    nodes = sorted(found, key=gpu_number)
    nvidia = [node for node in nodes if not node.startswith(AMD_NODES)]
    nodes = nvidia or (nodes if has_kfd else [])
    names = ("CUDA_VISIBLE_DEVICES",) if nvidia else ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    for name in ("SLURM_JOB_GPUS", *names):
        text = environment.get(name)
        if text is None or not nodes:
            continue
        try:
            numbers = [int(part) for part in text.split(",") if part.strip()]
        except ValueError:
            raise UsageError(
                f"--forge-gpus=auto: {name}={text} restricts the GPUs of this run, but not by their numbers. "
                f"Name the device nodes: --forge-gpus {','.join(nodes)} or fewer."
            ) from None
        if name == "SLURM_JOB_GPUS":
            return tuple(node for node in nodes if gpu_number(node) in numbers)
        return tuple(nodes[n] for n in dict.fromkeys(numbers) if 0 <= n < len(nodes))
    return tuple(nodes)
