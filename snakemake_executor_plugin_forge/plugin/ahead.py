"""Checks of jobs before anything runs, in a run and in a dry run: impossible resources, names that mean nothing.

See plugin/dry_run.py for who asks in a dry run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from ..backends import registry
from ..backends.slurm import sbatch
from ..sandbox.cgroups.ladder import host_memory_bytes
from ..sandbox.gpus import find
from ..spec import misnamed
from ..spec.catalog import with_defaults
from ..spec.errors import UsageError, located
from ..spec.host import POLLED, Host
from ..spec.job import Require
from ..spec.resources import (
    FORGE_NUMBERS,
    FORGE_RESOURCES,
    GPU_RESOURCES,
    UNKNOWN_YET,
    all_at_once,
    check_required,
    check_resources,
    without_tiny,
)
from ..spec.units import parse_share
from .config import to_config
from .snakemake_internals import declared_at, is_local, jobs_to_ask, known_resources, resources_ahead
from .software import Deployment

Check = Callable[[str, dict[str, object], bool, str], None]
"""Refuses resources of a rule; given whether its jobs stay on this host, and the file and line of the rule."""

_CHECKED = ("mem_mb", "disk_mb", "runtime", *GPU_RESOURCES, *FORGE_RESOURCES, *FORGE_NUMBERS)
_MOST_CALLS = 200  # jobs of a rule whose functions are called before the run; the others are checked when they start


def warnings(workflow: Any, jobs: Iterable[Any]) -> Iterator[str]:
    """Yield a sentence for each name of a resource that looks like a limit and limits nothing."""
    rules = dict.fromkeys(job.rule for job in jobs)
    asked = {rule.name: (_asked(rule), declared_at(rule)) for rule in rules}
    yield from misnamed.warnings(asked, workflow.global_resources)


def refusals(workflow: Any, jobs: Iterable[Any], check: Check, *, remote: bool) -> Iterator[tuple[UsageError, Any]]:
    """Yield an error for each rule that asks for what cannot be had, and the jobs that it is about.

    Functions are called ahead, as far as Snakemake lets them: without inputs that do not exist yet.

    Args:
        remote: whether jobs that do not stay here run on hosts that nobody knows yet.
    """
    by_rule: dict[Any, list[Any]] = {}
    for job in jobs:
        by_rule.setdefault(job.rule, []).append(job)
    for rule, of_rule in by_rule.items():
        error, refused = _check_rule(workflow, rule, of_rule, check, remote)
        if error is not None:
            yield error, refused


def _check_rule(
    workflow: Any, rule: Any, jobs: list[Any], check: Check, remote: bool
) -> tuple[UsageError | None, list[Any]]:
    here, place = is_local(workflow, rule), declared_at(rule)
    named = {name: UNKNOWN_YET for name in rule.resources if name.startswith("forge_")}
    try:
        check(rule.name, named | known_resources(rule), here, place)
    except UsageError as error:
        return error, jobs
    first, refused = None, []
    if here or not remote:
        for job in jobs_to_ask(rule, _CHECKED, jobs[:_MOST_CALLS]):
            resources: dict[str, object] = {}
            with suppress(Exception):  # Snakemake says so itself, in its own words, when it comes to the job
                resources = resources_ahead(job, _CHECKED)
            try:
                check(rule.name, dict(without_tiny(resources)[0]), here, place)
            except UsageError as error:
                first = first or error
                refused.append(job)
    return first, refused


def _asked(rule: Any) -> list[str]:
    """Return the names of a rule's resources, and ``threads`` if it has more than one."""
    return [*rule.resources, *([] if known_resources(rule).get("_cores") == 1 else ["threads"])]


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
    check = partial(_check, host, config.backend)
    if errors := [error for error, _ in refusals(workflow, jobs, check, remote=remote)]:
        raise all_at_once(errors)
    deployment.check(jobs)


def _check(host: Host, backend: str, rule: str, resources: dict[str, object], here: bool, place: str) -> None:
    try:
        if here or backend == registry.LOCAL:
            check_resources(rule, resources, host)
        elif backend == "slurm":
            sbatch.check(rule, resources)
        check_required(rule, resources, Require.NONE, host)
    except UsageError as error:
        raise located(error, rule, place) from None
