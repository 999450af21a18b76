"""The arguments of sbatch(1) for the resources of a job, and the resources that Forge refuses. Pure."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ...spec.errors import UsageError, near_miss
from ...spec.job import Config, LaunchSpec, Require
from ...spec.resources import UNKNOWN_YET, whole_number
from ...spec.slurm import Request, SlurmSettings, fitting, no_partition
from ...spec.units import MEBIBYTE
from . import mpi

_DEFAULTS = SlurmSettings()

KNOWN_RESOURCES = (
    "slurm_partition", "slurm_account", "slurm_extra", "qos", "constraint", "gres", "gpu", "gpus", "gpu_model",
    "mem_mb_per_cpu", "cpus_per_task", "cpus_per_gpu", "tasks", "tasks_per_gpu", "tasks_per_node", "nodes", "mpi",
)  # fmt: skip
"""Resources beside Snakemake's own, with the names of snakemake-executor-plugin-slurm 2.8."""

REFUSED_RESOURCES = dict.fromkeys(
    ("cluster", "clusters", "slurm_cluster"), "Forge talks to one cluster, that of SLURM_CONF"
)

_COUNTS = ("mem_mb_per_cpu", "tasks", "tasks_per_gpu", "tasks_per_node", "nodes", "gpu", "gpus")
_CPU_COUNTS = ("cpus_per_task", "cpus_per_gpu")
LEAVE_OUT = -1
"""The value of a CPU count that leaves its option out: some clusters allow none, for example in GPU partitions."""

_OWN_OPTIONS = (
    "-J", "--job-name", "-o", "--output", "-e", "--error", "-a", "--array", "-D", "--chdir", "--wrap", "--parsable",
    "-W", "--wait", "--test-only", "--comment", "--requeue", "--no-requeue", "--open-mode", "-M", "--clusters",
    "-Q", "--quiet", "-i", "--input",
)  # fmt: skip
"""Options of sbatch that slurm_extra may not have: Forge sets them itself, or they would break it."""


def adapt(spec: LaunchSpec) -> LaunchSpec:
    """Set the limits that Slurm's resources ``cpus_per_task``, ``cpus_per_gpu`` and ``mem_mb_per_cpu`` ask for."""
    resources = spec.resources
    limits = replace(spec.limits, cpus=cpus_of(spec.rule, resources, spec.limits.cpus))
    per_cpu = whole_number(spec.rule, resources, "mem_mb_per_cpu")
    if per_cpu:
        limits = replace(limits, memory_bytes=per_cpu * limits.cpus * MEBIBYTE)
    variables = {**spec.environment, "FORGE_CPUS": str(limits.cpus)}
    if limits.memory_bytes is not None:
        variables["FORGE_MEMORY_BYTES"] = str(limits.memory_bytes)
    return replace(spec, limits=limits, environment=variables, backend="slurm")


def cpus_of(rule: str, resources: Mapping[str, object], threads: int) -> int:
    """The CPUs of a job: those of ``cpus_per_task`` or ``cpus_per_gpu``, or else as many as it has threads."""
    per_task, per_gpu = (_cpu_count(rule, resources, key) or 0 for key in _CPU_COUNTS)
    if per_task > 0:
        return per_task
    gpus = gpu_count(rule, resources) if per_gpu > 0 else 0
    return per_gpu * gpus or threads


def leaves_out_cpus(rule: str, resources: Mapping[str, object]) -> bool:
    """Whether a job is to be submitted without a number of CPUs: see :data:`LEAVE_OUT`."""
    per_task, per_gpu = (_cpu_count(rule, resources, key) for key in _CPU_COUNTS)
    return LEAVE_OUT in (per_task, per_gpu if not per_task and gpu_count(rule, resources) else None)


