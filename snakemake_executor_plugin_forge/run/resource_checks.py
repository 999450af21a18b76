"""Refusals of jobs that ask for what cannot be had: all of them are on record. What can be had is decided in spec/."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..record.attempt_dir import now, record_unseen
from ..spec import words
from ..spec.backend import Backend
from ..spec.errors import UsageError, located
from ..spec.host import Host
from ..spec.job import Config, JobRequest, Network, Require, RunContext
from ..spec.outcome import bare, revised
from ..spec.plan import plan
from ..spec.resources import GPU_RESOURCES, capped, check_required, missing_gpus, without_tiny
from ..spec.verdict import Cause, Outcome, Verdict


class RefusedError(UsageError):
    """A job cannot run with its resources; the verdict is on record."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


class ResourceChecks:
    """The refusals and reductions of a run."""

    def __init__(
        self, config: Config, run: RunContext, number: Callable[[], int], notice: Callable[[str], None]
    ) -> None:
        """Begin without refusals.

        Args:
            number: returns the number of the next attempt.
            notice: shows a sentence to the user.
        """
        self._config, self._run, self._number, self._notice = config, run, number, notice
        self._said_gpus = False
        self._said_tiny: set[str] = set()  # rules
        self._refused: set[tuple[str, tuple[str, ...]]] = set()  # rules and outputs of jobs

    def check(self, rule: str, resources: dict[str, object], backend: Backend, place: str, *, remote: bool) -> None:
        """Refuse resources that a backend's hosts do not have; see :meth:`.engine.Engine.check`."""
        check(rule, resources, backend.check, backend.host, self._config.require, place, remote=remote)
        self.warn_of_gpus(rule, without_gpus(resources) if remote else resources, backend.host.gpus)

    def warn_of_gpus(self, rule: str, resources: Mapping[str, object], gpus: tuple[str, ...]) -> None:
        """Say, once in a run, that a job has fewer GPUs than it asks for."""
        if not self._said_gpus and (lack := missing_gpus(rule, resources, gpus)) is not None:
            self._said_gpus = True
            self._notice(f"Forge: {lack} Its jobs run all the same; --forge-require limits would refuse them.")

    def refuse(self, request: JobRequest, backend: Backend, by_hand: str, error: UsageError) -> Verdict:
        """Put on record that a job was refused."""
        self._refused.add((request.rule, request.outputs))
        possible = {key: value for key, value in request.resources.items() if key == "tmpdir"}
        config, asked = replace(self._config, network=Network.ON), replace(request, resources=possible)
        spec = plan(asked, self._number(), by_hand, "not started", config, backend.host, self._run)
        spec = replace(spec, backend=backend.name, resources=plain(request.resources))
        said = words.without_resources(error)
        return record_unseen(
            spec, revised(bare(spec, now()), Outcome.FAILED, Cause.RESOURCES, said, {"stage": "setup"})
        )

    def fitted(self, request: JobRequest, backend: Backend) -> JobRequest:
        """Leave out limits next to zero, and lower the memory of another try of a job that outgrows the host."""
        resources, said = without_tiny(request.resources)
        if said is not None and request.rule not in self._said_tiny:
            self._said_tiny.add(request.rule)
            self._notice(f"Forge: rule {request.rule} {said}.")
        if request.attempt > 1 and (request.rule, request.outputs) not in self._refused:  # its first try was smaller
            resources, lowered = capped(resources, request.attempt, backend.host.run_memory_bytes)
            if lowered is not None:
                self._notice(f"Forge: rule {request.rule} {lowered}.")
        return request if resources is request.resources else replace(request, resources=resources)


def check(
    rule: str,
    resources: dict[str, object],
    refuse: Callable[[str, dict[str, object]], None],
    host: Host,
    require: Require,
    place: str,
    *,
    remote: bool,
) -> None:
    """Refuse resources that cannot be had, in a run and in a dry run.

    Args:
        refuse: the check of the backend.
        host: the one of the backend.
        place: file and line of the rule.
        remote: whether the backend's own scheduler counts GPUs.

    Raises:
        UsageError: names the rule, its place, the resource and its value.
    """
    try:
        refuse(rule, resources)
        check_required(rule, without_gpus(resources) if remote else resources, require, host)
    except UsageError as error:
        raise located(error, rule, place) from None


def without_gpus(resources: Mapping[str, object]) -> dict[str, object]:
    """Resources without GPUs, for a backend whose scheduler counts them itself."""
    return {key: value for key, value in resources.items() if key not in GPU_RESOURCES}


def plain(resources: Mapping[str, object]) -> dict[str, object]:
    """The resources that are numbers and words, which travel to other processes and hosts."""
    return {key: value for key, value in resources.items() if isinstance(value, str | int | float)}
