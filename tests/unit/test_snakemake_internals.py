"""The parts of Snakemake that Forge relies on, and how often Snakemake's own scheduler and limiter look again."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import snakemake.cli  # noqa: F401 - its modules import each other, and only from here on they can be
from snakemake.jobs import Job
from snakemake.persistence import PersistenceBase
from snakemake.rules import Rule
from snakemake.scheduling.job_scheduler import JobRateLimiter, JobScheduler
from snakemake.settings.types import MaxJobsPerTimespan

from snakemake_executor_plugin_forge.plugin.later_changes import NO_CHANGES
from snakemake_executor_plugin_forge.plugin.run_wrapper import CallRunner, encode_call
from snakemake_executor_plugin_forge.plugin.snakemake_internals import SHELL_MODULE, argument
from snakemake_scheduler_plugin_forge.snakemake_internals import make_sparse

SECONDS = 0.2


@pytest.mark.parametrize(("owner", "name"), [
    (Job, "remove_existing_output"), (Job, "cleanup"), (Job, "non_derived_params"), (PersistenceBase, "finished"),
    (JobScheduler, "_schedule_reevalutation"), (JobScheduler, "_finish_jobs"), (Rule, "is_template_engine"),
    (JobScheduler, "job_selector"), (JobScheduler, "_handle_error"), (Job, "is_pipe_or_service_input"),
])
def test_snakemake_has_each_part_that_all_versions_have(owner: type, name: str) -> None:
    assert hasattr(owner, name)


def test_run_wrapper_and_shell_have_what_forge_replaces() -> None:
    assert {"sp", "STDOUT"} <= SHELL_MODULE.keys()
    names = tuple(range(40))
    assert [argument(names, name) for name in ("job_rule", "resources")] == [0, 6]


class Unpicklable:
    def __reduce__(self) -> Any:
        raise NotImplementedError("netCDF4.Dataset says so")


class Delegating:
    """An object with another one's attributes, which does not exist yet when pickle asks for ``__setstate__``."""

    def __init__(self, data: dict[str, int]) -> None:
        self.data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


WORKFLOW: Any = SimpleNamespace(linemaps=object(), globals={})


@pytest.mark.parametrize("value", [lambda: 1, Unpicklable(), Delegating({})])
def test_what_cannot_be_pickled_there_and_back_is_found_before_a_job_gets_it(value: object) -> None:
    with pytest.raises(pickle.PicklingError):
        encode_call((value,), WORKFLOW)


def test_the_nursery_outlives_what_it_cannot_unpickle() -> None:
    assert CallRunner(WORKFLOW).render(pickle.dumps(Delegating({})), "/tmp") is None


def scheduler(jobs: int) -> Any:
    """A scheduler that may start so many jobs in the time span."""
    made = object.__new__(JobScheduler)
    made.job_rate_limiter = JobRateLimiter(MaxJobsPerTimespan(jobs, f"{SECONDS}s"))
    made._open_jobs = threading.Semaphore(0)
    made.queued = []
    made.workflow = SimpleNamespace(dag=SimpleNamespace(has_unfinished_queue_input_jobs=lambda: bool(made.queued)))
    make_sparse(made)
    return made


def looks(made: Any) -> int:
    """Count how often it was told to look, after all timers have run."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join()
    count = 0
    while made._open_jobs.acquire(blocking=False):
        count += 1
    return count


def test_nothing_passes_with_time_while_jobs_may_be_started() -> None:
    made = scheduler(jobs=2)
    made.job_rate_limiter.register_jobs(1)
    made._schedule_reevalutation(made.job_rate_limiter.timespan)
    assert looks(made) == 0


def test_after_the_time_span_it_looks_again() -> None:
    made = scheduler(jobs=2)
    made.job_rate_limiter.register_jobs(2)
    for _ in range(50):
        made._schedule_reevalutation(made.job_rate_limiter.timespan)
    assert 1 <= looks(made) <= 3
    assert made.job_rate_limiter.get_free_jobs() == 2


def test_it_looks_again_where_starting_the_jobs_took_longer_than_the_time_span() -> None:
    made = scheduler(jobs=2)
    made.job_rate_limiter.register_jobs(2)
    made.job_rate_limiter._jobs.clear()  # they are older than the time span now
    made._schedule_reevalutation(made.job_rate_limiter.timespan)
    assert looks(made) == 1


def test_other_waits_are_what_they_were() -> None:
    made = scheduler(jobs=2)
    made._schedule_reevalutation(SECONDS / 2)
    assert looks(made) == 1
    made.queued = ["a job with from_queue()"]  # with a --queue-input-wait-time like the time span
    made._schedule_reevalutation(made.job_rate_limiter.timespan)
    assert looks(made) == 1


def test_without_a_limit_nothing_is_changed() -> None:
    made = object.__new__(JobScheduler)
    made.job_rate_limiter = None
    make_sparse(made)
    assert "_schedule_reevalutation" not in made.__dict__


class TermWhenUnpickled:
    def __reduce__(self) -> tuple[object, tuple[int]]:
        return signal.raise_signal, (signal.SIGTERM,)


def test_a_job_that_is_ended_before_its_code_has_begun_was_ended_by_that_signal() -> None:
    """Else the record says that its sandbox could not be set up."""
    payload = pickle.dumps(("command", TermWhenUnpickled(), None, NO_CHANGES))
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            found = CallRunner(SimpleNamespace(globals={})).execute(payload, {}, "/tmp")
            code = int(str(found["exit_code"]))
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGTERM
