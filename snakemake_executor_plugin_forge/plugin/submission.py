"""The way of a Snakemake job to the engine, encoded with its software environment; or to and from the output cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pickle import PicklingError
from typing import Any

from snakemake.executors.local import Executor as LocalExecutor
from snakemake_interface_executor_plugins.executors.real import RealExecutor

from ..kernel.tree import remove_tree, walk
from ..run.engine import Engine
from ..spec.catalog import for_runtime
from ..spec.errors import UsageError
from ..spec.file_policy import inside_outputs
from ..spec.job import Config, JobRequest
from ..spec.resources import all_at_once
from ..spec.verdict import EndedBy, Order, Verdict
from .ahead import ResourceCheck, warnings
from .declarations import Declarations
from .job_groups import JobGroups
from .job_request import Translator
from .later_changes import LaterChanges
from .log_file import expect_a_full_disk
from .run_blocks import RunBlockStarts
from .run_wrapper import encode_call, encode_command, encode_remote
from .snakemake_internals import (
    SCRIPTS,
    call_cache,
    has_script,
    is_local,
    keep_until_success,
    spare_devices,
    uses_cache,
)
from .software import Deployment, Place

_MOST_RECORDS = 100  # jobs of a rule that get a record when they are refused before the run


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job of Snakemake that is ready to run."""

    request: JobRequest
    staged: bool  # the present versions of its outputs still exist
    arguments: tuple[Any, ...]  # of the local executor's run_wrapper


