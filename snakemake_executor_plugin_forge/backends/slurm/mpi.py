"""MPI jobs: the launcher (``srun``, ``mpirun``) runs in Forge's sandbox, on the first node; its ranks do not.

Slurm's daemons start the ranks of ``srun``, on all nodes, and those of ``mpirun`` on all nodes but the first. So only
Slurm's cgroups hold them. They see the real file system, in which they write in place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from ...spec.errors import RequirementError, UsageError
from ...spec.file_policy import PRIVATE_DIRECTORIES, TEMPORARY_VARIABLES, in_place
from ...spec.job import LaunchSpec, Network, Require
from ...spec.resources import UNKNOWN_YET, whole_number
from ...spec.units import MEBIBYTE
from ...spec.verdict import Verdict

_MUNGE = "/run/munge"
"""The default directory of munged's socket: munged(8)."""


def is_mpi(resources: Mapping[str, object]) -> bool:
    """Whether a rule says, as for snakemake-executor-plugin-slurm, that its command starts ranks: ``mpi="srun"``."""
    return resources.get("mpi") not in (None, False, 0, "")


def check(rule: str, resources: Mapping[str, object], require: Require) -> None:
    """Refuse numbers of tasks and nodes that contradict each other, and MPI where it cannot be had.

    Args:
        resources: with the ``forge_network`` of the run, unless the rule has its own.

    Raises:
        RequirementError: for ``--forge-require full``, which no rank could meet.
        UsageError: names the rule, the resource and its value.
    """
    nodes, tasks, per_node = (whole_number(rule, resources, key) for key in ("nodes", "tasks", "tasks_per_node"))
    if tasks and per_node:
        raise UsageError(f"Rule {rule}: tasks={tasks} and tasks_per_node={per_node}: only one of them. Leave one out.")
    if not is_mpi(resources):
        if nodes and nodes > 1:
            raise UsageError(
                f"Rule {rule}: nodes={nodes} without mpi: only the first node would have anything to do. Say what "
                'starts the ranks, mpi="srun" (and {resources.mpi} in the command) with tasks or tasks_per_node, or '
                "leave it out."
            )
        return
    mpi = resources["mpi"]
    if not any(resources.get(key) for key in ("tasks", "tasks_per_node", "tasks_per_gpu")):
        raise UsageError(f"Rule {rule}: mpi={mpi!r} needs tasks or tasks_per_node: the number of ranks.")
    if str(resources.get("forge_network")) == Network.OFF:
        raise UsageError(
            f"Rule {rule}: mpi={mpi!r} with forge_network='off' (of the rule, or --forge-network of the run): its "
            "ranks talk over the network. Give the rule forge_network='on'."
        )
    if require is Require.FULL and mpi != UNKNOWN_YET:
        raise RequirementError(
            f"--forge-require=full: Rule {rule}: mpi={mpi!r}: Slurm starts the ranks, out of Forge's sandbox. "
            "Use --forge-require limits, or leave mpi out."
        )


def task_arguments(rule: str, resources: Mapping[str, object]) -> list[str]:
    """The arguments of sbatch for nodes and tasks, the latter last; Slurm counts the nodes of MPI jobs itself."""
    nodes, tasks, per_node = (whole_number(rule, resources, key) for key in ("nodes", "tasks", "tasks_per_node"))
    arguments = [f"--nodes={nodes or 1}"] if nodes or not is_mpi(resources) else []
    return [*arguments, f"--ntasks-per-node={per_node}" if per_node else f"--ntasks={tasks or 1}"]


def task_count(rule: str, resources: Mapping[str, object]) -> int | None:
    """The ranks of a rule; None if it starts none, 0 if their number is Slurm's choice or that of its GPUs."""
    if not is_mpi(resources):
        return None
    nodes, tasks, per_node = (whole_number(rule, resources, key) for key in ("nodes", "tasks", "tasks_per_node"))
    return tasks or (per_node or 0) * (nodes or 1)


def fitted(spec: LaunchSpec, environment: Mapping[str, str]) -> LaunchSpec:
    """Open the sandbox of an MPI job for its launcher, on the first node; other jobs stay as they are.

    The launcher finds Slurm's configuration and munge's socket. Its processors and memory are those of all ranks on the
    node. Outputs are written in place, unless the rule has its own ``forge_files``.

    Args:
        environment: of the batch script: sbatch(1), srun(1).
    """
    if not is_mpi(spec.resources):
        return spec
    limits, variables = spec.limits, {}
    cpus = environment.get("SLURM_CPUS_ON_NODE", "")
    if cpus.isdigit() and int(cpus) > limits.cpus:
        per_cpu = whole_number(spec.rule, spec.resources, "mem_mb_per_cpu")
        memory = per_cpu * int(cpus) * MEBIBYTE if per_cpu else limits.memory_bytes
        limits = replace(limits, cpus=int(cpus), memory_bytes=memory)
    if "SLURM_KILL_BAD_EXIT" not in environment:  # by default the other ranks wait for one that has failed
        variables["SLURM_KILL_BAD_EXIT"] = "1"
    if "SLURM_CPUS_PER_TASK" in environment and "SRUN_CPUS_PER_TASK" not in environment:  # srun needs it since 22.05
        variables["SRUN_CPUS_PER_TASK"] = environment["SLURM_CPUS_PER_TASK"]
    if spec.files.staged and not spec.resources.get("forge_files"):
        isolation = replace(spec.isolation, not_enforced=(*spec.isolation.not_enforced, "files"))
        spec = replace(spec, files=in_place(spec.files), isolation=isolation)
    exposed = tuple(dict.fromkeys((*spec.exposed, *_doors(environment.get("SLURM_CONF", "")))))
    return replace(spec, limits=limits, exposed=exposed, environment={**spec.environment, **variables})


def with_shared_tmp(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an MPI job, whose ranks inherit them: /tmp is a directory on all nodes, ``$TMPDIR`` is not."""
    return {**environment, **dict.fromkeys(TEMPORARY_VARIABLES, PRIVATE_DIRECTORIES[0])}


def noted(verdict: Verdict, spec: LaunchSpec, environment: Mapping[str, str]) -> Verdict:
    """Say in the verdict of an MPI job what held its ranks."""
    if not is_mpi(spec.resources):
        return verdict
    nodes = environment.get("SLURM_JOB_NODELIST", "")
    ranks = environment.get("SLURM_NTASKS") or environment.get("SLURM_NPROCS", "")
    facts = {"ranks": ranks, "ranks_on": nodes, "ranks_held_by": "Slurm's cgroups"}
    note = (
        f"MPI on {nodes}: Forge's sandbox, limits and usage are those of the launcher on the first node; "
        "the ranks that Slurm started had Slurm's cgroups only"
    )
    return replace(verdict, evidence={**verdict.evidence, **facts}, notes=(*verdict.notes, note))


def _doors(configuration: str) -> list[str]:
    """The directories of Slurm's configuration and of munge's socket."""
    if not configuration:
        return [path for path in (_MUNGE,) if os.path.isdir(path)]
    socket, text = f"{_MUNGE}/munge.socket.2", ""
    with suppress(OSError), open(configuration, encoding="utf-8", errors="replace") as file:
        text = file.read()
    if found := re.search(r"^\s*AuthInfo\s*=.*?\bsocket=([^\s,;#]+)", text, re.MULTILINE | re.IGNORECASE):
        socket = found[1]  # slurm.conf(5)
    return [path for path in map(os.path.dirname, (os.path.realpath(configuration), socket)) if os.path.isdir(path)]