def shape(spec: LaunchSpec, settings: SlurmSettings = _DEFAULTS) -> tuple[str, ...]:
    """The arguments of sbatch for what a job needs. Jobs of one shape can share an array.

    Args:
        spec: from :func:`adapt`.

    Raises:
        UsageError: names the rule, the resource and its value.
    """
    rule, resources, limits = spec.rule, spec.resources, spec.limits
    check(rule, resources)
    arguments = _task_arguments(rule, resources, limits.cpus)
    if per_cpu := whole_number(rule, resources, "mem_mb_per_cpu"):
        arguments.append(f"--mem-per-cpu={per_cpu}M")
    elif limits.memory_bytes is not None:
        arguments.append(f"--mem={math.ceil(limits.memory_bytes / MEBIBYTE)}M")
    if limits.wall_seconds is not None:
        arguments.append(f"--time={max(1, math.ceil(limits.wall_seconds / 60))}")
    options = {"partition": _partition(spec, settings), "account": resources.get("slurm_account") or settings.account,
               "qos": resources.get("qos") or settings.qos, "constraint": resources.get("constraint"),
               "reservation": settings.reservation}  # fmt: skip
    arguments += [f"--{option}={value}" for option, value in options.items() if value not in (None, "")]
    arguments += _gpu_arguments(rule, resources)
    arguments += shlex.split(str(resources.get("slurm_extra") or ""))
    return tuple(arguments)


def _task_arguments(rule: str, resources: Mapping[str, object], cpus: int) -> list[str]:
    per_task, per_gpu = (_cpu_count(rule, resources, key) for key in _CPU_COUNTS)
    tasks_per_gpu = whole_number(rule, resources, "tasks_per_gpu") if gpu_count(rule, resources) else None
    arguments = mpi.task_arguments(rule, resources)
    if tasks_per_gpu:
        arguments[-1] = f"--ntasks-per-gpu={tasks_per_gpu}"
    if leaves_out_cpus(rule, resources):
        return arguments
    if not per_task and per_gpu is not None and gpu_count(rule, resources):
        return [*arguments, f"--cpus-per-gpu={per_gpu}"]
    return [*arguments, f"--cpus-per-task={cpus}"]


def _partition(spec: LaunchSpec, settings: SlurmSettings) -> str:
    """The partition of the rule, else those of ``--forge-slurm-partitions`` that fit, joined by commas; "" for none.

    Raises:
        UsageError: if there are some, and none fits.
    """
    named = spec.resources.get("slurm_partition")
    if named not in (None, "") or not settings.partitions:
        return str(named or "")
    memory, wall = spec.limits.memory_bytes, spec.limits.wall_seconds
    request = _request(
        spec.rule,
        spec.resources,
        wall / 60 if wall is not None else None,
        memory / MEBIBYTE if memory is not None else None,
        spec.limits.cpus,
    )
    if names := fitting(settings.partitions, request):
        return ",".join(names)
    raise UsageError(no_partition(spec.rule, settings.partitions, request))


def _request(
    rule: str, resources: Mapping[str, object], runtime: float | None, mem_mb: float | None, threads: int
) -> Request:
    model, constraint = (str(resources.get(key) or "") for key in ("gpu_model", "constraint"))
    gpus, tasks = gpu_count(rule, resources), mpi.task_count(rule, resources)
    return Request(runtime, mem_mb, threads, gpus, model, constraint, tasks)


def gpu_count(rule: str, resources: Mapping[str, object]) -> int:
    """The number of GPUs in ``gpu``, ``gpus``, ``gpu_model`` (one) or ``gres``; 0 for none, or if unknown yet."""
    if count := _named_gpus(rule, resources):
        return count
    if resources.get("gpu_model"):
        return 1
    # sbatch(1), --gres: name[[:type]:count], joined by commas
    found = re.findall(r"(?:^|,)gpu(?::[A-Za-z][\w.-]*)?(?::([0-9]{1,6}))?(?=,|$)", str(resources.get("gres") or ""))
    return sum(int(number or 1) for number in found)


