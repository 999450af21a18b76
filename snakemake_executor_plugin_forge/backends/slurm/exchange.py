"""Files through which a controller and its nodes talk, on the file system that both see.

::

    <run>/slurm/<batch>/<place>/     one attempt, and its fence (see fence.py)
        launch                       from the controller, before it is submitted
        claims/  taken
        terminated.<copy>            the verdict of a copy that Slurm has ended, which may be run again
        exited.<copy>                the process of that copy in a worker has ended; 0: nothing was begun
        batch-<job id>.out           the output of the batch script itself; empty after success
    <run>/slurm/results/             verdicts that the controller has not seen yet: <batch>.<place>.json

A place is the index of the attempt's Slurm job in its array or, in a pack, index and position: "3" or "3.0".

The verdict is JSON and not a pickle: jobs run with the rights of the node's part of Forge, and no file that a job wrote
may run code in the controller. The launch is a pickle, whose checksum stands in the batch script, which Slurm keeps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import re
from contextlib import suppress
from dataclasses import dataclass

from ...record.codec import decode, encode, load_verdict
from ...record.jsonfile import read_object, replace_file, to_disk
from ...spec.errors import HostError
from ...spec.job import LaunchSpec, Require
from ...spec.outcome import shortened
from ...spec.paths import COPY_SIGN, run_name
from ...spec.verdict import Verdict
from . import fence

LAUNCH, RESULTS, TERMINATED_COPY, EXITED = "launch", "results", "terminated.", "exited."
NODE_PROCESS = "forge-node"
"""The name of the process that runs an attempt on a node; it is the ancestor of the attempt's processes."""

_MAX_RESULT_BYTES = 1 << 22
_PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of files that can be read a moment later."""


@dataclass(frozen=True, slots=True)
class Launch:
    """The order of the controller to the node."""

    spec: LaunchSpec
    payload: bytes  # a pickled .launcher.Command
    rendered_scratch: str  # the $TMPDIR that the command was rendered with
    require: Require
    run_pids: int | None
    gpus: tuple[str, ...] | None  # --forge-gpus; None: the GPUs of the Slurm job
    state: str  # <run>/slurm
    shares: bool = False  # other attempts run at the same time in its Slurm job


def attempt_directory(state: str, batch: str, index: int, part: int | None) -> str:
    """Return the directory in which the controller and the copies of one attempt meet.

    Args:
        part: the position in its pack; None: the Slurm job has this attempt only.
    """
    return f"{state}/{batch}/{index}" if part is None else f"{state}/{batch}/{index}.{part}"


def index_of(attempt: str) -> int:
    """Return the index in its array of the Slurm job to which an attempt directory belongs.

    Raises:
        ValueError: if the directory has another name.
    """
    return int(os.path.basename(attempt).partition(".")[0])


def part_of(attempt: str) -> int | None:
    """Return the position in its pack of an attempt, by the name of its directory; None: there is no pack.

    Raises:
        ValueError: if the directory has another name.
    """
    _, dot, part = os.path.basename(attempt).partition(".")
    return int(part) if dot else None


def script_directory(attempt: str) -> str:
    """Return the directory with the output of the batch script: that of the attempt, or of the first of its pack."""
    directory, place = os.path.split(attempt)
    index, dot, _ = place.partition(".")
    return f"{directory}/{index}.0" if dot else attempt


def copy_directory(job_dir: str, number: int) -> str:
    """Return the directory of a copy's record; the first copy has the attempt's own."""
    return job_dir if number == 1 else f"{job_dir}.copy{number}"


def place_name(attempt: str) -> str:
    """Return the name of an attempt directory within its run."""
    batch, place = attempt.rsplit("/", 2)[1:]
    return f"{batch}.{place}"


COPY_NAME = re.compile(rf"forge-.+{COPY_SIGN}.+\.\d+\.\d+")
"""The names that :func:`copy_name` makes."""


def copy_name(run_id: str, attempt: str, number: int) -> str:
    """Return the name of a copy's scratch and layers: staging/recovery.py knows them by the sign in it."""
    return f"{run_name(run_id)}{COPY_SIGN}{place_name(attempt)}.{number}"


def state_of(attempt: str) -> str:
    """Return the directory of the backend in the run of an attempt."""
    return attempt.rsplit("/", 2)[0]


def result_name(attempt: str) -> str:
    """Return the name of an attempt's file in RESULTS."""
    return f"{place_name(attempt)}.json"


