"""The executor that Snakemake makes: it starts a run, and turns verdicts into Snakemake's callbacks.

Snakemake imports this module at every start, whichever executor it uses. Everything else of Forge is therefore imported
when an Executor starts a run, not before.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecMode

from ..spec.errors import ForgeError

if TYPE_CHECKING:
    from snakemake_scheduler_plugin_forge.snakemake_internals import ChoosingTime

    from ..analysis.failures import Failures
    from ..analysis.notes import Notes
    from ..run.engine import Engine
    from ..spec.verdict import Order, Verdict
    from .run_plan import RunPlan
    from .stop_signals import StopSignals
    from .submission import PreparedJob, Submitter


_SHOWN = 5
_SLOW_SHARE, _SLOW_SECONDS = 0.1, 5.0  # of a run's time, and at least: then the scheduler is worth a line
_STARTED_IN: str | None = None  # before --directory: Snakemake loads this module first
with suppress(OSError):
    _STARTED_IN = os.getcwd()

common_settings = CommonSettings(
    non_local_exec=False,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
)


class _InnerSnakemake(RealExecutor):  # type: ignore[misc]
    """The command of an inner Snakemake, which runs exactly one job: that of the local executor."""

    @property
    def cores(self) -> Any:
        """Number of cores that an inner Snakemake may use."""
        return self.workflow.resource_settings.cores

    def get_exec_mode(self) -> ExecMode:
        """Mode for exactly one job."""
        return ExecMode.SUBPROCESS

    @property
    def job_specific_local_groupid(self) -> bool:
        """Whether each job has a group id of its own."""
        return False

    def get_job_exec_prefix(self, job: Any) -> str:
        """Shell text in front of the command."""
        del job
        return f"cd {shlex.quote(str(self.workflow.workdir_init))}"

    def get_python_executable(self) -> str:
        """Path of this interpreter, quoted for a shell."""
        return shlex.quote(sys.executable)

    def additional_general_args(self) -> str:
        """Options beyond those that Snakemake adds itself."""
        return "--quiet progress rules host"


@dataclass(frozen=True, slots=True)
class _Run:
    """The parts of a run that has begun. What may block runs in a pool; a group's service may wait for hours."""

    engine: Engine
    submitter: Submitter
    plan: RunPlan
    crates: str | None  # the directory in which this run leaves its crate
    threads: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 4, "forge"))
    group_threads: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1 << 16, "forge-group"))


