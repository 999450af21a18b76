"""The settings of the Slurm backend, and the choice of a partition by its limits. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import UsageError, near_miss
from .units import parse_seconds

AUTO = "auto"

MOST_PACKED = 1000
"""The largest number of jobs that one allocation works through."""


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    """The ``--forge-slurm-…`` flags, checked."""

    pack: int | None = None  # jobs in one allocation; 1: one each; None: by what records say about the rule's time
    account: str = ""  # of jobs without slurm_account; "": the cluster's default; AUTO: the user's
    qos: str = ""
    reservation: str = ""
    requeue: bool = True
    exclude: tuple[str, ...] | None = None  # nodes, as sbatch takes them; None: those that failed jobs of this run
    job_prefix: str = ""
    partitions: tuple[Partition, ...] = ()


@dataclass(frozen=True, slots=True)
class Partition:
    """The limits of one job in a partition; None: no limit, or none is known."""

    name: str
    max_runtime: float | None = None  # minutes
    max_mem_mb: float | None = None  # on one node
    max_threads: float | None = None  # on one node
    max_gpu: float | None = 0
    max_mpi_tasks: float | None = None  # of a job with mpi
    supports_mpi: bool = True
    available_gpu_models: tuple[str, ...] = ()  # (): any
    available_constraints: tuple[str, ...] = ()  # (): any


@dataclass(frozen=True, slots=True)
class Request:
    """The demands of a job that choose its partition."""

    runtime: float | None  # minutes; None: the partition's default
    mem_mb: float | None
    threads: int
    gpus: int
    gpu_model: str
    constraint: str
    mpi_tasks: int | None = None  # None: it starts no ranks; 0: nobody knows how many


_LIMITS = ("max_runtime", "max_mem_mb", "max_threads", "max_gpu")
_LISTS = ("available_gpu_models", "available_constraints")
_TIME = re.compile(r"(?:([0-9]{1,6})-)?([0-9]{1,6})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?")


def fitting(partitions: Iterable[Partition], request: Request) -> tuple[str, ...]:
    """The partitions for a job: those with the tightest limits that it fits into; () if it fits into none.

    A job without GPUs gets a partition that has some only if no other fits. Partitions of the same limits are a tie,
    and Slurm itself decides between them.
    """
    fit = [partition for partition in partitions if not lacking(partition, request)]
    if not fit:
        return ()
    ranks = {partition.name: _rank(partition, request) for partition in fit}
    best = min(ranks.values())
    return tuple(partition.name for partition in fit if ranks[partition.name] == best)


def _rank(partition: Partition, request: Request) -> tuple[float, ...]:
    """Return the surplus of a partition over the demands of a job: the smaller, the better."""
    gpus = float(bool(partition.max_gpu != 0 and request.gpus == 0))
    limits = (partition.max_runtime, partition.max_mem_mb, partition.max_threads, partition.max_gpu)
    return (gpus, *(float("inf") if limit is None else limit for limit in limits))


def lacking(partition: Partition, request: Request) -> list[str]:
    """Return the demands of a job that a partition does not allow, in words; [] if it fits."""
    asked = {
        "max_runtime": ("runtime", request.runtime),
        "max_mem_mb": ("mem_mb", request.mem_mb),
        "max_threads": ("threads", request.threads),
        "max_gpu": ("gpu", request.gpus),
        "max_mpi_tasks": ("tasks", request.mpi_tasks),
    }
    lack = ["no mpi"] if request.mpi_tasks is not None and not partition.supports_mpi else []
    for key, (name, value) in asked.items():
        limit = getattr(partition, key)
        if limit is not None and value is not None and value > limit:
            lack.append(f"at most {name}={limit:.15g}")
    models, constraints = partition.available_gpu_models, partition.available_constraints
    if request.gpus and request.gpu_model and models and request.gpu_model not in models:
        lack.append(f"gpu_model {' or '.join(models)}")
    # sbatch(1), --constraint: features joined by &, |, [] and counts; a | is for Slurm itself to judge
    needed = [] if "|" in request.constraint else re.findall(r"[\w.-]+(?![\w.-]*\])", request.constraint)
    if constraints and (absent := [feature for feature in needed if feature not in constraints]):
        lack.append(f"no feature {', '.join(absent)}")
    return lack


def no_partition(rule: str, partitions: Iterable[Partition], request: Request) -> str:
    """Say why no partition takes a job, and what each would take."""
    each = "; ".join(f"{partition.name}: {', '.join(lacking(partition, request))}" for partition in partitions)
    asked = [f"threads={request.threads}"]
    asked += [f"runtime={request.runtime:.15g}"] if request.runtime is not None else []
    asked += [f"mem_mb={request.mem_mb:.15g}"] if request.mem_mb is not None else []
    asked += [f"gpu={request.gpus}"] if request.gpus else []
    asked += [f"mpi tasks={request.mpi_tasks}"] if request.mpi_tasks is not None else []
    return (
        f"Rule {rule}: {', '.join(asked)} fits into no partition of --forge-slurm-partitions ({each}). Lower what the "
        "rule asks for, or name its partition: slurm_partition."
    )


def read_partitions(data: object, where: str) -> tuple[Partition, ...]:
    """Check the content of a file of partitions: ``{partitions: {name: {max_runtime: …}}}``.

    Args:
        where: names the file in messages.

    Raises:
        UsageError: names the file, the key and its value.
    """
    partitions = data.get("partitions") if isinstance(data, Mapping) else None
    if not isinstance(partitions, Mapping) or not partitions:
        raise UsageError(
            f"{where}: there must be a mapping 'partitions' of names to limits. "
            "A file to begin with: snakemake-forge slurm partitions"
        )
    return tuple(
        _read_partition(str(name), limits, f"{where}: partitions.{name}") for name, limits in partitions.items()
    )


def _read_partition(name: str, limits: object, where: str) -> Partition:
    if limits is None:
        limits = {}
    if not re.fullmatch(r"[\w.-]+", name):
        raise UsageError(f"{where}: {name!r} is no name of a partition.")
    if not isinstance(limits, Mapping):
        raise UsageError(f"{where}={limits!r}: must be a mapping of limits.")
    known = [field.name for field in fields(Partition) if field.name != "name"]
    found: dict[str, Any] = {}
    for key, value in limits.items():
        if key not in known:
            raise UsageError(f"{where}.{key}={value!r}: not known to Forge.{near_miss(str(key), known)}")
        found[key] = _read_value(key, value, f"{where}.{key}")
    return Partition(name, **found)


def _read_value(key: str, value: object, where: str) -> object:
    if key == "supports_mpi":
        if not isinstance(value, bool):
            raise UsageError(f"{where}={value!r}: must be true or false.")
        return value
    return _read_list(value, where) if key in _LISTS else _read_limit(key, value, where)


def _read_limit(key: str, value: object, where: str) -> float | None:
    if value is None or str(value).lower() in ("unlimited", "infinite", ".inf", "inf"):
        return None
    if key == "max_runtime" and isinstance(value, str):
        minutes = minutes_of(value)
        return minutes if minutes is not None else parse_seconds(value, where) / 60
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        unit = {"max_runtime": ", minutes or d-hh:mm:ss", "max_mem_mb": ", MB"}.get(key, "")
        raise UsageError(f"{where}={value!r}: must be a number, 0 or more{unit}.")
    return float(value)


def _read_list(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part for part in re.split(r"[,\s]+", value) if part)
    if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
        raise UsageError(f"{where}={value!r}: must be a list of names.")
    return tuple(value)


def minutes_of(text: str) -> float | None:
    """Minutes in Slurm's forms of a time limit: minutes, mm:ss, hh:mm:ss, d-hh, d-hh:mm, d-hh:mm:ss: sbatch(1)."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is not None:
        return int(days) * 1440 + first * 60 + second + third / 60
    if parts[2] is not None:
        return first * 60 + second + third / 60
    return first + second / 60
