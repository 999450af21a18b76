"""Parts of Snakemake that Forge uses although Snakemake does not document them, and differences of its versions.

Read from the sources of Snakemake 9.0.0 to 9.27.1 (docs/reference/versions.md): "all" means all of these.
Longer than other files: the table takes forty lines.

==================================================  ===========  ===================================================
part                                                versions     what Forge does where it is missing
==================================================  ===========  ===================================================
``Job.remove_existing_output``, ``Job.cleanup``     all          Snakemake deletes the outputs of earlier runs
``Persistence.finished``                            all          fails at the start of a run
``Persistence._unmark_incomplete``, ``_get_key``    from 9.17.0  ``_delete_record`` with ``_incomplete_path``
``lchmod`` in ``snakemake.io``                      all          fails at the start of a run
``FilePersistence._get_recorded_starttime``         from 9.17.0  trusts the starts that Snakemake records
``Persistence._read_record``, ``_write_record``     from 9.17.0  may leave old outputs after a forced job has failed
``JobScheduler._finish_jobs``, ``_tofinish``,       all          forgets jobs that end just before Ctrl-C
``_toerror``, ``_lock``
``JobScheduler._open_jobs``                         all          signals end the run wherever the main thread is
``Workflow._localrules``                            all          fails at the start of a run
``Workflow.runtime_paths``                          from 9.14.0  shows no such paths to jobs
``Workflow.async_run``                              from 9.14.7  ``snakemake.common.async_run``
``Workflow._async_runners``                         from 9.14.7  has no event loops to take away
``LoggerManager.queue_listener``                    all          takes its thread for one of the Snakefile
``Workflow.get_cache_mode``, ``output_file_cache``  until 9.16   ``Rule.cache``, which is the cache from 9.17.0
``Rule.run_func_src``                               from 9.11.0  leaves the code of ``run:`` out of the recipe
``get_path_or_uri(secret_free=…)``                  from 9.13.5  calls it without the argument
``Resource.is_evaluable``, ``Resource.value``       from 9.16.3  ``Rule.resources`` has values and functions
``Resource._evaluator``                             from 9.16.3  ``Rule.resources`` has the function itself
``Workflow.global_resources``, ``linemaps``         all          fails at the start of a run
``DAG.needrun``, ``.dependencies``, ``Rule.expand_resources``
``run_wrapper`` of the local executor               all          fails when Snakemake makes the executor
``sp`` in ``snakemake.shell``                       all          the job's own process works its command out
``STDOUT`` in ``snakemake.shell``                   all          setting it has no effect
``Conda`` in ``snakemake.shell``                    until 9.16   replaces ``snakemake.deployment.conda.Conda`` only
``Rule._group``, ``DAG.toposorted``,                all          fails at the start of a run with groups in Slurm
``GroupResources.basic_layered``
``os.walk`` in ``Job.prepare``                      all          ``shadow: "full"`` beside "shallow" waits for it
``.snakemake/scripts``                              all          ``--skip-script-cleanup`` keeps nothing
``PythonScript._get_python_version``                all          Snakemake starts the environment's Python
==================================================  ===========  ===================================================
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import snakemake.io
from snakemake.exceptions import CacheMissException, ResourceInsufficiencyError, WorkflowError
from snakemake.executors.local import run_wrapper
from snakemake.io import is_flagged
from snakemake.resources import GroupResources
from snakemake.shell import shell

from ..kernel.tree import remove_tree
from ..staging.owners import keep_window, maker

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence

    from ..spec.verdict import Verdict

# -- outputs of earlier runs, which Snakemake would delete although a staged job has not touched them ------------------


def keep_until_success(job: Any, absent: Sequence[str] = ()) -> None:
    """Keep Snakemake from deleting the present outputs before a job.

    Args:
        absent: output directories that are not there, and that Snakemake makes for what lies in them.
    """
    job.remove_existing_output = _nothing
    job.absent_outputs = absent


_DEVICES = ("/dev/std", "/dev/fd/", "/dev/null", "/dev/tty", "/dev/pts/", "/dev/zero", "/proc/")


def spare_devices(job: Any) -> None:
    """Keep Snakemake from deleting a device that is a job's log or output: as root, /dev/stdout of the host."""
    files = [*job.output, *job.log]
    kept = [file for file in files if not str(file).startswith(_DEVICES)]
    if len(kept) < len(files):
        job.remove_existing_output = partial(_remove, kept)


async def _remove(files: Sequence[Any]) -> None:
    """Do what ``Job.remove_existing_output`` does, for some files."""
    for file in files:
        if not is_flagged(file, "update"):
            with suppress(FileNotFoundError):
                await file.remove(remove_non_empty_dir=False)


async def _nothing(*_: object, **__: object) -> None:
    """Stand in for a method of a job that would delete its outputs."""