class Submitter:
    """Prepares the jobs of one run and hands them over to the engine."""

    def __init__(self, executor: RealExecutor, engine: Engine, deployment: Deployment, starts: RunBlockStarts) -> None:
        expect_a_full_disk(executor.logger)
        self._executor = executor  # for the commands of inner Snakemakes
        self._workflow = executor.workflow
        self._engine = engine
        self._deployment = deployment
        self._starts = starts
        self._changes = LaterChanges(self._workflow)
        self.declarations = Declarations(self._workflow, engine.directory)
        defaults = engine.config.default_resources
        self._check = ResourceCheck(self._workflow, engine.check, remote=engine.has_remote, defaults=defaults)
        self.groups = (
            JobGroups(self._workflow, self.runs_elsewhere, self._config) if engine.groups is not None else None
        )
        of = self.groups.of if self.groups is not None else lambda _: None
        self._translator = Translator(self._workflow, partial(is_local, self._workflow), self._check.without, of)

    def _config(self, job: Any) -> Config:
        """The settings for a job, with what its runtime says."""
        return for_runtime(self._engine.config, self._deployment.runtime(job))

    def about_to_run(self, jobs: Iterable[Any]) -> None:
        """Look at jobs right before they start, on the scheduler's thread: a checkpoint may have changed the DAG."""
        jobs = list(jobs)
        self.declarations.update(jobs)
        if self.groups is not None:
            try:
                self.groups.update(jobs)
            except UsageError as error:
                self._executor.logger.warning(
                    f"Forge: {error} For now they are submitted one by one, or fail if pipes or services connect them."
                )

    def runs_elsewhere(self, job: Any) -> bool:
        """Whether a job runs on another host than this one."""
        return self._engine.has_remote and not is_local(self._workflow, job.rule)

    def prepare(self, job: Any) -> PreparedJob:
        """Prepare a job as the local executor does; but present versions of staged outputs stay until it succeeds.

        Raises:
            UsageError: if its shadow directory cannot be made: with ``local`` that ends the job's own Snakemake alone.
        """
        request, staged = None, False
        if has_script(job.rule):  # so that it is there, empty or not, as with the local executor
            os.makedirs(SCRIPTS, exist_ok=True)
        if not job.is_norun and not job.is_shadow:  # Snakemake makes a shadow directory only below
            request = self._translator.request(job)
            cached = uses_cache(self._workflow, job.rule)
            staged = not cached and self._engine.stages(request, self._deployment.runtime(job))
        spare_devices(job)
        absent: list[str] = []
        if staged and request is not None:
            absent = [path for path in inside_outputs(request.targets) if not os.path.lexists(path)]
            keep_until_success(job, absent)
        try:
            with _short_walks() if job.is_shadow and job.rule.shadow_depth == "full" else nullcontext():
                arguments = LocalExecutor.job_args_and_prepare(self._executor, job)
        except Exception as error:
            if not job.is_shadow:
                raise
            if job.shadow_dir is not None:
                remove_tree(job.shadow_dir)
                job.shadow_dir = None
            raise UsageError(f"its shadow directory cannot be made: {error}") from error
        for path in absent:  # if Forge were killed now, the next run would take it for the output
            _remove_empty(path)
        return PreparedJob(request or self._translator.request(job), staged, arguments)

    def prepare_or_fail(self, info: Any) -> PreparedJob | None:
        """Prepare a job, given as SubmittedJobInfo; None if that has failed, which fails this job and no other."""
        try:
            return self.prepare(info.job)
        except UsageError as error:
            self._executor.report_job_submission(info, register_job=False)
            self._executor.report_job_error(info, msg=str(error))
            return None

    def submit(self, job: Any, prepared: PreparedJob, done: Callable[[Verdict], None]) -> str:
        """Hand a prepared job over and return the attempt's name.

        Raises:
            UsageError: if the host cannot provide its resources; ``done`` is never called then.
        """
        place = self._deployment.place(job, prepared.arguments)
        if self.runs_elsewhere(job):
            request, payload, how = self._encode_remote(job, prepared, place)
        else:
            request, payload, how = self._encode_local(job, prepared.request, place)
        command = job.shellcmd  # a property, which formats the command each time
        by_hand = place.by_hand(command) or str(self._executor.format_job_exec(job))
        return self._engine.submit(
            replace(request, command=command), payload, by_hand, how, done,
            is_command=how == "launcher", runtime=place.runtime, identity=place.identity, root=place.root,
        )  # fmt: skip

    def _encode_local(self, job: Any, request: JobRequest, place: Place) -> tuple[JobRequest, bytes, str]:
        """Encode a job for this host, and say how it starts: as a call or, if that cannot be, as an inner Snakemake."""
        why, changes = self._starts.reason(job), self._changes.now(is_run=job.is_run)
        measured = bool(job.benchmark)
        try:
            if why is None:
                payload = encode_call(
                    place.arguments, self._workflow, place.activation, measured=measured, changes=changes
                )
        except PicklingError as error:
            why = f"its arguments cannot be pickled: {error}"
        if why is not None:
            command = self._executor.format_job_exec(job)
            payload = encode_command(command, place.for_inner_snakemake(job), replace(changes, values={}))
            if _drop_shadow(job):
                request = self._translator.with_outputs(request, job)
            sources = (*request.sources, *self._starts.sources)
            request = replace(request, sources=sources, own_snakemake=True)
            return request, payload, f"inner snakemake, because {why}"
        # The nursery changes it in the rare case that the job turns out to be more than a command.
        return request, payload, "launcher" if place.is_plain and self._is_command(job) else "nursery"

    def _encode_remote(self, job: Any, prepared: PreparedJob, place: Place) -> tuple[JobRequest, bytes, str]:
        """Encode a job for another host: as a command if it comes down to one, else as an inner Snakemake."""
        request, call = prepared.request, None
        if self._is_command(job):
            try:
                changes = self._changes.now(is_run=False)
                call = encode_call(place.arguments, self._workflow, place.activation, changes=changes)
            except PicklingError:
                call = None
        if call is None:
            place.refuse_elsewhere(job)
            if _drop_shadow(job):
                request = self._translator.with_outputs(request, job)
        return request, encode_remote(call, self._executor.format_job_exec(job)), "launcher"

    def _is_command(self, job: Any) -> bool:
        """Whether a job is a shell command and nothing around it."""
        return bool(job.is_shell and not job.benchmark and not self._workflow.execution_settings.debug)

    def check(self, jobs: Iterable[Any]) -> None:
        """Refuse all jobs whose resources cannot be had, before anything runs, and on record.

        Raises:
            UsageError: names each rule, its place and value, and the line to paste.
            HostError: see :func:`..spec.resources.check_required`.
        """
        jobs = list(jobs)
        for warning in warnings(self._workflow, jobs):
            self._executor.logger.warning(f"Forge: {warning}")
        errors = []
        for error, refused in self._check.refusals(jobs):
            errors.append(error)
            for job in refused[:_MOST_RECORDS]:
                with suppress(Exception):  # Snakemake's, about another resource of the job
                    request = self._translator.request(job)
                    self._engine.refuse(request, str(self._executor.format_job_exec(job)), error)
        if errors:
            raise all_at_once(errors)
        if self.groups is not None:
            self.groups.update(jobs)

    def check_group(self, jobs: list[Any]) -> None:
        """Refuse jobs that cannot run at the same time.

        Raises:
            UsageError: see :func:`..spec.resources.check_group`.
        """
        elsewhere = [job.rule.name for job in jobs if self.runs_elsewhere(job)]
        if self.groups is not None and len(elsewhere) == len(jobs):
            if all(self.groups.of(job) is not None for job in jobs):
                return
            raise UsageError(
                f"Rules {' and '.join(elsewhere)} run at the same time (pipe or service), which they can only do on "
                "one node, but their group cannot be one job of the scheduler: a warning above says why. Change the "
                "resources that it names, or connect the rules with a file instead."
            )
        if elsewhere:
            raise UsageError(
                f"Rules {' and '.join(job.rule.name for job in jobs)} run at the same time (pipe or service), which "
                f"they can only do on one host. Add {', '.join(elsewhere)} to localrules (or, with Slurm, take all of "
                "them out), or connect the rules with a file instead."
            )
        self._engine.check_group([(job.rule.name, dict(job.resources.items())) for job in jobs])

    def has_begun(self, name: str) -> bool:
        """Whether an attempt has begun, or is over."""
        return self._engine.groups is None or self._engine.groups.has_begun(name)

    def end(self, name: str, reason: str) -> None:
        """End one attempt."""
        self._engine.cancel(name, Order(EndedBy.FORGE, reason))


