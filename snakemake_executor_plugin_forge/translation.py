"""A job of Snakemake in Forge's words."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from snakemake.io import get_flag_value, is_flagged

from .links import Links
from .model import JobRequest, Product, Target, TargetKind


class Translator:
    """Of the jobs of one run."""

    def __init__(self, workflow: Any, stays_here: Callable[[Any], bool]) -> None:
        """Prepare it.

        Args:
            workflow: Snakemake's.
            stays_here: whether the jobs of a rule are for the submitting host alone.

        """
        self._workflow = workflow
        self._stays_here = stays_here
        self._links = Links(os.path.realpath(os.getcwd()))

    def request(self, job: Any) -> JobRequest:
        """What it wants done."""
        inputs, outputs = _paths(job.input), _paths(job.output)
        place = self._links.place
        logs = _paths([*job.log, *([job.benchmark] if job.benchmark else [])])
        return JobRequest(
            rule=job.rule.name,
            wildcards={k: str(v) for k, v in (job.wildcards_dict or {}).items()},
            attempt=job.attempt,
            threads=job.threads,
            resources=dict(job.resources.items()),
            command=None,
            inputs=inputs,
            outputs=outputs,
            logs=logs,
            benchmark=str(job.benchmark) if job.benchmark else None,
            linked=self._links.targets((*inputs, *outputs, *logs)),
            targets=() if job.is_shadow else tuple(_targets(job, place)),
            products=tuple(_products(job, place)),
            real_inputs=tuple(map(self._links.real, inputs)),
            sources=tuple(self._sources(job)),
            live=tuple(_live(job, place)),
            keep_incomplete=self._workflow.execution_settings.keep_incomplete,
            nested=self._in_container(job),
            interactive=self._workflow.execution_settings.debug or bool(self._workflow.dag.is_edit_notebook_job(job)),
            stays_here=self._stays_here(job.rule),
            together=_is_together(job),
            shadow=bool(job.is_shadow),
            recipe=_recipe(job),
        )

    def with_outputs(self, request: JobRequest, job: Any) -> JobRequest:
        """The same with where its outputs are now: without a shadow directory that it had."""
        place = self._links.place
        return replace(
            request,
            targets=tuple(_targets(job, place)),
            products=tuple(_products(job, place)),
            live=tuple(_live(job, place)),
        )

    def _in_container(self, job: Any) -> bool:
        """Whether Snakemake starts a container for it, which makes mounts of its own."""
        method = self._workflow.deployment_settings.deployment_method
        return bool(job.container_img_url) and any(m.name == "APPTAINER" for m in method)

    def _sources(self, job: Any) -> Iterator[str]:
        """What a rule reads without declaring it."""
        base = job.rule.basedir.get_path_or_uri(secret_free=False) if job.rule.basedir else ""
        for source in (job.rule.script, job.rule.notebook):
            if source and not str(source).startswith(("http:", "https:")):
                yield self._links.real(os.path.join(str(base), str(source)))


def _paths(files: Iterable[Any]) -> tuple[str, ...]:
    """The files of a job as its rule sees them: storage that is not to be retrieved by its name there."""
    return tuple(
        str(file.storage_object.query if file.is_storage and not file.storage_object.retrieve else file)
        for file in files
    )


def _targets(job: Any, place: Callable[[str], str]) -> Iterator[Target]:
    """What a job is to write, and what Snakemake's flags on it mean."""
    for file, name in zip(job.output, _paths(job.output), strict=True):
        ensured = get_flag_value(file, "ensure") if is_flagged(file, "ensure") else {}
        yield Target(
            path=place(name),
            name=name,
            directory=bool(file.is_directory),
            update=is_flagged(file, "update"),
            optional=is_flagged(file, "touch"),
            live=is_flagged(file, "pipe") or is_flagged(file, "service"),
            non_empty=bool(ensured.get("non_empty")),
            checksum=_checksum(ensured, job.wildcards),
        )
    for name in _paths(job.log):
        yield Target(place(name), name, TargetKind.LOG)
    if job.benchmark:
        yield Target(place(str(job.benchmark)), str(job.benchmark), TargetKind.BENCHMARK)


def _checksum(ensured: Any, wildcards: Any) -> str | None:
    """What ``ensure()`` asks for; a function that fails is Snakemake's to report, which looks again."""
    algorithm, digest = ensured.get("checksum_algorithm"), ensured.get("checksum")
    if callable(digest):
        try:
            digest = digest(wildcards)
        except Exception:
            return None
    return f"{algorithm}:{digest}" if algorithm and digest else None


def _is_together(job: Any) -> bool:
    """Whether it is connected with others that run at the same time."""
    if getattr(job, "pipe_group", None) is not None:  # an input named as a string does not know that it is a pipe
        return True
    return any(is_flagged(file, "pipe") or is_flagged(file, "service") for file in (*job.input, *job.output))


def _recipe(job: Any) -> str:
    """What tells whether a job would still do the same with the same inputs: what Snakemake itself compares.

    The command as the rule has it, and not as it is run: a try with more memory may say so in its command.
    """
    rule = job.rule
    code = (rule.shellcmd, getattr(rule, "run_func_src", None), rule.script, rule.notebook, rule.wrapper, rule.cwl)
    params = sorted(map(repr, getattr(job, "non_derived_params", job.params)))
    return "\0".join([*map(str, code), *params])


def _products(job: Any, place: Callable[[str], str]) -> Iterator[Product]:
    """The outputs whose checksums go on record: what nobody has used up when the job ends."""
    shadow = os.path.realpath(job.shadow_dir) if job.shadow_dir else None
    for file, name in zip(job.output, _paths(job.output), strict=True):
        if not is_flagged(file, "pipe") and not is_flagged(file, "service"):
            path = place(name) if shadow is None else os.path.normpath(os.path.join(shadow, name))
            yield Product(name, path, is_flagged(file, "temp") or bool(file.is_storage))


def _live(job: Any, place: Callable[[str], str]) -> Iterator[str]:
    """What others use while a job runs: its shadow directory, FIFOs, and where services make their files."""
    if job.shadow_dir:
        yield os.path.realpath(job.shadow_dir)
    for file in (*job.input, *job.output):
        if is_flagged(file, "pipe"):
            yield place(str(file))
        elif is_flagged(file, "service"):
            yield os.path.dirname(place(str(file)))
