"""The groups of a workflow (``group:``, ``--groups``, ``--group-components``), for a backend that runs each as one.

Snakemake itself takes no notice of them, because Forge's executor runs jobs as the local one does. So they are found
here as Snakemake finds them in ``DAG.update_groups``: connected jobs with the same id. Pipes and services connect jobs
that need no id. Snakemake's own function sums the resources.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..backends.slurm import sbatch
from ..spec.errors import UsageError
from ..spec.job import Config
from ..spec.job_group import JobGroup
from ..spec.resources import all_at_once, whole_number
from ..spec.units import MEBIBYTE
from .rule_resources import declared_at
from .snakemake_internals import group_id, is_grouped, sum_of_group

_OWN_VALUES = ("forge_", "tmpdir")
"""Beginnings of resources that are a job's own affair, whatever else runs in its allocation."""
_ONE_NODE = ("mpi", "tasks_per_node")
_OF_ONE_MEMBER = ("cpus_per_task", "cpus_per_gpu", "mem_mb_per_cpu", "tasks", "nodes", "tasks_per_gpu")
"""Resources that say how one member is divided: its cores and memory are summed, and it has one sandbox."""


@dataclass(frozen=True, slots=True)
class Asks:
    """The resources that a job asks for."""

    resources: Mapping[str, object]
    attempt: int  # in which it does
    complete: bool  # False: more will be known when its inputs are there
    leaves_out_cpus: bool  # of the options of sbatch


@dataclass(frozen=True, slots=True)
class Member:
    """The attributes of a job that Snakemake's sums read."""

    resources: Mapping[str, object]
    pipe_group: str | None


class JobGroups:
    """The groups of the DAG as it is: found at the start, and again for jobs that a checkpoint has made."""

    def __init__(self, workflow: Any, runs_elsewhere: Callable[[Any], bool], config: Callable[[Any], Config]) -> None:
        """Find nothing yet.

        Args:
            runs_elsewhere: whether a job runs on another host than this one.
            config: the settings for a job, with what its runtime says.
        """
        self._workflow, self._runs_elsewhere, self._config = workflow, runs_elsewhere, config
        self._has_ids = is_grouped(workflow)
        self._known: set[Any] = set()
        self._groups: dict[Any, JobGroup] = {}
        self._members: dict[str, list[Any]] = {}  # by key
        self._asks: dict[Any, Asks] = {}
        self._count = 0

    def of(self, job: Any) -> JobGroup | None:
        """Return the group of a job."""
        return self._groups.get(job)

    def update(self, jobs: Iterable[Any]) -> None:
        """Find the groups again, if one of these jobs is new, and sum those again of which more is known now.

        Args:
            jobs: jobs and pipe groups that are about to start.

        Raises:
            UsageError: if members ask for what one job of the scheduler cannot have. They have no group; others do.
        """
        members = [member for job in jobs for member in (job if job.is_group() else (job,))]
        if not (self._has_ids or any(member.pipe_group for member in members)):
            return
        errors = []
        changed = self._with_more_known(members)
        if not self._known.issuperset(members):
            changed |= self._found(members)
        for key, (name, component) in changed.items():
            try:
                found = self._by_member(key, name, component)
            except UsageError as error:
                errors.append(error)
                continue
            self._members[key] = component
            self._groups |= found
        if errors:
            raise all_at_once(errors)

    def _by_member(self, key: str, name: str, component: list[Any]) -> dict[Any, JobGroup]:
        """Return the group for each of its members, with the part that pipes connect.

        Raises:
            UsageError: if it cannot be one job of the scheduler.
        """
        group = JobGroup(key, name, len(component), self._resources(name, component))
        found = dict.fromkeys(component, group)
        for pipe in {pipe for job in component if (pipe := _pipe_id(job)) is not None}:
            part = [job for job in component if _pipe_id(job) == pipe]
            if len(part) < len(component):
                piped = JobGroup(f"{key} {pipe}", name, len(part), self._resources(name, part))
                found |= dict.fromkeys(part, replace(group, piped=piped))
        return found

    def _found(self, members: list[Any]) -> dict[str, tuple[str, list[Any]]]:
        """Return the groups that are new or have other members: key to id and members."""
        dag = self._workflow.dag
        needed = [job for job in dag.needrun_jobs() if not job.is_norun and self._runs_elsewhere(job)]
        self._known = {*self._known, *needed, *members}
        # The DAG forgets finished ones at a checkpoint. They connect the others, and a group counts them.
        finished = [job for job in self._groups if dag.finished(job) and not dag.needrun(job)]
        found = {}
        for name, component in self._components([*finished, *needed]):
            known = next((self._groups[job] for job in component if job in self._groups), None)
            if known is None or known.members != len(component):
                is_new = known is None or known.key in found
                self._count += is_new
                found[f"g{self._count}" if known is None or is_new else known.key] = name, component
        return found

    def _with_more_known(self, members: list[Any]) -> dict[str, tuple[str, list[Any]]]:
        """Return the groups to sum again: of jobs whose inputs are there now, or that ask for more in a new attempt."""
        found = {}
        for job in members:
            asked, group = self._asks.get(job), self._groups.get(job)
            if asked is not None and group is not None and (asked.attempt != job.attempt or not asked.complete):
                del self._asks[job]
                found[group.key] = group.name, self._members[group.key]
        return found

    def _components(self, jobs: list[Any]) -> Iterator[tuple[str, list[Any]]]:
        """Yield the id and the members of each group: connected jobs with one id, several such if the user says so."""
        ids, parents = _ids(jobs, has_ids=self._has_ids)
        roots = {job: job for job in ids}

        def root(job: Any) -> Any:
            while roots[job] is not job:
                roots[job] = job = roots[roots[job]]
            return job

        for job in ids:
            for other in self._workflow.dag.dependencies[job]:
                if ids.get(other) == ids[job]:
                    roots[root(other)] = root(job)
        components: dict[Any, list[Any]] = {}
        for job in ids:
            components.setdefault(root(job), []).append(job)
        by_id: dict[str, list[list[Any]]] = {}
        for component in components.values():
            by_id.setdefault(ids[component[0]], []).append(component)
        spans: Mapping[str, int] = self._workflow.group_settings.group_components
        for name, found in by_id.items():
            span = max(1, spans.get(parents.get(name, name), 1))
            for start in range(0, len(found), span):
                yield name, [job for component in found[start : start + span] for job in component]

    # -- resources ---------------------------------------------------------------------------------------------------

    def _resources(self, name: str, jobs: list[Any]) -> dict[str, object]:
        """Return what a group needs: side by side within a layer of the DAG, one layer after the other.

        Raises:
            UsageError: if that cannot be one job of the scheduler.
        """
        for job in jobs:
            if job not in self._asks:
                self._asks[job] = self._own(name, job)
        own = {job: self._asks[job].resources for job in jobs}
        words: dict[str, object] = {}
        for job in jobs:
            for key, value in own[job].items():
                if isinstance(value, str) and words.setdefault(key, value) != value:
                    raise UsageError(
                        f"Group {name}: its jobs ask for {key}={words[key]!r} and {key}={value!r}, and are one job of "
                        f"the scheduler. Give them one value, or rule {job.rule.name} ({declared_at(job.rule)}) "
                        "another group."
                    )
        numbers = {
            job: Member({key: value for key, value in own[job].items() if not isinstance(value, str)}, _pipe_id(job))
            for job in jobs
        }
        if any(self._asks[job].leaves_out_cpus for job in jobs):  # a partition that refuses the option for one of them
            words["cpus_per_task"] = sbatch.LEAVE_OUT
        try:
            return {**sum_of_group(self._workflow, jobs, numbers), **words}
        except ValueError as error:
            raise UsageError(f"Group {name}: its resources cannot be summed: {error}") from None

    def _own(self, name: str, job: Any) -> Asks:
        """Return what one member asks for, in the names that its backend sums: cores, memory in MB, minutes."""
        expanded, complete = _expanded(job)
        resources = {key: value for key, value in expanded.items() if not key.startswith(_OWN_VALUES)}
        for key in _ONE_NODE:
            if resources.get(key) not in (None, "", False):
                raise UsageError(
                    f"Group {name}: rule {job.rule.name} ({declared_at(job.rule)}) asks for {key}, and a group runs on "
                    "one node. Give the rule no group."
                )
        config, threads = self._config(job), whole_number(job.rule.name, resources, "_cores") or 1
        leaves_out = sbatch.leaves_out_cpus(job.rule.name, resources)
        resources["_cores"] = cores = sbatch.cpus_of(job.rule.name, resources, threads)
        per_cpu = whole_number(job.rule.name, resources, "mem_mb_per_cpu")
        if per_cpu is not None:
            resources["mem_mb"] = per_cpu * cores
        if config.memory_bytes is not None:
            resources.setdefault("mem_mb", math.ceil(config.memory_bytes / MEBIBYTE))
        if config.wall_seconds is not None:
            resources.setdefault("runtime", math.ceil(config.wall_seconds / 60))
        for key in _OF_ONE_MEMBER:
            resources.pop(key, None)
        return Asks(resources, job.attempt, complete, leaves_out)