def ask_cache(executor: Any, info: Any, name: str) -> bool:
    """Have the cache ``fetch`` or ``store`` a job's outputs, and report that; False if it does not have them."""
    try:
        if not call_cache(executor.workflow, info.job, name):
            return False
    except Exception as error:
        executor.report_job_error(info, msg=f"the output cache failed: {error}")
    else:
        executor.report_job_success(info)
    return True


def _remove_empty(directory: str) -> None:
    """Remove a directory in which nothing is but directories."""
    with suppress(OSError):
        for here in walk(directory, leave=True):
            if here.left:
                os.rmdir(here.name, dir_fd=None if here.up is None else here.up.fd)


def _drop_shadow(job: Any) -> bool:
    """Delete a job's shadow directory: an inner Snakemake makes its own. Return whether there was one."""
    if not job.shadow_dir:
        return False
    remove_tree(job.shadow_dir)
    job.shadow_dir = None
    return True


@contextmanager
def _short_walks() -> Iterator[None]:
    """Keep walks through the working directory out of .snakemake, meanwhile.

    Snakemake follows links there for ``shadow: "full"``, and drops what it finds. Each directory of a running job with
    ``shadow: "shallow"`` has a link to .snakemake: with two of them, the walk takes longer than the run.
    """
    original, workdir = os.walk, os.getcwd()

    def short(top: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, list[Any], list[Any]]]:
        for directory, names, files in original(top, *args, **kwargs):
            if directory == workdir and ".snakemake" in names:
                names.remove(".snakemake")
            yield directory, names, files

    os.walk = short
    try:
        yield
    finally:
        os.walk = original
