"""What Slurm's commands are told, and what they say. Pure: text in, values out.

Tabular output with a separator and not JSON: squeue and scontrol of 22.05 have no JSON in Debian's packages, and its
form changes between versions.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from ..errors import UsageError
from ..model import LaunchSpec
from ..units import MEBIBYTE
from .slurm_states import SlurmState, parse_state

KNOWN_RESOURCES = (
    "slurm_partition", "slurm_account", "slurm_extra", "qos", "constraint", "gres", "gpu", "gpus", "gpu_model",
    "mem_mb_per_cpu", "cpus_per_task", "tasks", "nodes",
)  # fmt: skip
"""Beside Snakemake's own; the names of snakemake-executor-plugin-slurm 2.8."""

_REFUSED_RESOURCES = {
    "mpi": "a Forge job is one process tree on one node",
    "cluster": "Forge talks to one cluster, that of SLURM_CONF",
    "clusters": "Forge talks to one cluster, that of SLURM_CONF",
    "slurm_cluster": "Forge talks to one cluster, that of SLURM_CONF",
    "tasks_per_node": "a Forge job is one process tree on one node",
}

_OWN_OPTIONS = (
    "-J", "--job-name", "-o", "--output", "-e", "--error", "-a", "--array", "-D", "--chdir", "--wrap", "--parsable",
    "-W", "--wait", "--test-only", "--comment", "--requeue", "--no-requeue", "--open-mode", "-M", "--clusters",
    "-Q", "--quiet", "-i", "--input",
)  # fmt: skip
"""Options of sbatch that Forge sets itself, or that would break it; for slurm_extra."""

SQUEUE_FORMAT = "%A|%F|%K|%T|%r|%V|%N|%j"
"""Job id, array's id, index, state, reason, time of submission, nodes, name: the only free text is at the end."""

SACCT_FORMAT = "JobIDRaw,JobID,State,Submit,NodeList,JobName"


@dataclass(frozen=True, slots=True)
class Row:
    """One job as a query saw it."""

    job_id: str  # to be given to scancel: 12, or 12_3 in an array
    name: str
    index: int  # in its array; 0 if it is in none
    state: SlurmState | None  # None: one that Forge does not know
    state_text: str
    reason: str
    submitted: str
    nodes: str


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What ``scontrol show config`` says, as far as Forge needs it."""

    name: str
    version: str
    max_array: int  # the largest number of tasks
    kill_wait_seconds: int
    accounting: bool


def parse_squeue(text: str) -> list[Row]:
    """The rows of ``squeue --noheader --array --format SQUEUE_FORMAT``; lines that are none are left out."""
    rows: list[Row] = []
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) != 8 or not fields[0].isdigit():
            continue
        job_id, array_id, indexes, state, reason, submitted, nodes, name = fields
        for index in _indexes(indexes):
            own_id = job_id if index is None else f"{array_id}_{index}"
            rows.append(Row(own_id, name, index or 0, parse_state(state), state, reason, submitted, nodes))
    return rows


def parse_sacct(text: str) -> list[Row]:
    """The rows of ``sacct --parsable2 --noheader --allocations --duplicates --format SACCT_FORMAT``."""
    rows: list[Row] = []
    for line in text.splitlines():
        fields = line.split("|", 5)
        if len(fields) != 6 or not fields[0].isdigit():
            continue
        _, job_id, state, submitted, nodes, name = fields
        _, _, index = job_id.partition("_")
        for number in _indexes(index.strip("[]") or "N/A"):
            own_id = job_id if number is None else f"{job_id.partition('_')[0]}_{number}"
            rows.append(Row(own_id, name, number or 0, parse_state(state), state, "", submitted, nodes))
    return rows


def _indexes(text: str) -> Iterator[int | None]:
    """``7``, ``0-3,5``, ``0-9:2%4`` or, for a job in no array, ``N/A``."""
    if not re.fullmatch(r"\d+(-\d+(:\d+)?)?(,\d+(-\d+(:\d+)?)?)*(%\d+)?", text):
        yield None
        return
    for part in text.partition("%")[0].split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def parse_config(text: str) -> ClusterFacts | None:
    """``scontrol show config``; None if that is something else."""
    values = {}
    for line in text.splitlines():
        key, separator, value = line.partition("=")
        if separator:
            values[key.strip()] = value.strip()
    if "SLURM_VERSION" not in values:
        return None
    return ClusterFacts(
        name=values.get("ClusterName", ""),
        version=values["SLURM_VERSION"],
        max_array=max(1, _first_number(values.get("MaxArraySize", ""), 1001) - 1),
        kill_wait_seconds=_first_number(values.get("KillWait", ""), 30),
        accounting=values.get("AccountingStorageType", "accounting_storage/none") not in
        ("accounting_storage/none", "(null)", ""),
    )  # fmt: skip


def _first_number(text: str, default: int) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else default


def parse_submission(text: str) -> str | None:
    """The id in what ``sbatch --parsable`` printed, "12" or "12;cluster"; None if there is none.

    Sites wrap sbatch, and print greetings before it.
    """
    for line in reversed(text.splitlines()):
        if match := re.fullmatch(r"(\d+)(;\S+)?", line.strip()):
            return match[1]
    return None


_UNREACHABLE = (
    "Unable to contact slurm controller", "Socket timed out", "Connection refused", "Connection timed out",
    "Unable to establish controller machine", "Zero Bytes were transmitted", "Communication connection failure",
    "Slurm temporarily unable to accept job", "Resource temporarily unavailable", "Transport endpoint is not connected",
    "slurm_persist_conn", "Header lengths are longer than data received", "Address already in use",
    "system call interrupted", "Job/step already completing or completed",
)  # fmt: skip


def is_outage(message: str) -> bool:
    """Whether a command failed because the controller did not answer or was busy, so that nothing is known by it."""
    lowered = message.lower()
    return any(text.lower() in lowered for text in _UNREACHABLE)


def refusal(message: str) -> str:
    """The sentence in sbatch's error messages that says why, in one line."""
    lines = [line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in message.splitlines()]
    lines = [line for line in lines if line]
    first = [line for line in lines if not line.startswith("Batch job submission failed")]
    return "; ".join(dict.fromkeys([*first, *lines[-1:]])) or "it gave no reason"


