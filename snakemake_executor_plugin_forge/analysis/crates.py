"""The provenance store: a directory, named in the catalog, to which each run adds its crate at its end.

No job can see it. A process of its own writes the crates, so that the library's time, memory and failures do not affect
Snakemake. provenance.py makes the content of a crate.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess

from ..kernel.imports import own_command
from ..record.identity import start_time
from ..record.reader import run_directories, state_directory
from ..spec.errors import UsageError

_COMMAND = f"{__package__.rpartition('.')[0]}.cli.main"


def check_store(store: str, key: str) -> None:
    """Check, before the run begins, that it can add a crate to the store; make the directory.

    Args:
        key: the setting that names the store, for messages.

    Raises:
        UsageError: if it cannot be written, or the library that writes crates is not installed.
    """
    if importlib.util.find_spec("rocrate") is None:
        raise UsageError(
            f"{key} {store} needs rocrate, which is not installed: "
            "python -m pip install 'snakemake-executor-plugin-forge[provenance]'"
        )
    try:
        os.makedirs(store, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{key} {store} is a file; it must be a directory, in which each run leaves one.") from None
    except OSError as error:
        raise UsageError(f"{key} {store} cannot be made: {error.strerror}.") from None
    if not os.access(store, os.W_OK | os.X_OK):
        raise UsageError(f"{key} {store} cannot be written by this user.")


def leave_crate(store: str, workdir: str) -> str:
    """Write the crate of the run that this process has just ended; return a message for the user.

    Never raises: the run is over, and ``snakemake-forge provenance`` can write the crate later.
    """
    run = _own_run(workdir)
    if run is None:
        return f"Forge: no crate was left in {store}: the record of this run cannot be read."
    words = [*own_command(_COMMAND), "provenance", f"{store}/{run}", "--directory", workdir, "--run", run]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        return f"Forge: no crate was left in {store}: {error.strerror}. {_later(store, run)}"
    said = " ".join([done.stdout, done.stderr][done.returncode != 0].split())
    if done.returncode:
        return f"Forge: no crate was left in {store}: {said or f'exit code {done.returncode}'} {_later(store, run)}"
    return f"Forge: provenance: {said}"


def _later(store: str, run: str) -> str:
    return f"Do it by hand: snakemake-forge provenance {store}/{run} --run {run}"


def _own_run(workdir: str) -> str | None:
    """The newest run of this very process; None if its record is gone."""
    own = (os.getpid(), start_time(os.getpid()))
    try:
        runs = [(os.path.basename(run.path), run.record) for run in run_directories(state_directory(workdir))]
    except (OSError, UsageError):
        return None
    names = [name for name, record in runs if (record.get("pid"), record.get("start_time")) == own]
    return names[-1] if names else None
