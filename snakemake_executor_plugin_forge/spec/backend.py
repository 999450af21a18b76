"""The protocols of a backend: :class:`Backend` for each, :class:`Leaves` for those whose jobs outlive Snakemake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from .host import Host
from .job import LaunchSpec
from .verdict import Order, Verdict

Done = Callable[[Verdict], None]


@runtime_checkable
class Leaves(Protocol):
    """A backend whose jobs can continue without Snakemake."""

    def leave(self, order: Order) -> None:
        """Leave the jobs that continue without Snakemake to themselves, and end all others.

        The backend never calls ``done`` for the jobs that it leaves.
        """


@runtime_checkable
class RunsGroups(Protocol):
    """A backend that runs jobs with the same :attr:`..spec.job.LaunchSpec.group` on one host, side by side."""

    def has_begun(self, name: str) -> bool:
        """Return whether an attempt has begun, or is not there any more."""


class Backend(Protocol):
    """A place where jobs run. It calls ``done`` once for every submitted job, in a thread of its own.

    docs/explanation/backends.md says what a backend promises; tests/contract tries it.
    """

    name: str
    host: Host  # what its hosts let Forge enforce

    def check(self, rule: str, resources: dict[str, object]) -> None:
        """Refuse a rule's resources before anything runs.

        Raises:
            UsageError: names the rule, the resource and its value.
        """

    def submit(self, spec: LaunchSpec, payload: bytes, done: Done, *, is_command: bool) -> None:
        """Start one attempt, and return at once.

        Args:
            payload: the encoded job, opaque to the backend.
            is_command: whether the payload may come down to a command, without any Python of the workflow.
        """

    def cancel(self, name: str, order: Order) -> None:
        """End the attempt ``name`` (TERM, grace, KILL). Its ``done`` is called as for any other end."""

    def cancel_all(self, order: Order) -> None:
        """End every attempt."""

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Wait until no attempt is left. Return False if one is left after this time."""

    def close(self) -> None:
        """Release everything: processes, cgroups, files."""