def _expanded(job: Any) -> tuple[dict[str, object], bool]:
    """Return the numbers and words that a job asks for, as far as they are known, and whether that is all of them.

    What is a function of inputs is known when these are there. Not from ``job.resources``, which keeps what it could
    not evaluate.
    """
    found: dict[str, object] = {"_cores": 1}
    evaluated = False
    with suppress(Exception):  # Snakemake says so itself, in its own words, when it comes to the job
        found = job.rule.expand_resources(job.wildcards_dict, job.input, job.attempt, skip_evaluation={"tmpdir"})
        evaluated = True
    values = {key: math.ceil(value) if isinstance(value, float) else value for key, value in found.items()}
    known: dict[str, object] = {
        key: value for key, value in values.items()
        if isinstance(value, int | str) and not _is_unknown(value) and key not in ("mem", "disk", "_nodes")
    }  # fmt: skip
    return known, evaluated and not any(_is_unknown(value) for key, value in values.items() if key != "tmpdir")


def _is_unknown(value: object) -> bool:
    return type(value).__name__ == "TBDString"


def _pipe_id(job: Any) -> str | None:
    return None if job.pipe_group is None else str(job.pipe_group.id)


def _ids(jobs: list[Any], *, has_ids: bool) -> tuple[dict[Any, str], dict[str, str]]:
    """Return the ids of jobs that have one, and for ids with wildcards what the rule says.

    Jobs that pipes connect have one id: of the one with an id, if there is one.
    """
    ids: dict[Any, str] = {}
    parents: dict[str, str] = {}
    for job in jobs if has_ids else ():
        found, parent = group_id(job)
        if found is not None:
            ids[job] = found
            parents[found] = parent
    pipes: dict[str, list[Any]] = {}
    for job in jobs:
        if (pipe := _pipe_id(job)) is not None:
            pipes.setdefault(pipe, []).append(job)
    for pipe, members in pipes.items():
        given = next((ids[job] for job in members if job in ids), pipe)
        ids |= dict.fromkeys(members, given)
    return ids, parents
