"""A job of Snakemake in Forge's words."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from snakemake.io import get_flag_value, is_flagged

from ..spec.job import JobRequest, Product, Target, TargetKind
from ..spec.job_group import JobGroup
from .rule_resources import by_default, declared_at, threads_asked
from .snakemake_internals import SCRIPTS, code_of, has_script, source_directory
from .symlinks import Links


class Translator:
    """Translates the jobs of one run into Forge's words."""

    def __init__(
        self,
        workflow: Any,
        stays_here: Callable[[Any], bool],
        without: Callable[[Any], Collection[str]],
        group: Callable[[Any], JobGroup | None],
    ) -> None:
        """Make a translator.

        Args:
            stays_here: whether the jobs of a rule run on the submitting host only.
            without: the resources of a rule that limit nothing.
            group: the group of a job, if a backend runs that as one.
        """
        self._group = group
        self._workflow = workflow
        self._without = without
        self._stays_here = stays_here
        self._links = Links(os.path.realpath(os.getcwd()))

    def request(self, job: Any) -> JobRequest:
        """Translate a job that Snakemake has not prepared yet, or that it has."""
        asked = time.monotonic()
        inputs, outputs = _paths(job.input), _paths(job.output)
        place = self._links.place
        logs = _paths([*job.log, *([job.benchmark] if job.benchmark else [])])
        return JobRequest(
            rule=job.rule.name,
            wildcards={k: str(v) for k, v in (job.wildcards_dict or {}).items()},
            attempt=job.attempt,
            threads=job.threads,
            resources=self._resources(job),
            command=None,
            inputs=inputs,
            outputs=outputs,
            logs=logs,
            benchmark=str(job.benchmark) if job.benchmark else None,
            linked=(*self._links.targets(inputs), *self._links.targets_on_the_way((*outputs, *logs))),
            links=self._links.links(inputs),
            targets=tuple(self._targets(job)),
            products=tuple(_products(job, place)),
            real_inputs=tuple(map(self._links.real, inputs)),
            sources=tuple(self._sources(job)),
            live=self._live(job),
            keep_incomplete=self._workflow.execution_settings.keep_incomplete,
            nested=self._in_container(job),
            interactive=self._workflow.execution_settings.debug or bool(self._workflow.dag.is_edit_notebook_job(job)),
            stays_here=self._stays_here(job.rule),
            together=_is_together(job),
            streamed=tuple(self._streamed(job)),
            shadow=bool(job.is_shadow),
            shadow_directory=_shadow(job),
            declared_at=declared_at(job.rule),
            by_default=by_default(job.rule),
            threads_asked=threads_asked(job.rule),
            recipe=_recipe(job),
            group=self._group(job),
            asked=asked,
        )

    def with_outputs(self, request: JobRequest, job: Any) -> JobRequest:
        """Update the places of a job's outputs, which are elsewhere once it has lost its shadow directory."""
        place = self._links.place
        return replace(
            request,
            targets=tuple(_targets(job, place)),
            products=tuple(_products(job, place)),
            live=self._live(job),
            shadow_directory=_shadow(job),
        )

    def _targets(self, job: Any) -> Iterator[Target]:
        """The targets that a job writes itself: Snakemake moves others to their places, from the shadow directory.

        It does not move what is absolute or, with ``shadow: "shallow"``, behind a link to the working directory.
        """
        targets = _targets(job, self._links.place)
        if not job.is_shadow:
            return targets
        real, shadow = self._links.real, _shadow(job)
        return (
            target
            for target in targets
            if target.kind is TargetKind.BENCHMARK
            or (shadow is not None and real(os.path.join(shadow, target.name)) == real(target.path))
        )

    def _resources(self, job: Any) -> dict[str, object]:
        without = self._without(job.rule)
        return {name: value for name, value in job.resources.items() if name not in without}

    def _live(self, job: Any) -> tuple[str, ...]:
        """The paths that a job writes directly. Under ``--skip-script-cleanup`` its script is to stay."""
        keeps = has_script(job.rule) and not self._workflow.execution_settings.cleanup_scripts
        scripts = (os.path.realpath(SCRIPTS),) if keeps else ()
        return (*_live(job, self._links.place), *scripts)

    def _streamed(self, job: Any) -> Iterator[str]:
        """The inputs of a job that another one makes while it runs. One that is named as a string has no flag."""
        for other in self._workflow.dag.dependencies.get(job, ()):
            for file in other.output:
                if is_flagged(file, "pipe") or is_flagged(file, "service"):
                    yield str(file)

    def _in_container(self, job: Any) -> bool:
        """Whether Snakemake starts a container for a job: a container makes mounts of its own."""
        method = self._workflow.deployment_settings.deployment_method
        return bool(job.container_img_url) and any(m.name == "APPTAINER" for m in method)

    def _sources(self, job: Any) -> Iterator[str]:
        """The script or notebook of a job, which it reads without declaring it."""
        base = source_directory(job.rule)
        for source in (job.rule.script, job.rule.notebook):
            if source and not str(source).startswith(("http:", "https:")):
                yield self._links.real(os.path.join(base, str(source)))


def _paths(files: Iterable[Any]) -> tuple[str, ...]:
    """The files of a job as its rule sees them. A file in a storage that the job reads there has its name there."""
    return tuple(
        str(file.storage_object.query if file.is_storage and not file.storage_object.retrieve else file)
        for file in files
    )


def _targets(job: Any, place: Callable[[str], str]) -> Iterator[Target]:
    """The files and directories that a job has to write, with the meaning of Snakemake's flags on them."""
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
    """The checksum that ``ensure()`` asks for; None if its function fails, which Snakemake reports."""
    algorithm, digest = ensured.get("checksum_algorithm"), ensured.get("checksum")
    if callable(digest):
        try:
            digest = digest(wildcards)
        except Exception:
            return None
    return f"{algorithm}:{digest}" if algorithm and digest else None


def _is_together(job: Any) -> bool:
    """Whether a pipe or service connects a job with others that run at the same time."""
    if job.pipe_group is not None:  # an input named as a string does not know that it is a pipe
        return True
    return any(is_flagged(file, "pipe") or is_flagged(file, "service") for file in (*job.input, *job.output))


def _recipe(job: Any) -> str:
    """The properties by which Snakemake itself tells a job from another one with the same inputs.

    The command has its placeholders still, because a try with more memory may name that in its command.
    """
    return "\0".join([*map(str, code_of(job.rule)), *sorted(map(repr, job.non_derived_params))])


def _products(job: Any, place: Callable[[str], str]) -> Iterator[Product]:
    """The outputs whose checksums go on record: pipes and services are used up when the job ends."""
    shadow = _shadow(job)
    for file, name in zip(job.output, _paths(job.output), strict=True):
        if not is_flagged(file, "pipe") and not is_flagged(file, "service"):
            path = place(name) if shadow is None else os.path.normpath(os.path.join(shadow, name))
            yield Product(name, path, is_flagged(file, "temp") or bool(file.is_storage))


def _live(job: Any, place: Callable[[str], str]) -> Iterator[str]:
    """The paths that others use while a job runs: its shadow directory, FIFOs, and directories of services' files."""
    if (shadow := _shadow(job)) is not None:
        yield shadow
    for file in (*job.input, *job.output):
        if is_flagged(file, "pipe"):
            yield place(str(file))
        elif is_flagged(file, "service"):
            yield os.path.dirname(place(str(file)))


def _shadow(job: Any) -> str | None:
    return os.path.realpath(job.shadow_dir) if job.shadow_dir else None
