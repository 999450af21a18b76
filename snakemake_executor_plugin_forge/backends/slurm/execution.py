"""The command of a job on a node: the controller has rendered it, before anybody knew the job's scratch."""

from __future__ import annotations

import pickle
from collections.abc import Mapping

from ...workers import launcher
from ...workers.launcher import Command
from . import mpi


def with_scratch(payload: bytes, rendered_scratch: str, *, shared_tmp: bool = False) -> bytes:
    """Add to a command the name that stands in it for its scratch, and whether /tmp itself takes its place."""
    command = Command(*pickle.loads(payload))
    return pickle.dumps((command, rendered_scratch, shared_tmp))


def execute(payload: bytes, environment: Mapping[str, str], scratch: str) -> dict[str, object]:
    """Put the real scratch into the command, and start it; runs in the job."""
    command, rendered, shared_tmp = pickle.loads(payload)
    if shared_tmp:
        environment = mpi.with_shared_tmp(environment)
    place = environment["TMPDIR"]  # ``scratch`` is its name from before the job had it
    command = command._replace(
        arguments=tuple(argument.replace(rendered, place) for argument in command.arguments),
        changed={name: value.replace(rendered, place) for name, value in command.changed.items()},
    )
    return launcher.execute(pickle.dumps(command), environment, scratch)
