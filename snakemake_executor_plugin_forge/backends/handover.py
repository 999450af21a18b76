"""What a controller and its nodes say to each other: through files, on the file system that both see.

::

    <run>/slurm/<batch>/<index>/     one attempt, and its fence (see ..fence)
        launch                       from the controller, before it is submitted
        claims/  taken
        terminated.<copy>            the verdict of a copy that Slurm has ended, which may be run again
        batch-<job id>.out           what the batch script itself said; empty if all went well
    <run>/slurm/results/             verdicts that the controller has not seen yet: <batch>.<index>.json

The verdict is JSON and not a pickle: jobs run with the same rights as the node's part of Forge, and what they may have
written must not be able to do anything in the controller.
"""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .. import fence, recovery
from ..errors import HostError
from ..model import LaunchSpec, Outcome, Require, Usage, Verdict
from ..record.jsonfile import replace_file

LAUNCH, RESULTS, TERMINATED_COPY = "launch", "results", "terminated."
NODE_PROCESS = "forge-node"
"""What the process is called that runs an attempt on a node; all of the attempt is below it."""

_MAX_RESULT_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class Launch:
    """What the controller gives to the node."""

    spec: LaunchSpec
    payload: bytes  # a pickled .launcher.Command
    rendered_scratch: str  # the $TMPDIR that the command was rendered with
    require: Require
    run_pids: int | None
    gpus: tuple[str, ...] | None  # --forge-gpus; None: those that the Slurm job has
    state: str  # <run>/slurm


def attempt_directory(state: str, batch: str, index: int) -> str:
    """Where the controller and the copies of one attempt meet."""
    return f"{state}/{batch}/{index}"


def copy_directory(job_dir: str, number: int) -> str:
    """The record of a copy; that of the first one is the attempt's own."""
    return job_dir if number == 1 else f"{job_dir}.copy{number}"


def place_name(attempt: str) -> str:
    """What names an attempt directory in its run."""
    batch, index = attempt.rsplit("/", 2)[1:]
    return f"{batch}.{index}"


COPY_NAME = re.compile(rf"forge-.+{recovery.COPY_SIGN}.+\.\d+\.\d+")
"""What :func:`copy_name` makes."""


def copy_name(run_id: str, attempt: str, number: int) -> str:
    """What the scratch and the layers of a copy are called: recovery.py knows them by the sign in it."""
    return f"forge-{run_id}{recovery.COPY_SIGN}{place_name(attempt)}.{number}"


def state_of(attempt: str) -> str:
    """The directory of the backend in its run."""
    return attempt.rsplit("/", 2)[0]


def result_name(attempt: str) -> str:
    """The file in RESULTS for an attempt directory."""
    return f"{place_name(attempt)}.json"


def write_launch(attempt: str, launch: Launch) -> None:
    """Write it whole or not at all.

    Raises:
        OSError: if it cannot be written.

    """
    os.makedirs(attempt, exist_ok=True)
    replace_file(f"{attempt}/{LAUNCH}", pickle.dumps(launch, protocol=pickle.HIGHEST_PROTOCOL), durable=True)


def read_launch(attempt: str) -> Launch:
    """What :func:`write_launch` wrote.

    Raises:
        HostError: if it cannot be read here.

    """
    try:
        with open(f"{attempt}/{LAUNCH}", "rb") as file:
            launch = pickle.load(file)
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise HostError(
            f"{attempt}/{LAUNCH} cannot be read on this node: {error}. The working directory and the environment of "
            "Snakemake must be on a file system that the nodes share with the host that submits."
        ) from error
    assert isinstance(launch, Launch)
    return launch


def write_result(state: str, attempt: str, verdict: Verdict) -> None:
    """Tell the controller.

    Raises:
        OSError: if it cannot be written.

    """
    os.makedirs(f"{state}/{RESULTS}", exist_ok=True)
    replace_file(f"{state}/{RESULTS}/{result_name(attempt)}", json.dumps(encode(verdict)), durable=True)


def write_terminated(attempt: str, copy: int, verdict: Verdict) -> None:
    """Leave word of a copy that Slurm has ended. Only the controller knows whether there will be another one.

    Raises:
        OSError: if it cannot be written.

    """
    replace_file(f"{attempt}/{TERMINATED_COPY}{copy}", json.dumps(encode(verdict)), durable=True)


def terminated(attempt: str) -> Verdict | None:
    """The verdict that :func:`write_terminated` left for the newest copy; None if it left none."""
    try:
        with open(f"{attempt}/{TERMINATED_COPY}{fence.latest(attempt)}", "rb") as file:
            return decode(json.loads(file.read(_MAX_RESULT_BYTES)))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def new_results(state: str) -> list[str]:
    """The names of the results that are there; one look at one directory, however many jobs there are."""
    with suppress(FileNotFoundError):
        return [name for name in os.listdir(f"{state}/{RESULTS}") if not name.startswith(".")]
    return []


def take_result(state: str, name: str) -> Verdict | None:
    """Read a result and remove it; None if it is damaged or not there."""
    verdict = read_result(state, name)
    with suppress(FileNotFoundError):
        os.unlink(f"{state}/{RESULTS}/{name}")
    return verdict


def read_result(state: str, name: str) -> Verdict | None:
    """The same, without removing it."""
    try:
        with open(f"{state}/{RESULTS}/{name}", "rb") as file:
            return decode(json.loads(file.read(_MAX_RESULT_BYTES)))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def encode(verdict: Verdict) -> dict[str, object]:
    """All of a verdict in plain values."""
    plain = {name: getattr(verdict, name) for name in verdict.__slots__}
    return {
        **plain,
        "outcome": str(verdict.outcome),
        "usage": verdict.usage.as_json(),
        "notes": list(verdict.notes),
        "evidence": dict(verdict.evidence),
    }


def decode(data: Any) -> Verdict:
    """The opposite.

    Raises:
        ValueError, TypeError, KeyError: for what :func:`encode` cannot have written.

    """
    for key in ("reason", "started", "stderr_tail", "directory", "remedy"):
        if not isinstance(data[key], str):
            raise TypeError(f"{key} is no text")
    if not isinstance(data["usage"], Mapping) or not isinstance(data["evidence"], Mapping):
        raise TypeError("usage or evidence is no object")
    return Verdict(
        outcome=Outcome(data["outcome"]),
        reason=data["reason"],
        exit_code=_number(data["exit_code"]),
        signal=_number(data["signal"]),
        usage=_usage(data["usage"]),
        started=data["started"],
        seconds=float(data["seconds"]),
        notes=tuple(map(str, data["notes"])),
        error=None if data["error"] is None else str(data["error"]),
        stderr_tail=data["stderr_tail"],
        directory=data["directory"],
        remedy=data["remedy"],
        evidence=dict(data["evidence"]),
        in_place=bool(data["in_place"]),
    )


def _usage(data: Mapping[str, Any]) -> Usage:
    for name, value in data.items():
        if name not in Usage.__slots__ or not (value is None or isinstance(value, int | float)):
            raise ValueError(f"usage.{name} is {value!r}")
    return Usage(**data)


def _number(value: object) -> int | None:
    if value is not None and not isinstance(value, int):
        raise TypeError(f"{value!r} is no whole number")
    return value