class _PrintableLogger:
    """Snakemake's logger, for messages in which names may be that jobs have made."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def info(self, message: str) -> None:
        """Log a message without control characters; so do the others."""
        self._log("info", message)

    def warning(self, message: str) -> None:
        self._log("warning", message)

    def error(self, message: str) -> None:
        self._log("error", message)

    def _log(self, level: str, message: str) -> None:
        from ..spec.printable import printable

        getattr(self._logger, level)(printable(message, keep="\n\t"))


class Executor(_InnerSnakemake):
    """The executor of ``snakemake --executor forge``."""

    def __post_init__(self) -> None:
        """Start the run, unless no job has to run.

        Raises:
            WorkflowError: in Snakemake's own terms, for everything that keeps Forge from starting.
        """
        self._run: _Run | None = None
        self.logger: Any = _PrintableLogger(self.logger)
        self._failures: Failures | None = None
        self._notes: Notes | None = None
        self._reads: dict[str, set[str]] = {}  # rule to the files that its jobs read without declaring them
        self._choosing: ChoosingTime | None = None  # from the first job on
        self._signals: StopSignals | None = None
        try:
            if len(self.dag):
                self._start()
            else:
                from .nothing_to_do import complete_interrupted

                complete_interrupted(self.executor_settings, self.logger.info)
        except ForgeError as error:
            self._close()
            raise WorkflowError(str(error)) from None  # Snakemake would show a cause as a bug of ours

    def _start(self) -> None:
        from ..kernel.imports import OwnImports

        with OwnImports():  # here and not above: see the module's docstring
            from . import parts
        parts.leave_dry_runs()
        workflow = self.workflow
        self._failures, self._notes = parts.Failures(str(workflow.workdir_init)), parts.Notes()
        settings = self.executor_settings or parts.ExecutorSettings()  # None: Snakemake's Python API
        deployment = parts.Deployment(workflow, settings, self.logger.info)
        config = parts.with_defaults(parts.to_config(settings), deployment.catalog)
        if any("forge_io_weight" in rule.resources for rule in workflow.rules):
            config = replace(config, io_weights=True)
        crates = deployment.catalog.provenance
        if crates is not None:
            parts.check_store(crates, f"{deployment.catalog.path}: provenance:")
        starts = parts.RunBlockStarts(workflow, config.run_blocks, self.logger.info)  # before Forge has threads
        calls = parts.CallRunner(workflow, starts.unseeded)
        jobs = [job for job in self.dag.needrun_jobs() if not job.is_group() and not job.rule.norun]
        request = parts.RunRequest(
            config=config,
            prepare=calls.prepare,
            execute=calls.execute,
            render=calls.render,
            exposed=deployment.visible(jobs),
            declared=(*workflow.envvars, *deployment.declared()),
            notice=self.logger.info,
            runtimes=deployment.runtimes,
            local_cores=workflow.resource_settings.local_cores or os.cpu_count() or 1,
            cores=workflow.resource_settings.cores,
            workflow=_workflow_facts(workflow),
            started_in=_STARTED_IN,
        )
        engine = parts.Engine(request)
        submitter = parts.Submitter(self, engine, deployment, starts)
        self._run = _Run(engine, submitter, parts.RunPlan(self.dag, engine.directory, engine.write_plan), crates)
        parts.forget_failures(workflow.persistence)
        parts.protect_only_own()
        submitter.check(jobs)
        deployment.open(jobs, engine)
        self.logger.info(engine.isolation_line())
        for message in parts.left_modules(os.getcwd()):
            self.logger.warning(message)

    @property
    def _running(self) -> _Run:
        assert self._run is not None, "Snakemake runs a job although its executor has not started or is closed"
        return self._run

    # -- what Snakemake asks for -----------------------------------------------------------------------------------

    def run_jobs(self, jobs: list[Any]) -> None:
        """Start jobs. On the scheduler's thread: nothing here may block."""
        self._take_over()
        self._running.submitter.about_to_run(jobs)
        self._running.plan.update()
        super().run_jobs(jobs)

    def run_job(self, job: Any) -> None:
        """Start one job or, if it is a pipe or service group, all of its members together."""
        from .snakemake_internals import uses_cache

        run, info = self._running, SubmittedJobInfo(job=job)
        if job.is_group():
            self.report_job_submission(info)
            from .parts import ConnectedJobs

            group = ConnectedJobs(run.submitter, job, partial(self._conclude_group, info))
            run.group_threads.submit(group.start)  # not here: it may have to wait for a service
            return
        if (prepared := run.submitter.prepare_or_fail(info)) is None:
            return
        # Staged outputs are never half-written at their places and need no mark; but not every cluster node can stage.
        self.report_job_submission(info, register_job=not prepared.staged or run.submitter.runs_elsewhere(job))
        if job.is_norun:
            self.report_job_success(info)
        elif uses_cache(self.workflow, job.rule):
            run.threads.submit(self._fetch_or_submit, info, prepared)
        else:
            self._submit(info, prepared)

    def _submit(self, info: SubmittedJobInfo, prepared: PreparedJob) -> None:
        """Submit a job. Resources that the host cannot provide fail this job, and no other."""
        from .parts import RefusedError

        try:
            self._running.submitter.submit(info.job, prepared, partial(self._conclude, info))
        except RefusedError as error:
            self._conclude(info, error.verdict)
        except ForgeError as error:
            self.report_job_error(info, msg=str(error))

    def _fetch_or_submit(self, info: SubmittedJobInfo, prepared: PreparedJob) -> None:
        from .parts import ask_cache

        if ask_cache(self, info, "fetch"):
            self._running.plan.concluded(info.job.rule.name, None)
        else:
            self._submit(info, prepared)

    # -- what comes back (in the backend's thread) -----------------------------------------------------------------

    def _conclude(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """Tell Snakemake how a job ended."""
        from .snakemake_internals import spare, uses_cache

        if self._notes is not None and verdict.ok:  # the explanation of a failure has its notes
            self._notes.add(info.job.rule.name, info.job.wildcards_dict, verdict.notes)
        spare(info.job, verdict)
        if verdict.undeclared_reads:
            self._reads.setdefault(info.job.rule.name, set()).update(verdict.undeclared_reads)
        if not verdict.ok:
            self._report_failure(info, verdict)
            return
        if self._failures is not None:
            self._failures.discard(info.job.jobid)
        self._running.plan.concluded(info.job.rule.name, verdict.directory)
        if uses_cache(self.workflow, info.job.rule):
            from .parts import ask_cache

            self._running.threads.submit(ask_cache, self, info, "store")
        else:
            self.report_job_success(info)

    def _conclude_group(self, info: SubmittedJobInfo, failure: Verdict | str | None) -> None:
        """Tell Snakemake how a group ended. Snakemake shows no message with a group's error, so that we show it."""
        match failure:
            case None:
                self.report_job_success(info)
            case str() as message:
                self.logger.error(message)
                self.report_job_error(info, msg=message, aux_logs=[])
            case verdict:
                self._report_failure(info, verdict)

    def _report_failure(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """Show a verdict in words, the end of stderr and the paths, where Snakemake's users look for them."""
        if self._failures is not None:
            self._failures.add(info.job.jobid, verdict)
        if verdict.ended_by == "user" and not info.job.is_group():  # no error of the rule: one line is enough
            self.logger.error(_cancelled(info.job, verdict))
            self.workflow.scheduler.error_callback(info.job)
            return
        if error := _error(verdict):
            self.logger.error(error)
        logs = [f"{verdict.directory}/{name}" for name in ("stdout.log", "stderr.log")]
        message = "\n        ".join(_message(verdict, info.job))
        if info.job.is_group():
            self.logger.error(f"Forge: {os.path.basename(verdict.directory)} of a group: {message}")
        logs = [path for path in logs if os.path.exists(path) and os.path.getsize(path)]
        self.report_job_error(info, msg=message, aux_logs=logs)

    # -- the end ---------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Change the scheduler and the handlers of signals, once: the scheduler makes its executor too early."""
        if self._choosing is not None:
            return
        from . import parts

        parts.mend(self.workflow.scheduler)
        self._choosing = parts.ChoosingTime(self.workflow.scheduler)
        self._signals = parts.StopSignals()
        self._signals.take(self.workflow.scheduler)

    def cancel(self) -> None:
        """End all jobs of an interrupted run, then let Snakemake clear up after them as after failed ones."""
        if self._run is None:
            return
        from .snakemake_internals import finish_ended_jobs

        by = self._signals.by if self._signals is not None else "Ctrl-C"
        engine, order = self._run.engine, _stop(by)
        if by == "SIGHUP" and engine.config.on_disconnect == "finish":
            engine.leave(order)
        else:
            engine.cancel_all(order)
        try:
            finish_ended_jobs(self.workflow)
        finally:
            self._close(leave_crate=True)

    def shutdown(self) -> None:
        """End the run. After this Snakemake prints only that it failed, and where its own log is."""
        from ..spec.printable import printable

        if line := _slow_choices(self.workflow.scheduling_settings.scheduler, self._choosing):
            self.logger.warning(line)
        for rule, paths in sorted(self._reads.items()):
            shown = ", ".join(map(printable, sorted(paths)[:_SHOWN])) + (
                f", … ({len(paths)} in all)" if len(paths) > _SHOWN else ""
            )
            self.logger.warning(f"Forge: rule {rule} reads {shown}, which it does not declare: snakemake-forge audit")
        self._close(leave_crate=True)

    def _close(self, *, leave_crate: bool = False) -> None:
        """Close the engine, sum up notes and failures, and write the run's provenance, if the catalog says where."""
        run, self._run = self._run, None
        if run is None:
            return
        run.group_threads.shutdown()
        run.threads.shutdown()
        run.plan.close()
        run.engine.close()
        if self._signals is not None:
            self._signals.restore()
        for line in self._notes.lines() if self._notes is not None else ():
            self.logger.warning(line)
        if leave_crate and run.crates is not None:
            from .parts import leave_crate as write  # see the module's docstring

            self.logger.info(write(run.crates, os.getcwd()))
        if self._failures is not None and (summary := self._failures.text()):
            self.logger.error(summary)


def _slow_choices(scheduler: str, choosing: ChoosingTime | None) -> str:
    """Return a line about a scheduler whose choices have taken much of the run's time, or nothing."""
    seconds, of = (choosing.seconds, choosing.since_first()) if choosing else (0.0, 0.0)
    if scheduler == "forge" or seconds < max(_SLOW_SECONDS, of * _SLOW_SHARE):
        return ""
    return (
        f"Forge: the scheduler {scheduler} took {seconds / of:.0%} of this run's time to choose jobs ({seconds:.0f} of "
        f"{of:.0f} s); with --scheduler forge that time does not grow with the number of ready jobs"
    )


def _stop(interrupt: str) -> Order:
    """Return the order to end all jobs, because of an interrupt or an exception that ends Snakemake."""
    from ..spec.verdict import EndedBy, Order

    error = sys.exception()
    by = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else interrupt
    return Order(EndedBy.USER, f"Snakemake was stopped by {by}")


def _cancelled(job: Any, verdict: Verdict) -> str:
    """Return a line about a job that the user has cancelled."""
    from ..analysis.explain import job_in_words
    from ..spec.printable import printable

    called = job_in_words({"rule": job.rule.name, "wildcards": job.wildcards_dict})
    return printable(f"Forge: {called}: {verdict.reason}")


def _error(verdict: Verdict) -> str | None:
    """Return Snakemake's words about a failed rule, unless they say less than the verdict."""
    from ..spec.verdict import Cause

    return verdict.error if verdict.cause in (Cause.EXCEPTION, Cause.ERROR) else None


def _message(verdict: Verdict, job: Any) -> list[str]:
    """Return a verdict in words, the end of stderr, file and line of the rule, and the path of the record."""
    from ..analysis.attempt_log import read_telling
    from ..analysis.explain import Told
    from ..spec.printable import printable, without_escapes
    from .rule_resources import declared_at

    told = read_telling(verdict.directory) if verdict.directory else Told()
    told = told if told.text.strip() else Told(verdict.stderr_tail)
    tail = [printable(without_escapes(line), keep="\t") for line in told.text.strip().splitlines()[-10:]]
    shown = [f"last lines of {printable(told.source)}:", *(f"  {line}" for line in tail)] if tail else []
    where = [] if job.is_group() else [f"rule: {printable(declared_at(job.rule))}"]
    return [printable(verdict.reason), *shown, *where, f"record: {printable(verdict.directory)}"]


def _workflow_facts(workflow: Any) -> dict[str, object]:
    """Files and parameters of the workflow, for the record of the run."""
    return {
        "snakefile": str(workflow.main_snakefile),
        "sources": [str(path) for path in workflow.linemaps],
        "configfiles": [str(path) for path in workflow.configfiles],
        "config": json.loads(json.dumps(_with_plain_keys(workflow.config), default=str)),
    }


def _with_plain_keys(value: Any) -> Any:
    """A value of the configuration with keys that JSON has: in YAML they can be dates, in a Snakefile anything."""
    match value:
        case dict():
            plain = str | int | float | None
            return {key if isinstance(key, plain) else str(key): _with_plain_keys(of) for key, of in value.items()}
        case list() | tuple():
            return [_with_plain_keys(part) for part in value]
    return value