def _is_spared(job: Any) -> bool:
    return "cleanup" in job.__dict__


def spare(job: Any, verdict: Verdict) -> None:
    """Keep Snakemake from deleting the outputs of a failed job, if they are the ones from before it."""
    if getattr(job, "remove_existing_output", None) is not _nothing:
        return
    if not verdict.ok and not verdict.in_place:
        job.cleanup = partial(_clean_up_absent, job.absent_outputs)
    elif _is_spared(job):  # of an earlier attempt
        del job.cleanup


async def _clean_up_absent(absent: Sequence[str], *_: object, **__: object) -> None:
    """Remove what Snakemake alone has made for a failed job: empty logs in a directory, which would count as output."""
    for path in absent:
        remove_tree(path)


def forget_failures(persistence: Any) -> None:
    """Keep Snakemake from noting a failed job as the origin of its outputs, if they are the ones from before it.

    Snakemake notes every job that has ended, with the checksums of its inputs, and relies on deleting outputs and note
    of those that failed. The next run would believe that the present inputs made the previous version. Instead, it
    makes it again, as it would make a deleted one. Nor are these outputs incomplete, as those of groups are marked.
    """
    finished = persistence.finished

    async def note(job: Any, *arguments: Any, **options: Any) -> None:
        if not _is_spared(job):
            await finished(job, *arguments, **options)
            return
        if persistence.dag.workflow.execution_settings.keep_metadata:
            _distrust(persistence, job.output)
        for file in job.output:
            if hasattr(persistence, "_unmark_incomplete"):
                persistence._unmark_incomplete(persistence._get_key(file))
            else:
                persistence._delete_record(persistence._incomplete_path, file)

    persistence.finished = note
    _keep_windows(persistence)


_FAILED = "a version whose replacement failed"


def _distrust(persistence: Any, files: Iterable[Any]) -> None:
    """Have the next run find other parameters than these outputs were made with, so that it makes them again.

    It would take them for up to date, unless their inputs are newer or their rule has changed: after --forcerun, say.
    An output without a record stays without: a record would say that a job has made it (staging/owners.py).
    """
    for file in files if hasattr(persistence, "_write_record") else ():
        key = persistence._get_key(file)
        record = persistence._read_record(key)
        if record is None or record.params == [_FAILED]:
            continue
        record.params = [_FAILED]
        path = persistence._record_path(persistence._metadata_path, key) if hasattr(persistence, "_record_path") else ""
        times = os.stat(path) if os.path.exists(path) else None
        persistence._write_record(key, record)
        if times is not None:  # the end of the job that made them
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def protect_only_own() -> None:
    """Keep ``protected()`` from changing, through links that a job leaves in its outputs, files that no job has made.

    Snakemake does it in its own process, outside of all sandboxes, and Linux follows links there.
    """
    change: Callable[[str, int], None] = snakemake.io.lchmod

    def lchmod(path: str, mode: int) -> None:
        if not os.path.islink(path) or maker(os.path.realpath(path)) is not None:
            change(path, mode)

    if change.__name__ != lchmod.__name__ or change.__module__ != __name__:
        snakemake.io.lchmod = lchmod


def _keep_windows(persistence: Any) -> None:
    """Keep begin and end of jobs of other executors, whose records Snakemake is about to overwrite.

    By these times, staging/owners.py knows what they have left undeclared. A job of Forge must not get the start of the
    earlier job, which Snakemake would take from the record: that is a window in which users have made files, too.
    """
    recorded = getattr(persistence, "_get_recorded_starttime", None)
    if recorded is None or not hasattr(persistence, "_incomplete_path"):
        return

    def start(key: str) -> Any:
        if os.path.exists(persistence._record_path(persistence._incomplete_path, key)):
            return recorded(key)
        before = persistence._read_record(key)
        if before is not None and None not in (before.starttime, before.endtime) and before.starttime <= before.endtime:
            end = os.stat(persistence._record_path(persistence._metadata_path, key)).st_mtime
            keep_window(f"{persistence.path}/forge", key, before.starttime, end)
        return None

    persistence._get_recorded_starttime = start


SCRIPTS = ".snakemake/scripts"


# -- the scheduler: more in snakemake_scheduler_plugin_forge/snakemake_internals.py -----------------------------------


def finish_ended_jobs(workflow: Any) -> None:
    """Do what the scheduler does not do any more after an interrupt.

    It would leave half-written outputs and incomplete markers of jobs that were ended, and forget jobs that had
    finished just before.
    """
    scheduler = workflow.scheduler
    with getattr(scheduler, "_lock", threading.Lock()):
        if hasattr(scheduler, "_finish_jobs") and getattr(scheduler, "_tofinish", None):
            # The interrupt may have come inside _finish_jobs, which clears the list last: such a job runs no more.
            scheduler._tofinish[:] = [job for job in scheduler._tofinish if job in scheduler.running]
            scheduler._finish_jobs()
        for job in list(getattr(scheduler, "_toerror", ())):
            _run_async(workflow, job.postprocess(error=True))


