"""What a job asks of sbatch(1): resources to arguments, and the resources that Forge refuses. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import replace

from ...spec.errors import UsageError, near_miss
from ...spec.job import LaunchSpec
from ...spec.resources import whole_number
from ...spec.units import MEBIBYTE

KNOWN_RESOURCES = (
    "slurm_partition", "slurm_account", "slurm_extra", "qos", "constraint", "gres", "gpu", "gpus", "gpu_model",
    "mem_mb_per_cpu", "cpus_per_task", "tasks", "nodes",
)  # fmt: skip
"""Resources beside Snakemake's own, with the names of snakemake-executor-plugin-slurm 2.8."""

_ONE_NODE, _ONE_CLUSTER = (
    "a Forge job is one process tree on one node",
    "Forge talks to one cluster, that of SLURM_CONF",
)
_REFUSED_RESOURCES = {
    **dict.fromkeys(("mpi", "tasks_per_node"), _ONE_NODE),
    **dict.fromkeys(("cluster", "clusters", "slurm_cluster"), _ONE_CLUSTER),
}

_OWN_OPTIONS = (
    "-J", "--job-name", "-o", "--output", "-e", "--error", "-a", "--array", "-D", "--chdir", "--wrap", "--parsable",
    "-W", "--wait", "--test-only", "--comment", "--requeue", "--no-requeue", "--open-mode", "-M", "--clusters",
    "-Q", "--quiet", "-i", "--input",
)  # fmt: skip
"""Options of sbatch that slurm_extra may not have: Forge sets them itself, or they would break it."""


def adapt(spec: LaunchSpec) -> LaunchSpec:
    """Set the limits that Slurm's resources ``cpus_per_task`` and ``mem_mb_per_cpu`` ask for."""
    resources, limits = spec.resources, spec.limits
    cpus = whole_number(spec.rule, resources, "cpus_per_task")
    if cpus:
        limits = replace(limits, cpus=cpus)
    per_cpu = whole_number(spec.rule, resources, "mem_mb_per_cpu")
    if per_cpu:
        limits = replace(limits, memory_bytes=per_cpu * limits.cpus * MEBIBYTE)
    variables = {**spec.environment, "FORGE_CPUS": str(limits.cpus)}
    if limits.memory_bytes is not None:
        variables["FORGE_MEMORY_BYTES"] = str(limits.memory_bytes)
    return replace(spec, limits=limits, environment=variables, backend="slurm")


def shape(spec: LaunchSpec) -> tuple[str, ...]:
    """The arguments of sbatch for what a job needs. Jobs of one shape can share an array.

    Args:
        spec: from :func:`adapt`.

    Raises:
        UsageError: names the rule, the resource and its value.
    """
    rule, resources, limits = spec.rule, spec.resources, spec.limits
    check(rule, resources)
    arguments = [
        "--nodes=1",
        f"--ntasks={whole_number(rule, resources, 'tasks') or 1}",
        f"--cpus-per-task={limits.cpus}",
    ]
    if per_cpu := whole_number(rule, resources, "mem_mb_per_cpu"):
        arguments.append(f"--mem-per-cpu={per_cpu}M")
    elif limits.memory_bytes is not None:
        arguments.append(f"--mem={math.ceil(limits.memory_bytes / MEBIBYTE)}M")
    if limits.wall_seconds is not None:
        arguments.append(f"--time={max(1, math.ceil(limits.wall_seconds / 60))}")
    options = {"slurm_partition": "partition", "slurm_account": "account", "qos": "qos", "constraint": "constraint"}
    for key, option in options.items():
        if resources.get(key) not in (None, ""):
            arguments.append(f"--{option}={resources[key]}")
    arguments += _gpu_arguments(rule, resources)
    arguments += shlex.split(str(resources.get("slurm_extra") or ""))
    return tuple(arguments)


def _gpu_arguments(rule: str, resources: Mapping[str, object]) -> list[str]:
    arguments = [f"--gres={resources['gres']}"] if resources.get("gres") else []
    count = whole_number(rule, resources, "gpu") or whole_number(rule, resources, "gpus")
    model = resources.get("gpu_model")
    if model:
        arguments.append(f"--gpus={model}:{count or 1}")
    elif count:
        arguments.append(f"--gpus={count}")
    return arguments


def check(rule: str, resources: Mapping[str, object]) -> None:
    """Refuse resources that Forge cannot pass on to Slurm.

    Raises:
        UsageError: names the rule, the resource and its value.
    """
    for key, value in resources.items():
        if key in _REFUSED_RESOURCES and value not in (None, False, ""):
            raise UsageError(f"Rule {rule}: {key}={value!r} cannot be had: {_REFUSED_RESOURCES[key]}. Leave it out.")
        if key.startswith("slurm_") and key not in KNOWN_RESOURCES and key not in _REFUSED_RESOURCES:
            hint = near_miss(key, KNOWN_RESOURCES)
            raise UsageError(f"Rule {rule}: resource {key}={value!r} is not known to Forge.{hint}")
    for key in ("cpus_per_task", "mem_mb_per_cpu", "tasks", "nodes", "gpu", "gpus"):
        whole_number(rule, resources, key)
    if (nodes := whole_number(rule, resources, "nodes")) and nodes > 1:
        raise UsageError(f"Rule {rule}: nodes={nodes}: {_ONE_NODE}. Leave it out.")
    _check_extra(rule, str(resources.get("slurm_extra") or ""))


def _check_extra(rule: str, extra: str) -> None:
    try:
        words = shlex.split(extra)
    except ValueError as error:
        raise UsageError(f"Rule {rule}: slurm_extra={extra!r} cannot be split into words: {error}.") from None
    for word in words:
        option = word.partition("=")[0]
        if option in _OWN_OPTIONS or (re.match(r"-[A-Za-z].", option) and option[:2] in _OWN_OPTIONS):
            raise UsageError(
                f"Rule {rule}: slurm_extra={extra!r}: {option} is set by Forge itself, which would lose track of the "
                "job. Leave it out."
            )