def _named_gpus(rule: str, resources: Mapping[str, object]) -> int:
    return whole_number(rule, resources, "gpu") or whole_number(rule, resources, "gpus") or 0


def _gpu_arguments(rule: str, resources: Mapping[str, object]) -> list[str]:
    arguments = [f"--gres={resources['gres']}"] if resources.get("gres") else []
    count, model = _named_gpus(rule, resources), resources.get("gpu_model")
    if model:
        arguments.append(f"--gpus={model}:{count or 1}")
    elif count:
        arguments.append(f"--gpus={count}")
    return arguments


def check(
    rule: str,
    resources: Mapping[str, object],
    settings: SlurmSettings = _DEFAULTS,
    require: Require = Require.NONE,
) -> None:
    """Refuse resources that Forge cannot pass on to Slurm.

    Args:
        require: what the run demands of its nodes.

    Raises:
        UsageError: names the rule, the resource and its value.
    """
    for key, value in resources.items():
        if key in REFUSED_RESOURCES and value not in (None, False, ""):
            raise UsageError(f"Rule {rule}: {key}={value!r} cannot be had: {REFUSED_RESOURCES[key]}. Leave it out.")
        if key.startswith("slurm_") and key not in KNOWN_RESOURCES and key not in REFUSED_RESOURCES:
            hint = near_miss(key, KNOWN_RESOURCES)
            raise UsageError(f"Rule {rule}: resource {key}={value!r} is not known to Forge.{hint}")
    for key in _COUNTS:
        whole_number(rule, resources, key)
    for key in _CPU_COUNTS:
        _cpu_count(rule, resources, key)
    for key in ("cpus_per_gpu", "tasks_per_gpu"):
        if _is_known(resources.get(key)) and not _asks_for_gpus(rule, resources):
            raise UsageError(f"Rule {rule}: {key}={resources[key]!r} without a GPU: add gpu=1, or leave it out.")
    mpi.check(rule, resources, require)
    _check_extra(rule, str(resources.get("slurm_extra") or ""))
    _check_partition(rule, resources, settings)


def check_in_run(rule: str, resources: Mapping[str, object], config: Config) -> None:
    """Refuse resources that Forge cannot pass on to Slurm with these settings, in a run and in a dry run.

    Raises:
        UsageError: names the rule, the resource and its value.
    """
    check(rule, {"forge_network": config.network, **resources}, config.slurm, config.require)


def _cpu_count(rule: str, resources: Mapping[str, object], key: str) -> int | None:
    if resources.get(key) == LEAVE_OUT:
        return LEAVE_OUT
    return whole_number(rule, resources, key)


def _is_known(value: object) -> bool:
    return value not in (None, UNKNOWN_YET, 0, "")


def _asks_for_gpus(rule: str, resources: Mapping[str, object]) -> bool:
    unknown = any(resources.get(key) == UNKNOWN_YET for key in ("gpu", "gpus", "gres", "gpu_model"))
    return unknown or gpu_count(rule, resources) > 0


def _check_partition(rule: str, resources: Mapping[str, object], settings: SlurmSettings) -> None:
    """Name a job that fits into no partition, as far as its resources are known before the run starts."""
    if not settings.partitions or resources.get("slurm_partition") not in (None, ""):
        return
    numbers = {key: value for key, value in resources.items() if isinstance(value, int | float)}
    threads = numbers.get("cpus_per_task") or numbers.get("_cores") or 1
    request = _request(
        rule, resources, numbers.get("runtime"), numbers.get("mem_mb"), int(threads) if threads > 0 else 1
    )
    if not fitting(settings.partitions, request):
        raise UsageError(no_partition(rule, settings.partitions, request))


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


def asks_for(arguments: Iterable[str], *options: str) -> bool:
    """Whether arguments of sbatch have one of these options, in its long or its short form."""
    return any(
        word == option or word.startswith(f"{option}=" if option.startswith("--") else option)
        for word in arguments
        for option in options
    )