# -- the workflow and its rules ----------------------------------------------------------------------------------------


def _run_async(workflow: Any, coroutine: Coroutine[Any, Any, None]) -> None:
    if hasattr(workflow, "async_run"):
        workflow.async_run(coroutine)
        return
    from snakemake import common

    common.async_run(coroutine)


def is_local(workflow: Any, rule: Any) -> bool:
    """Whether a cluster executor would run a rule on the submitting host: ``Workflow.is_local()``."""
    return bool(rule.name in workflow._localrules or rule.norun or rule.is_template_engine)


def runtime_paths(workflow: Any) -> list[Any]:
    """Paths that Snakemake shows to jobs in containers."""
    return list(getattr(workflow, "runtime_paths", None) or ())


def leave_event_loops(workflow: Any) -> list[Any]:
    """Take Snakemake's event loops away from a forked process, which shares their sockets with it.

    Returns:
        The loops. Their destructors would close the sockets, so that the caller has to keep them.
    """
    runners = getattr(workflow, "_async_runners", {})
    kept = list(runners.values())
    runners.clear()
    return kept


def own_descriptors(workflow: Any) -> set[int]:
    """Descriptors of Snakemake's event loops."""
    loops = [getattr(runner, "_loop", None) for runner in getattr(workflow, "_async_runners", {}).values()]
    parts = [getattr(loop, name, None) for loop in loops for name in ("_selector", "_ssock", "_csock")]
    return {part.fileno() for part in parts if part is not None}


def own_threads(workflow: Any) -> set[int]:
    """Kernel ids of the threads that Snakemake itself has when it makes its executor."""
    listener = getattr(getattr(workflow, "logger_manager", None), "queue_listener", None)
    threads = (threading.main_thread(), threading.current_thread(), getattr(listener, "_thread", None))
    return {thread.native_id for thread in threads if thread is not None and thread.native_id is not None}


def uses_cache(workflow: Any, rule: Any) -> bool:
    """Whether the between-workflow cache has the outputs of a rule's jobs."""
    if workflow.workflow_settings.cache is None:
        return False
    if hasattr(workflow, "get_cache_mode"):
        return bool(workflow.get_cache_mode(rule))
    return bool(rule.cache and rule.cache.output)


def call_cache(workflow: Any, job: Any, name: str) -> bool:
    """Have the between-workflow cache ``fetch`` or ``store`` a job's outputs; False if it does not have them."""
    if hasattr(workflow, "get_cache_mode"):
        call = getattr(workflow.output_file_cache, name)(job, workflow.get_cache_mode(job.rule))
    else:
        call = getattr(job.rule.cache, name)(job)
    try:
        _run_async(workflow, call)
    except CacheMissException:
        return False
    return True


def code_of(rule: Any) -> tuple[object, ...]:
    """The code of a rule by kind; None for each kind that it does not have."""
    return rule.shellcmd, getattr(rule, "run_func_src", None), rule.script, rule.notebook, rule.wrapper, rule.cwl


def has_script(rule: Any) -> bool:
    """Whether Snakemake writes a script of its own for a rule's jobs, into :data:`SCRIPTS`."""
    return bool(rule.script or rule.notebook or rule.wrapper)


def source_directory(rule: Any) -> str:
    """The directory or URI of the file that has a rule; "" if it has none."""
    if not rule.basedir:
        return ""
    get = rule.basedir.get_path_or_uri
    return str(get(secret_free=False) if "secret_free" in inspect.signature(get).parameters else get())


# -- groups ------------------------------------------------------------------------------------------------------------


def is_grouped(workflow: Any) -> bool:
    """Whether rules have a ``group:``, or the command line gives them one. ``Rule.group`` is None with our executor."""
    return bool(workflow.group_settings.overwrite_groups) or any(rule._group is not None for rule in workflow.rules)


def group_id(job: Any) -> tuple[str | None, str]:
    """The id of a job's group, or None, and what its rule says, in which wildcards may stand.

    As ``Rule.expand_group`` does it where ``Rule.group`` is not None.
    """
    rule = job.rule
    group = rule.workflow.group_settings.overwrite_groups.get(rule.name) or rule._group
    if callable(group):
        found, _ = rule.apply_input_function(group, job.wildcards_dict)
        return (None if found is None else str(found)), str(found)
    if group is None:
        return None, ""
    return str(snakemake.io.apply_wildcards(group, job.wildcards_dict)), str(group)


