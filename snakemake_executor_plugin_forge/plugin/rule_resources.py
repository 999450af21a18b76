"""The resources of rules, and of jobs before they run. snakemake_internals.py lists the parts of Snakemake."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Iterable
from typing import Any

_IN_MB = ("mem", "disk")  # with mem, mem_mb is declared as well


def known_resources(rule: Any) -> dict[str, object]:
    """The resources of a rule that are known without a job: plain values, no functions.

    A number is at most what ``--resources`` says, as Snakemake gives it to the job.
    """
    known: dict[str, object] = {}
    for name, resource in rule.resources.items():
        if not _is_function(resource):
            value, most = _value(resource), _most(rule.workflow, name)
            known[name] = min(value, most) if isinstance(value, int) and isinstance(most, int) else value
    return known


def _most(workflow: Any, name: str) -> Any:
    """Return the amount of a resource that the jobs of a run may have together; None without a limit.

    A dry run with ``-j`` has one core in Snakemake, and the value of ``-j`` elsewhere: snakemake.cli.args_to_api().
    """
    settings = workflow.resource_settings
    if name == "_cores" and workflow.dryrun and settings.cores == 1 and settings.nodes:
        return settings.nodes
    most = workflow.global_resources.get(name)
    return getattr(most, "value", most)


def jobs_to_ask(rule: Any, names: Collection[str], jobs: Iterable[Any]) -> list[Any]:
    """The jobs of a rule for which functions give some of these resources, and can be called before the run.

    A function that looks at the inputs cannot, where the run makes them: what is there now may be an old version.
    """
    functions = [f for name, resource in rule.resources.items() if name in names and (f := _function(resource))]
    if not any("input" in inspect.signature(function).parameters for function in functions):
        return list(jobs) if functions else []
    dag = rule.workflow.dag
    return [job for job in jobs if not any(map(dag.needrun, dag.dependencies[job]))]


def resources_ahead(job: Any, names: Collection[str]) -> dict[str, object]:
    """Some resources of a job, before the run; Snakemake's exceptions are its own."""
    others = {name for name in job.rule.resources if name not in names and name != "_cores"}
    return dict(job.rule.expand_resources(job.wildcards_dict, job.input, job.attempt, skip_evaluation=others).items())


def _is_function(resource: Any) -> bool:
    return bool(resource.is_evaluable()) if hasattr(resource, "is_evaluable") else callable(resource)


def _function(resource: Any) -> Any:
    return (getattr(resource, "_evaluator", None) or resource) if _is_function(resource) else None


def _value(resource: Any) -> Any:
    return getattr(resource, "value", resource)


def threads_asked(rule: Any) -> int | None:
    """The threads of a rule before Snakemake scales them down to ``--cores``; None if a function gives them."""
    resource = rule.resources["_cores"]
    return None if _is_function(resource) else int(_value(resource))


def by_default(rule: Any) -> tuple[str, ...]:
    """The resources that a rule has from ``--default-resources``, and not of its own or from ``--set-resources``."""
    settings = rule.workflow.resource_settings
    given = settings.default_resources or {}
    declared: Any = getattr(rule.ruleinfo, "resources", None) or ((), {})
    own = {_standard(name) for name in (*declared[1], *settings.overwrite_resources.get(rule.name, ()))}
    names = dict.fromkeys(map(_standard, getattr(given, "parsed", given)))
    return tuple(name for name in names if name not in own and name != "tmpdir")


def _standard(name: str) -> str:
    stem = name.removesuffix("_mb").removesuffix("_mib")
    return f"{stem}_mb" if stem in _IN_MB else name


def declared_at(rule: Any) -> str:
    """File and line of a rule, relative to the working directory if it is in it."""
    line = rule.workflow.linemaps.get(rule.snakefile, {}).get(rule.lineno, rule.lineno)
    return f"{str(rule.snakefile).removeprefix(f'{os.getcwd()}/')}:{line}"
