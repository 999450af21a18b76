"""Snakemake's side of Forge: translates its jobs to requests and verdicts to its callbacks, and decides nothing.

Imported at every start of Snakemake, whichever executor is used: everything that is Forge's own is imported when an
Executor is made, not before.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecMode

from .errors import ForgeError, UsageError

if TYPE_CHECKING:
    from .model import JobRequest, Verdict


_SHOWN = 5
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


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A job of Snakemake that is ready to be run."""

    request: JobRequest
    staged: bool  # the present versions of its outputs are still there
    arguments: tuple[Any, ...]  # of the local executor's run_wrapper


class Executor(RealExecutor):  # type: ignore[misc]
    """``--executor forge``."""

    def __post_init__(self) -> None:
        """Start the run, if there is anything to run.

        Raises:
            WorkflowError: in Snakemake's own terms, for whatever keeps Forge from starting.

        """
        self._engine: Any = None
        self._reads: dict[str, set[str]] = {}  # rule to what its jobs read without declaring it
        self._failures: Any = None
        self._crates: str | None = None  # where this run leaves its crate
        self._taken_over = False
        self._stopped_by = "Ctrl-C"
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        if len(self.dag) == 0:
            return
        try:
            self._start()
        except ForgeError as error:
            self._close()
            raise WorkflowError(str(error)) from None  # a cause would be shown as a bug of ours

    def _start(self) -> None:
        # Imported here and not above: see the module's docstring.
        from .calls import Executor as Calls
        from .catalog import with_defaults
        from .config import to_config
        from .deployment import Deployment, known_resources
        from .engine import Engine
        from .previous import forget_failures
        from .record.failures import Failures
        from .settings import ExecutorSettings
        from .translation import Translator

        self._failures = Failures(str(self.workflow.workdir_init))
        forget_failures(self.workflow.persistence, self._runs_elsewhere)
        calls = Calls(self.workflow)
        self._translator = Translator(self.workflow, self._stays_here)
        settings = self.executor_settings or ExecutorSettings()  # None: Snakemake's Python API
        self._deployment = Deployment(self.workflow, settings, self.logger.info)
        config = with_defaults(to_config(settings), self._deployment.catalog)
        if any("forge_io_weight" in rule.resources for rule in self.workflow.rules):
            config = replace(config, io_weights=True)
        self._crates = self._deployment.crates()
        exposed = [*self._always_visible(), *self._deployment.runtimes.paths()]
        self._engine = Engine(
            config,
            calls.prepare,
            calls.execute,
            calls.render,
            exposed,
            (*self.workflow.envvars, *self._deployment.declared()),
            self.logger.info,
            self._deployment.runtimes,
            self.workflow.resource_settings.local_cores or os.cpu_count() or 1,
            self._workflow_facts(),
            _STARTED_IN,
            self.workflow.resource_settings.cores,
        )
        jobs = [job for job in self.dag.needrun_jobs() if not job.is_group() and not job.rule.norun]
        for rule in {job.rule for job in jobs}:
            self._engine.check(rule.name, known_resources(rule), stays_here=self._stays_here(rule))
        self._deployment.open(jobs, self._engine)
        self.logger.info(self._engine.isolation_line())

    def _workflow_facts(self) -> dict[str, object]:
        """Files and parameters of the workflow, for the record of the run."""
        workflow = self.workflow
        return {
            "snakefile": str(workflow.main_snakefile),
            "sources": [str(path) for path in workflow.linemaps],
            "configfiles": [str(path) for path in workflow.configfiles],
            "config": json.loads(json.dumps(dict(workflow.config), default=str)),
        }

    def _always_visible(self) -> list[str]:
        """Paths outside the working directory that jobs need although nobody declares them."""
        workflow = self.workflow
        deployment = workflow.deployment_settings
        persistence = workflow.persistence
        paths = [
            workflow.basedir,
            sys.prefix,
            sys.base_prefix,
            *(p for p in sys.path if os.path.isdir(p)),
            *(os.path.dirname(str(f)) for f in workflow.included_stack),
            *(os.path.dirname(str(f)) for f in workflow.linemaps),
            *(os.path.dirname(str(f)) for f in workflow.configfiles),
            workflow.sourcecache.cache_path,
            workflow.sourcecache.runtime_cache_path,
            persistence.shadow_path,
            persistence.conda_env_path,
            persistence.container_img_path,
            deployment.conda_prefix,
            deployment.apptainer_prefix,
            *(getattr(workflow, "runtime_paths", None) or ()),
        ]
        return [os.fspath(p) for p in paths if p and not str(p).startswith(("http:", "https:"))]

    # -- what Snakemake asks for -----------------------------------------------------------------------------------

    def run_jobs(self, jobs: list[Any]) -> None:
        """Start jobs. On the scheduler's thread: nothing here may block."""
        self._take_over()
        super().run_jobs(jobs)

    def run_job(self, job: Any) -> None:
        """Start one job or, if it is a pipe or service group, all of its members together."""
        info = SubmittedJobInfo(job=job)
        if job.is_group():
            self.report_job_submission(info)
            from .groups import Group

            self._pool().submit(Group(self, info).start)  # not here: it may have to wait for a service
            return
        prepared = self.prepare(job)
        # What is staged is never half-written at its place, and needs no mark that it may be; but not every node of a
        # cluster can stage.
        self.report_job_submission(info, register_job=not prepared.staged or self._runs_elsewhere(job))
        if job.is_norun:
            self.report_job_success(info)
        elif self._uses_cache(job):
            self._pool().submit(self._fetch_or_run, info, prepared)
        else:
            self.submit_or_report(info, prepared)

    def prepare(self, job: Any) -> _Prepared:
        """Prepare a job as the local executor does; but present versions of staged outputs stay until it succeeds."""
        from snakemake.executors.local import Executor as LocalExecutor

        from .previous import keep_until_success

        request, staged = None, False
        if not job.is_norun and not job.is_shadow:  # a shadow directory is made, and becomes a part of it, only below
            request = self._translator.request(job)
            staged = not self._uses_cache(job) and self._engine.stages(request, self._deployment.runtime(job))
        if staged:
            keep_until_success(job)
        arguments = LocalExecutor.job_args_and_prepare(self, job)
        return _Prepared(request or self._translator.request(job), staged, arguments)

    def submit(self, job: Any, prepared: _Prepared, done: Callable[[Verdict], None]) -> str:
        """Hand a prepared job over and return the attempt's name.

        Raises:
            UsageError: if its resources cannot be met; ``done`` is never called then.

        """
        from .calls import encode_call, encode_command

        if self._runs_elsewhere(job):
            return self._submit_remote(job, prepared, done)
        place = self._deployment.place(job, prepared.arguments)
        try:
            payload = encode_call(place.arguments, self.workflow, place.activation, measured=bool(job.benchmark))
            how = "nursery"
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            payload = encode_command(self.format_job_exec(job), place.for_inner_snakemake(job))
            how = f"inner snakemake, because its arguments cannot be pickled: {error}"
            if job.shadow_dir:  # the inner Snakemake makes its own
                shutil.rmtree(job.shadow_dir, ignore_errors=True)
                job.shadow_dir = None
        is_command = how == "nursery" and place.is_plain and self._is_command(job)
        if is_command:
            how = "launcher"  # the nursery changes it in the rare case that it is not
        command = job.shellcmd  # formatted anew at every look
        by_hand = place.by_hand(command) or str(self.format_job_exec(job))
        request = replace(prepared.request, command=command)
        name: str = self._engine.submit(
            request, payload, by_hand, how, done,
            is_command=is_command, runtime=place.runtime, identity=place.identity, root=place.root,
        )  # fmt: skip
        return name

    def _submit_remote(self, job: Any, prepared: _Prepared, done: Callable[[Verdict], None]) -> str:
        """Hand a job over that runs on another host: as a command if it comes down to one, else as a Snakemake."""
        from .calls import encode_call, encode_remote

        place = self._deployment.place(job, prepared.arguments)
        call = None
        if self._is_command(job):
            with suppress(pickle.PicklingError, TypeError, AttributeError, RecursionError):
                call = encode_call(place.arguments, self.workflow, place.activation)
        if call is None:
            place.refuse_elsewhere(job)
        request = prepared.request
        if call is None and job.shadow_dir:  # the inner Snakemake makes its own, and moves what is in there
            shutil.rmtree(job.shadow_dir, ignore_errors=True)
            job.shadow_dir = None
            request = self._translator.with_outputs(request, job)
        command = job.shellcmd
        payload = encode_remote(call, self.format_job_exec(job))
        by_hand = place.by_hand(command) or str(self.format_job_exec(job))
        request = replace(request, command=command)
        name: str = self._engine.submit(
            request, payload, by_hand, "launcher", done,
            is_command=True, runtime=place.runtime, identity=place.identity, root=place.root,
        )  # fmt: skip
        return name

    def _stays_here(self, rule: Any) -> bool:
        """Whether Snakemake would run a rule on the submitting host under a cluster executor: Workflow.is_local()."""
        workflow = self.workflow
        return bool(rule.name in workflow._localrules or rule.norun or rule.is_template_engine)

    def _runs_elsewhere(self, job: Any) -> bool:
        """Whether it runs on another host than this one."""
        return self._engine is not None and self._engine.has_remote and not self._stays_here(job.rule)

    def _is_command(self, job: Any) -> bool:
        """Whether a job is a shell command and nothing around it."""
        return bool(job.is_shell and not job.benchmark and not self.workflow.execution_settings.debug)

    def check_group(self, jobs: list[Any]) -> None:
        """Refuse jobs that cannot run at the same time.

        Raises:
            UsageError: see :func:`.plan.check_group`.

        """
        elsewhere = [job.rule.name for job in jobs if not self._stays_here(job.rule)]
        if self._engine.has_remote and elsewhere:
            raise UsageError(
                f"Rules {' and '.join(job.rule.name for job in jobs)} run at the same time (pipe or service), which "
                f"they can only do on one host. Add {', '.join(elsewhere)} to localrules, or connect the rules with a "
                "file instead."
            )
        self._engine.check_group([(job.rule.name, dict(job.resources.items())) for job in jobs])

    def end(self, name: str, reason: str) -> None:
        """End one attempt."""
        self._engine.cancel(name, reason)

    # -- what comes back (in the backend's thread) -----------------------------------------------------------------

    def conclude(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """Tell Snakemake how a job ended."""
        from .previous import spare

        for note in verdict.notes:
            self.logger.warning(f"Rule {info.job.rule.name}, jobid {info.job.jobid}: {note}.")
        spare(info.job, verdict)
        if verdict.undeclared_reads:
            self._reads.setdefault(info.job.rule.name, set()).update(verdict.undeclared_reads)
        if not verdict.ok:
            self.report_failure(info, verdict)
            return
        self._failures.discard(info.job.jobid)
        if self._uses_cache(info.job):
            self._pool().submit(self._store_and_report, info)
        else:
            self.report_job_success(info)

    def report_failure(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """The verdict in words, the end of stderr and the paths, where Snakemake's users look for them."""
        self._failures.add(info.job.jobid, verdict)
        if verdict.error:
            self.logger.error(verdict.error)
        lines = [verdict.reason]
        tail = verdict.stderr_tail.strip().splitlines()[-10:]
        if tail:
            lines += ["last lines of stderr:", *(f"  {line}" for line in tail)]
        lines.append(f"record: {verdict.directory}")
        logs = [f"{verdict.directory}/{name}" for name in ("stdout.log", "stderr.log")]
        logs = [path for path in logs if os.path.exists(path) and os.path.getsize(path)]
        self.report_error(info, "\n        ".join(lines), logs)

    def report_error(self, info: SubmittedJobInfo, message: str, logs: list[str]) -> None:
        """Tell Snakemake that a job or group failed, and the user why: Snakemake shows no message with a group's."""
        if info.job.is_group():
            self.logger.error(message)
        self.report_job_error(info, msg=message, aux_logs=logs)

    # -- between-workflow caching ----------------------------------------------------------------------------------

    def _uses_cache(self, job: Any) -> bool:
        if self.workflow.workflow_settings.cache is None:
            return False
        if hasattr(self.workflow, "get_cache_mode"):  # older Snakemake 9
            return bool(self.workflow.get_cache_mode(job.rule))
        return bool(job.rule.cache and job.rule.cache.output)

    def _call_cache(self, job: Any, name: str) -> None:
        """Have the output cache ``fetch`` or ``store`` the outputs of a job."""
        if hasattr(self.workflow, "get_cache_mode"):
            call = getattr(self.workflow.output_file_cache, name)
            self._run_async(call(job, self.workflow.get_cache_mode(job.rule)))
        else:
            self._run_async(getattr(job.rule.cache, name)(job))

    def _run_async(self, coroutine: Any) -> None:
        if hasattr(self.workflow, "async_run"):
            self.workflow.async_run(coroutine)
        else:  # older Snakemake 9
            from snakemake import common

            common.async_run(coroutine)

    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(max_workers=4, thread_name_prefix="forge")
        return self._threads

    def _fetch_or_run(self, info: SubmittedJobInfo, prepared: _Prepared) -> None:
        from snakemake.exceptions import CacheMissException

        job = info.job
        try:
            self._call_cache(job, "fetch")
        except CacheMissException:
            self.submit_or_report(info, prepared)
        except Exception as error:
            self.report_job_error(info, msg=f"the output cache failed: {error}")
        else:
            self.report_job_success(info)

    def _store_and_report(self, info: SubmittedJobInfo) -> None:
        try:
            self._call_cache(info.job, "store")
        except Exception as error:
            self.report_job_error(info, msg=f"the output cache failed: {error}")
        else:
            self.report_job_success(info)

    def submit_or_report(self, info: SubmittedJobInfo, prepared: _Prepared) -> None:
        """Submit; what cannot be met becomes this job's error and nobody else's."""
        try:
            self.submit(info.job, prepared, lambda verdict: self.conclude(info, verdict))
        except ForgeError as error:
            self.report_job_error(info, msg=str(error))

    # -- the end ---------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """What has to wait until the scheduler is ready, which makes its executor early: once.

        SIGTERM and SIGHUP end the run as Ctrl-C does; the scheduler's own handler would finish the running jobs. A
        SIGHUP that is ignored (nohup) stays ignored.
        """
        if self._taken_over:
            return
        self._taken_over = True
        from .reevaluation import make_sparse

        make_sparse(self.workflow.scheduler)
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        del frame
        self._stopped_by = signal.Signals(number).name
        raise KeyboardInterrupt

    def cancel(self) -> None:
        """The run was interrupted: end all jobs, then let Snakemake clear up after them as after failed ones."""
        if self._engine is None:
            return
        reason = f"Snakemake was stopped by {self._stopped_by}"
        if self._stopped_by == "SIGHUP" and self._engine.config.on_disconnect == "finish":
            self._engine.leave(reason)
        else:
            self._engine.cancel_all(reason)
        self._settle()
        self._close()
        self._leave_crate()

    def _settle(self) -> None:
        """What the scheduler will not do any more after an interrupt.

        It would leave half-written outputs and incomplete markers of jobs that were ended, and forget jobs that had
        finished just before.
        """
        scheduler = self.workflow.scheduler
        lock = getattr(scheduler, "_lock", threading.Lock())
        with lock:
            if hasattr(scheduler, "_finish_jobs") and getattr(scheduler, "_tofinish", None):
                scheduler._finish_jobs()
            for job in list(getattr(scheduler, "_toerror", ())):
                self._run_async(job.postprocess(error=True))

    def shutdown(self) -> None:
        """The run is over. What Snakemake still prints is that it failed, and where its own log is."""
        for rule, paths in sorted(self._reads.items()):
            shown = ", ".join(sorted(paths)[:_SHOWN]) + (f", … ({len(paths)} in all)" if len(paths) > _SHOWN else "")
            self.logger.warning(f"Forge: rule {rule} reads {shown}, which it does not declare: snakemake-forge audit")
        self._close()
        self._leave_crate()
        summary = self._failures.text() if self._failures is not None else ""
        if summary:
            self.logger.error(summary)

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        if self._threads is not None:
            self._threads.shutdown()
        if engine is not None:
            engine.close()

    def _leave_crate(self) -> None:
        """Have the provenance of the run written, if the catalog says where."""
        store, self._crates = self._crates, None
        if store is not None:
            from .record.crates import leave_crate  # see the module's docstring

            self.logger.info(leave_crate(store, os.getcwd()))

    # -- for RealExecutor: how an inner Snakemake is called ---------------------------------------------------------

    @property
    def cores(self) -> Any:
        """Cores for an inner Snakemake."""
        return self.workflow.resource_settings.cores

    def get_exec_mode(self) -> ExecMode:
        """An inner Snakemake runs exactly one job."""
        return ExecMode.SUBPROCESS

    @property
    def job_specific_local_groupid(self) -> bool:
        """As the local executor."""
        return False

    def get_job_exec_prefix(self, job: Any) -> str:
        """As the local executor."""
        del job
        return f"cd {shlex.quote(str(self.workflow.workdir_init))}"

    def get_python_executable(self) -> str:
        """This interpreter."""
        return shlex.quote(sys.executable)

    def additional_general_args(self) -> str:
        """As the local executor."""
        return "--quiet progress rules host"
