"""Jobs that earlier runs in the same working directory have left, because their Snakemake was killed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from .. import fence
from ..record.jsonfile import load
from ..record.layout import CLOSED
from ..record.reader import is_alive
from ..recovery import is_over_on_nodes, recover_dead_runs
from .slurm_states import TABLE, Fate
from .slurm_text import Row


def unclosed_runs(runs: str, own: str) -> set[str]:
    """Earlier runs that may have left jobs.

    Args:
        runs: the directory of all runs.
        own: the run that asks.

    """
    found = set()
    for name in os.listdir(runs):
        state = f"{runs}/{name}/slurm"
        if name == own or not os.path.isdir(state) or is_over_on_nodes(f"{runs}/{name}"):
            continue
        if not is_alive(load(f"{runs}/{name}/run.json") or {}):
            found.add(name)
    return found


def left_over(rows: Iterable[Row], runs: set[str]) -> list[Row]:
    """The jobs of those runs that may still run. Pure."""
    return [
        row
        for row in rows
        if run_of(row.name) in runs and (row.state is None or TABLE[row.state].fate is not Fate.ENDED)
    ]


def run_of(name: str) -> str:
    """The run in the name of a Slurm job of Forge's; "" for other jobs."""
    prefix, _, rest = name.partition("forge-")
    return rest.rpartition(".")[0] if not prefix else ""


def forbid_earlier(runs: str, own: str) -> int:
    """For a run that does not use Slurm: nothing that earlier ones have left there is to publish any more.

    Returns:
        How many attempts were given up.

    Raises:
        OSError: if its directory cannot be written.

    """
    count = 0
    for run in unclosed_runs(runs, own):
        state = f"{runs}/{run}/slurm"
        for batch in os.listdir(state):
            for index in os.listdir(f"{state}/{batch}") if batch.startswith("b") and batch[1:].isdigit() else ():
                attempt = f"{state}/{batch}/{index}"
                count += fence.holder(attempt) is None and fence.give_up(attempt, f"run {own}")
    return count


def clear_closed(runs: str, own: str) -> tuple[str, ...]:
    """Do to the end what copies of closed runs had begun to publish, and remove their layers.

    Args:
        runs: the directory of all runs.
        own: the run that does it.

    Returns:
        The places of what was published.

    Raises:
        OSError: if a journal cannot be followed.

    """
    state = os.path.dirname(runs)
    return recover_dead_runs(state, os.path.dirname(os.path.dirname(state)), own).published


def mark_closed(runs: str, run: str) -> None:
    """Note that this need not be looked at again."""
    with suppress(OSError), open(f"{runs}/{run}/{CLOSED}", "w", encoding="ascii"):
        pass
