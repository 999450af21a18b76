"""Snakemake's side of Forge: translates its jobs to requests and verdicts to its callbacks, and decides nothing.

Imported at every start of Snakemake, whichever executor is used: everything that is Forge's own is imported when an
Executor is made, not before.
"""

from __future__ import annotations

import concurrent.futures
import os
import pickle
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.real import RealExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecMode

from .errors import ForgeError

if TYPE_CHECKING:
    from .model import JobRequest, Verdict


common_settings = CommonSettings(
    non_local_exec=False,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
)


class Executor(RealExecutor):  # type: ignore[misc]
    """``--executor forge``."""

    def __post_init__(self) -> None:
        """Start the run, if there is anything to run.

        Raises:
            WorkflowError: in Snakemake's own terms, for whatever keeps Forge from starting.

        """
        self._engine: Any = None
        self._signals_taken = False
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
        from .config import to_config
        from .engine import Engine
        from .links import Links
        from .settings import ExecutorSettings

        calls = Calls(self.workflow)
        self._links = Links(os.path.realpath(os.getcwd()))
        config = to_config(self.executor_settings or ExecutorSettings())  # None: Snakemake's Python API
        self._engine = Engine(
            config, calls.prepare, calls.execute, calls.render, self._always_visible(), self.logger.info
        )
        for rule in {job.rule for job in self.dag.needrun_jobs() if not job.is_group()}:
            if not rule.norun:
                self._engine.check(rule.name, _static_resources(rule))
        self.logger.info(self._engine.isolation_line())

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
        self._take_signals()
        super().run_jobs(jobs)

    def run_job(self, job: Any) -> None:
        """Start one job or, if it is a pipe or service group, all of its members together."""
        info = SubmittedJobInfo(job=job)
        if job.is_group():
            self.report_job_submission(info)
            self._pool().submit(_Group(self, info).start)  # not here: it may have to wait for a service
            return
        arguments = self.arguments(job)
        self.report_job_submission(info)
        if job.is_norun:
            self.report_job_success(info)
        elif self._uses_cache(job):
            self._pool().submit(self._fetch_or_run, info, arguments)
        else:
            self.submit_or_report(info, arguments)

    def arguments(self, job: Any) -> tuple[Any, ...]:
        """Prepare a job as the local executor does, which yields the arguments of its ``run_wrapper``."""
        from snakemake.executors.local import Executor as LocalExecutor

        arguments: tuple[Any, ...] = LocalExecutor.job_args_and_prepare(self, job)
        return arguments

    def submit(self, job: Any, arguments: tuple[Any, ...], done: Callable[[Verdict], None]) -> str:
        """Hand a prepared job over and return the attempt's name.

        Raises:
            UsageError: if its resources cannot be met; ``done`` is never called then.

        """
        from .calls import encode_call, encode_command

        try:
            payload, how = encode_call(arguments, self.workflow, measured=bool(job.benchmark)), "nursery"
        except (pickle.PicklingError, TypeError, AttributeError, RecursionError) as error:
            payload = encode_command(self.format_job_exec(job))
            how = f"inner snakemake, because its arguments cannot be pickled: {error}"
            if job.shadow_dir:  # the inner Snakemake makes its own
                shutil.rmtree(job.shadow_dir, ignore_errors=True)
                job.shadow_dir = None
        is_command = how == "nursery" and self._is_command(job)
        if is_command:
            how = "launcher"  # the nursery changes it in the rare case that it is not
        command = job.shellcmd  # formatted anew at every look
        by_hand = self._by_hand(job, command)
        request = self._request(job, command)
        name: str = self._engine.submit(request, payload, by_hand, how, done, is_command=is_command)
        return name

    def _is_command(self, job: Any) -> bool:
        """Whether a job is a shell command and nothing around it: no benchmark, no environment to activate."""
        workflow = self.workflow
        plain = not workflow.deployment_settings.deployment_method and not workflow.execution_settings.debug
        return bool(plain and job.is_shell and not job.benchmark)

    def check_group(self, jobs: list[Any]) -> None:
        """Refuse jobs that cannot run at the same time.

        Raises:
            UsageError: see :func:`.plan.check_group`.

        """
        self._engine.check_group([(job.rule.name, dict(job.resources.items())) for job in jobs])

    def end(self, name: str, reason: str) -> None:
        """End one attempt."""
        self._engine.cancel(name, reason)

    def _request(self, job: Any, command: str | None) -> JobRequest:
        from .model import JobRequest

        inputs, outputs = _paths(job.input), _paths(job.output)
        logs = _paths([*job.log, *([job.benchmark] if job.benchmark else [])])
        return JobRequest(
            rule=job.rule.name,
            wildcards={k: str(v) for k, v in (job.wildcards_dict or {}).items()},
            attempt=job.attempt,
            threads=job.threads,
            resources=dict(job.resources.items()),
            command=command,
            inputs=inputs,
            outputs=outputs,
            logs=logs,
            benchmark=str(job.benchmark) if job.benchmark else None,
            linked=self._links.targets((*inputs, *outputs, *logs)),
            interactive=self.workflow.execution_settings.debug or bool(self.dag.is_edit_notebook_job(job)),
        )

    def _by_hand(self, job: Any, command: str | None) -> str:
        if command is not None and not self.workflow.deployment_settings.deployment_method:
            return str(command)
        return str(self.format_job_exec(job))

    # -- what comes back (in the backend's thread) -----------------------------------------------------------------

    def conclude(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """Tell Snakemake how a job ended."""
        for note in verdict.notes:
            self.logger.warning(f"Rule {info.job.rule.name}, jobid {info.job.jobid}: {note}.")
        if not verdict.ok:
            self.report_failure(info, verdict)
        elif self._uses_cache(info.job):
            self._pool().submit(self._store_and_report, info)
        else:
            self.report_job_success(info)

    def report_failure(self, info: SubmittedJobInfo, verdict: Verdict) -> None:
        """The verdict in words, the end of stderr and the paths, where Snakemake's users look for them."""
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

    def _fetch_or_run(self, info: SubmittedJobInfo, arguments: tuple[Any, ...]) -> None:
        from snakemake.exceptions import CacheMissException

        job = info.job
        try:
            self._call_cache(job, "fetch")
        except CacheMissException:
            self.submit_or_report(info, arguments)
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

    def submit_or_report(self, info: SubmittedJobInfo, arguments: tuple[Any, ...]) -> None:
        """Submit; what cannot be met becomes this job's error and nobody else's."""
        try:
            self.submit(info.job, arguments, lambda verdict: self.conclude(info, verdict))
        except ForgeError as error:
            self.report_job_error(info, msg=str(error))

    # -- the end ---------------------------------------------------------------------------------------------------

    def _take_signals(self) -> None:
        """SIGTERM and SIGHUP end the run as Ctrl-C does.

        Done here, because the scheduler sets its own handler (finish the running jobs) after it has made its executor.
        A SIGHUP that is ignored (nohup) stays ignored.
        """
        if self._signals_taken or threading.current_thread() is not threading.main_thread():
            return
        self._signals_taken = True
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
        self._engine.cancel_all(f"Snakemake was stopped by {self._stopped_by}")
        self._settle()
        self._close()

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
        """The run is over."""
        self._close()

    def _close(self) -> None:
        engine, self._engine = self._engine, None
        if self._threads is not None:
            self._threads.shutdown()
        if engine is not None:
            engine.close()

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


class _Group:
    """A pipe or service group: all members run at the same time, each in a sandbox of its own.

    Services are ended when all others have succeeded. The first failure ends the rest.
    """

    def __init__(self, executor: Executor, info: SubmittedJobInfo) -> None:
        self._executor = executor
        self._info = info
        self._lock = threading.RLock()
        self._running: dict[str, Any] = {}  # attempt to job
        self._waiting = sorted(info.job, key=lambda job: not job.is_service)
        self._consumers = sum(not job.is_service for job in self._waiting)
        self._failure: Verdict | str | None = None

    def start(self) -> None:
        """Start every member, services first: to prepare a job that uses one means to wait for it."""
        job = self._waiting[0]
        try:
            self._executor.check_group(self._waiting)
            while self._failure is None and self._waiting:
                job = self._waiting[0]
                arguments = self._executor.arguments(job)
                with self._lock:  # so that a verdict finds its job among the running ones
                    self._waiting.pop(0)
                    done = partial(self._done, job)
                    self._running[self._executor.submit(job, arguments, done)] = job
        except Exception as error:  # of Snakemake's or ours: it is this group's failure and nobody else's
            with self._lock:
                self._fail(str(error), f"{job.rule.name}, a member of the same group, could not be started")
                finished = not self._running
            if finished:
                self._report()

    def _done(self, job: Any, verdict: Verdict) -> None:
        with self._lock:
            self._running = {name: other for name, other in self._running.items() if other is not job}
            ended_service = job.is_service and self._consumers == 0
            if not verdict.ok and not ended_service and self._failure is None:
                self._fail(verdict, f"{job.rule.name}, a member of the same group, failed")
            if not job.is_service:
                self._consumers -= 1
                if self._consumers == 0 and self._failure is None:
                    self._end("all jobs that use this service are done")
            finished = not self._running and not self._waiting
        if finished:
            self._report()

    def _fail(self, failure: Verdict | str, reason: str) -> None:
        self._failure = failure
        self._waiting.clear()
        self._end(reason)

    def _end(self, reason: str) -> None:
        for name in self._running:
            self._executor.end(name, reason)

    def _report(self) -> None:
        match self._failure:
            case None:
                self._executor.report_job_success(self._info)
            case str() as message:
                self._executor.report_error(self._info, message, [])
            case verdict:
                self._executor.report_failure(self._info, verdict)


def _paths(files: Iterable[Any]) -> tuple[str, ...]:
    """The files of a job as its rule sees them: storage that is not to be retrieved by its name there."""
    return tuple(
        str(file.storage_object.query if file.is_storage and not file.storage_object.retrieve else file)
        for file in files
    )


def _static_resources(rule: Any) -> dict[str, object]:
    """The resources of a rule that are known without a job: plain values, no functions."""
    known: dict[str, object] = {}
    for name, resource in rule.resources.items():
        if callable(resource):
            continue
        if hasattr(resource, "is_evaluable"):  # Snakemake >= 9.14 wraps them
            if not resource.is_evaluable():
                known[name] = resource.value
        else:
            known[name] = resource
    return known