def write_launch(attempt: str, launch: Launch) -> str:
    """Write the order for a node, completely or not at all, and return its checksum for the batch script.

    It is on the disk after :func:`sync_launch`.

    Raises:
        OSError: if it cannot be written.
    """
    os.makedirs(attempt, exist_ok=True)
    data = pickle.dumps(launch, protocol=pickle.HIGHEST_PROTOCOL)
    replace_file(f"{attempt}/{LAUNCH}", data)
    return hashlib.sha256(data).hexdigest()


def sync_launch(attempt: str) -> None:
    """Write to the disk what :func:`write_launch` has written, so that the job outlives a power cut of this host.

    That is a step of its own because the first sync of many files takes the others along: 100 launches took 0.3 s one
    after the other.

    Raises:
        OSError: if that is not possible.
    """
    to_disk(f"{attempt}/{LAUNCH}")
    to_disk(attempt)


def read_launch(attempt: str, checksum: str) -> Launch:
    """Return the order that :func:`write_launch` wrote.

    Args:
        checksum: of the file, which Slurm has kept with the batch script: a job may have written another pickle.

    Raises:
        HostError: if it cannot be read here, or was changed.
    """
    try:
        with open(f"{attempt}/{LAUNCH}", "rb") as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() != checksum:
            raise HostError(f"{attempt}/{LAUNCH} is not what Snakemake has submitted: it was changed. Nothing was run.")
        launch = pickle.loads(data)
    except (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError) as error:
        raise HostError(
            f"{attempt}/{LAUNCH} cannot be read on this node: {error}. The working directory and the environment of "
            "Snakemake must be on a file system that the nodes share with the host that submits."
        ) from error
    assert isinstance(launch, Launch)
    return launch


def write_result(state: str, attempt: str, verdict: Verdict) -> None:
    """Leave a verdict for the controller.

    Raises:
        OSError: if it cannot be written.
    """
    os.makedirs(f"{state}/{RESULTS}", exist_ok=True)
    replace_file(f"{state}/{RESULTS}/{result_name(attempt)}", _text(verdict), durable=True)


def write_terminated(attempt: str, copy: int, verdict: Verdict) -> None:
    """Leave the verdict of a copy that Slurm ended. Only Slurm knows whether there will be another copy.

    Raises:
        OSError: if it cannot be written.
    """
    replace_file(f"{attempt}/{TERMINATED_COPY}{copy}", _text(verdict), durable=True)


def write_exit(attempt: str) -> None:
    """Say that the process of the newest copy has ended; a result of it was there before."""
    with suppress(OSError), open(f"{attempt}/{EXITED}{fence.latest(attempt)}", "w", encoding="ascii"):
        pass


def has_exited(attempt: str) -> bool:
    """Return whether :func:`write_exit` has said so of the newest copy."""
    return os.path.exists(f"{attempt}/{EXITED}{fence.latest(attempt)}")


def _text(verdict: Verdict) -> str:
    """Return a verdict in JSON, shortened if the controller would not read all of it: the record has it whole."""
    text = json.dumps(encode(verdict))
    return text if len(text) <= _MAX_RESULT_BYTES else json.dumps(encode(shortened(verdict)))


def terminated(attempt: str) -> Verdict | None:
    """Return the verdict that :func:`write_terminated` left for the newest copy; None if it left none."""
    return load_verdict(f"{attempt}/{TERMINATED_COPY}{fence.latest(attempt)}", _MAX_RESULT_BYTES)


def new_results(state: str) -> list[str]:
    """Return the names of the results: it reads one directory, however many jobs there are."""
    with suppress(FileNotFoundError):
        return [name for name in os.listdir(f"{state}/{RESULTS}") if not name.startswith(".")]
    return []


def take_result(state: str, name: str) -> Verdict | None:
    """Read a result and remove it; None if it is damaged, not there, or cannot be read for the moment."""
    path, verdict = f"{state}/{RESULTS}/{name}", None
    try:
        verdict = decode(read_object(path, _MAX_RESULT_BYTES))
    except ValueError:
        pass
    except OSError as error:
        if error.errno in _PASSING:
            return None
    with suppress(OSError):  # it counts once, whether it can be removed or not
        os.unlink(path)
    return verdict


def read_result(state: str, name: str) -> Verdict | None:
    """Read a result and leave it there; None if it is damaged or not there."""
    return load_verdict(f"{state}/{RESULTS}/{name}", _MAX_RESULT_BYTES)