def sum_of_group(workflow: Any, jobs: Sequence[Any], numbers: Mapping[Any, Any]) -> dict[str, object]:
    """Return a group's resources by ``GroupResources.basic_layered``, as if its members ran on another host.

    Args:
        numbers: for each job an object with ``resources`` and ``pipe_group``.

    Raises:
        ValueError: if its members cannot run side by side within ``--resources``.
    """
    layers = workflow.dag.toposorted(set(jobs), inherit_pipe_dependencies=True)
    try:
        return dict(
            GroupResources.basic_layered(
                toposorted_jobs=[[numbers[job] for job in layer] for layer in layers],
                constraints=workflow.global_resources,
                run_local=False,
            )
        )
    except (WorkflowError, ResourceInsufficiencyError) as error:
        raise ValueError(str(error)) from error


# -- run_wrapper and the shell, which run in the process of a job ------------------------------------------------------

_POSITIONS = {name: number for number, name in enumerate(inspect.signature(run_wrapper).parameters)}
SHELL_MODULE: dict[str, Any] = shell.__new__.__globals__
"""The variables of snakemake/shell.py. Not by import: the package binds ``snakemake.shell`` to the class."""


def argument(arguments: tuple[Any, ...], name: str) -> Any:
    """One of the arguments of ``run_wrapper``."""
    return arguments[_POSITIONS[name]]


def in_environment(arguments: tuple[Any, ...], prefix: str | None) -> tuple[Any, ...]:
    """Arguments of ``run_wrapper`` for another conda environment, or for none.

    execute_script() in snakemake/script/__init__.py looks for a script's interpreter there.
    """
    changed = list(arguments)
    changed[_POSITIONS["conda_env"]] = prefix
    base = _POSITIONS["conda_base_path"]
    changed[base] = arguments[base] or prefix  # without any conda it is None, of which no path can be made
    return tuple(changed)


def set_tmpdir(arguments: tuple[Any, ...], scratch: str) -> None:
    """Set the resource ``tmpdir``, which Snakemake's ``shell()`` puts into the environment as TMPDIR."""
    resources = argument(arguments, "resources")
    if hasattr(resources, "tmpdir"):
        resources.tmpdir = scratch


class _Intercepted(SystemExit):
    """Carries a call of Popen out of run_wrapper, which lets a SystemExit pass."""

    def __init__(self, call: dict[str, Any]) -> None:
        super().__init__()
        self.call = call | {"cwd": os.getcwd()}


class _Interceptor:
    """Stands in for the subprocess module in snakemake/shell.py: all of it is real but Popen."""

    def __getattr__(self, name: str) -> Any:
        return getattr(subprocess, name)

    @staticmethod
    def Popen(arguments: Any, **options: Any) -> None:  # noqa: N802
        raise _Intercepted({"arguments": arguments} | options)


def popen_of(arguments: tuple[Any, ...]) -> dict[str, Any] | None:
    """Let Snakemake work out the first process that a job starts, without starting it.

    Returns:
        The arguments of Popen by name, with the first as "arguments" and the working directory as "cwd". None if
        ``run_wrapper`` ends without a process.
    """
    if SHELL_MODULE.get("sp") is not subprocess:  # nothing may start here, whatever this Snakemake does
        return None
    SHELL_MODULE["sp"] = _Interceptor()
    try:
        run_wrapper(*arguments)
    except _Intercepted as start:
        return start.call
    except BaseException:  # the job's own process will meet it too, and can report it
        return None
    finally:
        SHELL_MODULE["sp"] = subprocess
    return None


def discard_script(text: str) -> bool:
    """Delete the script into which Snakemake has put a command of more than 64 KB; False if there is none."""
    script = re.match(r'"[^"]+" "([^"]*/\.snakemake/shell_tmp\.[^"/]+)/script\.sh"', text)
    if script is not None:
        remove_tree(script[1])
    return script is not None


class _Active:
    """Stands in for ``snakemake.deployment.conda.Conda`` in a job whose environment is active already."""

    def __init__(self, container_img: Any = None, prefix_path: Any = None, check: bool = False) -> None:
        pass

    def shellcmd(self, env_address: str, command: str) -> str:
        """Return the command as it is: the environment needs no activation in front of it."""
        del env_address
        return command


def skip_activation(python: tuple[int, int] | None) -> None:
    """Keep Snakemake from activating the conda environment of a job, in which the process is already.

    Args:
        python: the version of the environment's Python, for which Snakemake would start it; None if there is none.
    """
    from snakemake import script  # not above: Snakemake's own process needs it only for scripts
    from snakemake.deployment import conda

    conda.Conda = _Active
    if "Conda" in SHELL_MODULE:
        SHELL_MODULE["Conda"] = _Active
    if python is not None:
        script.PythonScript._get_python_version = lambda _: python
