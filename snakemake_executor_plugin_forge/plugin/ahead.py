"""Checks of jobs before anything runs, in a run and in a dry run: impossible resources, names that mean nothing.

See plugin/dry_run.py for who asks in a dry run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from ..backends import registry
from ..backends.slurm import sbatch
from ..run import resource_checks
from ..sandbox.cgroups.ladder import host_memory_bytes
from ..sandbox.gpus import find
from ..spec import misnamed
from ..spec.catalog import with_defaults
from ..spec.errors import UsageError
from ..spec.host import POLLED, Host
from ..spec.job import Config, DefaultResources, Require
from ..spec.resources import (
    FORGE_NUMBERS,
    FORGE_RESOURCES,
    GPU_RESOURCES,
    UNKNOWN_YET,
    all_at_once,
    check_resources,
    without_tiny,
)
from ..spec.units import parse_share
from .config import to_config
from .rule_resources import by_default, declared_at, jobs_to_ask, known_resources, resources_ahead, threads_asked
from .snakemake_internals import is_local
from .software import Deployment


class ResourceRefusal(Protocol):
    """Refuses resources of a rule: :meth:`..run.engine.Engine.check`."""

    def __call__(self, rule: str, resources: dict[str, object], *, stays_here: bool, place: str) -> None: ...


_CHECKED = ("mem_mb", "disk_mb", "runtime", *GPU_RESOURCES, *FORGE_RESOURCES, *FORGE_NUMBERS)
_MOST_CALLS = 200  # jobs of a rule whose functions are called before the run; the others are checked when they start


def warnings(workflow: Any, jobs: Iterable[Any]) -> Iterator[str]:
    """Yield a sentence for each name of a resource that looks like a limit and limits nothing."""
    rules = dict.fromkeys(job.rule for job in jobs)
    asked = {rule.name: (_asked(rule), declared_at(rule)) for rule in rules}
    yield from misnamed.warnings(asked, workflow.global_resources)


class ResourceCheck:
    """Checks the resources of rules before anything runs."""

    def __init__(self, workflow: Any, check: ResourceRefusal, *, remote: bool, defaults: DefaultResources) -> None:
        """Begin.

        Args:
            remote: whether jobs that do not stay here run on hosts that nobody knows yet.
            defaults: the effect of ``--default-resources`` on this host.
        """
        self._workflow, self._check, self._remote, self._defaults = workflow, check, remote, defaults

    def is_here(self, rule: Any) -> bool:
        """Whether a rule's jobs run on this host."""
        return not self._remote or is_local(self._workflow, rule)

    def without(self, rule: Any) -> tuple[str, ...]:
        """The resources of a rule that limit nothing."""
        return by_default(rule) if self._defaults is DefaultResources.SCHEDULE and self.is_here(rule) else ()

    def refusals(self, jobs: Iterable[Any]) -> Iterator[tuple[UsageError, list[Any]]]:
        """Yield an error for each rule that asks for what cannot be had, and the jobs that it is about.

        Functions are called ahead, as far as Snakemake lets them: without inputs that do not exist yet.
        """
        by_rule: dict[Any, list[Any]] = {}
        for job in jobs:
            by_rule.setdefault(job.rule, []).append(job)
        for rule, of_rule in by_rule.items():
            error, refused = self._of_rule(rule, of_rule)
            if error is not None:
                yield error, refused

    def _of_rule(self, rule: Any, jobs: list[Any]) -> tuple[UsageError | None, list[Any]]:
        named: dict[str, object] = {name: UNKNOWN_YET for name in rule.resources if name.startswith("forge_")}
        if (error := self._refusal(rule, named | known_resources(rule))) is not None:
            return error, jobs
        first, refused = None, []
        for job in jobs_to_ask(rule, _CHECKED, jobs[:_MOST_CALLS]) if self.is_here(rule) else ():
            resources: dict[str, object] = {}
            with suppress(Exception):  # Snakemake says so itself, in its own words, when it comes to the job
                resources = resources_ahead(job, _CHECKED)
            if (error := self._refusal(rule, dict(without_tiny(resources)[0]))) is not None:
                first = first or error
                refused.append(job)
        return first, refused

    def _refusal(self, rule: Any, resources: dict[str, object]) -> UsageError | None:
        without = self.without(rule)
        limiting = {name: value for name, value in resources.items() if name not in without}
        try:
            self._check(rule.name, limiting, stays_here=is_local(self._workflow, rule), place=declared_at(rule))
        except UsageError as error:
            return error
        return None


def _asked(rule: Any) -> list[str]:
    """Return the names of a rule's resources, and ``threads`` if it has more than one."""
    return [*rule.resources, *([] if threads_asked(rule) == 1 else ["threads"])]


# -- a dry run ---------------------------------------------------------------------------------------------------------


def check_as_a_run(workflow: Any, settings: Any, jobs: list[Any]) -> None:
    """Refuse what a run would refuse.

    Raises:
        UsageError: for settings, the catalog and resources.
    """
    deployment = Deployment(workflow, settings, lambda _: None)
    config = with_defaults(to_config(settings), deployment.catalog)
    remote = config.backend != registry.LOCAL
    if remote:
        registry.find(config.backend)
    memory = parse_share(config.run_memory, host_memory_bytes(), "--forge-run-memory")
    gpus = find(config.gpus, os.environ)
    host = Host(memory, os.cpu_count() or 1, POLLED, "", "none", "", (), gpus=gpus)
    check = partial(_check, host, config)
    found = ResourceCheck(workflow, check, remote=remote, defaults=config.default_resources).refusals(jobs)
    if errors := [error for error, _ in found]:
        raise all_at_once(errors)
    deployment.check(jobs)


def _check(
    host: Host, config: Config, rule: str, resources: dict[str, object], *, stays_here: bool, place: str
) -> None:
    """Check as a run would, on a host that nobody has probed, and which so may have more than it seems to have."""
    remote = not stays_here and config.backend != registry.LOCAL

    def refuse(rule: str, resources: dict[str, object]) -> None:
        if not remote:
            check_resources(rule, resources, host)
        elif config.backend == "slurm":
            sbatch.check_in_run(rule, resources, config)

    resource_checks.check(rule, resources, refuse, host, Require.NONE, place, remote=remote)