# -- what sbatch is told ---------------------------------------------------------------------------------------------


def adapt(spec: LaunchSpec) -> LaunchSpec:
    """The same with its limits as Slurm's resources say: ``cpus_per_task`` and ``mem_mb_per_cpu`` count there."""
    resources, limits = spec.resources, spec.limits
    cpus = _count(spec.rule, resources, "cpus_per_task")
    if cpus:
        limits = replace(limits, cpus=cpus)
    per_cpu = _count(spec.rule, resources, "mem_mb_per_cpu")
    if per_cpu:
        limits = replace(limits, memory_bytes=per_cpu * limits.cpus * MEBIBYTE)
    variables = {**spec.environment, "FORGE_CPUS": str(limits.cpus)}
    if limits.memory_bytes is not None:
        variables["FORGE_MEMORY_BYTES"] = str(limits.memory_bytes)
    return replace(spec, limits=limits, environment=variables, backend="slurm")


def shape(spec: LaunchSpec) -> tuple[str, ...]:
    """The arguments of sbatch that say what a job needs. Jobs of one shape can share an array.

    Args:
        spec: as from :func:`adapt`.

    Raises:
        UsageError: names the rule, the resource and its value.

    """
    rule, resources, limits = spec.rule, spec.resources, spec.limits
    check(rule, resources)
    arguments = ["--nodes=1", f"--ntasks={_count(rule, resources, 'tasks') or 1}", f"--cpus-per-task={limits.cpus}"]
    if per_cpu := _count(rule, resources, "mem_mb_per_cpu"):
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
    count = _count(rule, resources, "gpu") or _count(rule, resources, "gpus")
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
            near = difflib.get_close_matches(key, KNOWN_RESOURCES, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(KNOWN_RESOURCES)}."
            raise UsageError(f"Rule {rule}: resource {key}={value!r} is not known to Forge. {hint}")
    for key in ("cpus_per_task", "mem_mb_per_cpu", "tasks", "nodes", "gpu", "gpus"):
        _count(rule, resources, key)
    if (nodes := _count(rule, resources, "nodes")) and nodes > 1:
        raise UsageError(f"Rule {rule}: nodes={nodes}: a Forge job is one process tree on one node. Leave it out.")
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


def _count(rule: str, resources: Mapping[str, object], key: str) -> int | None:
    """A resource that is a whole number from 0; None if it is not there or not known yet (``<TBD>``)."""
    value = resources.get(key)
    if value is None or value == "<TBD>":
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError(f"Rule {rule}: {key}={value!r} must be a whole number, 0 or more.")
    return value
