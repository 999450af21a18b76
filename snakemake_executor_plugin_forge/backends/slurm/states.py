"""The states that Slurm gives to jobs, and what each means to Forge. Pure.

Source: https://slurm.schedmd.com/job_state_codes.html and slurm.h of 22.05 to 25.05: base states, and flags that
squeue and sacct show instead of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from ...spec.verdict import Outcome


class SlurmState(enum.StrEnum):
    """A state as squeue and sacct write it."""

    # base states
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUSPENDED = "SUSPENDED"
    COMPLETED = "COMPLETED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    BOOT_FAIL = "BOOT_FAIL"
    DEADLINE = "DEADLINE"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    # flags
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    EXPEDITING = "EXPEDITING"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    POWER_UP_NODE = "POWER_UP_NODE"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    REVOKED = "REVOKED"
    SIGNALING = "SIGNALING"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    UPDATE_DB = "UPDATE_DB"


@dataclass(frozen=True, slots=True)
class Meaning:
    """The meaning of a state to Forge. With an outcome the job is over; without one it waits, runs, or is cleared."""

    words: str  # a sentence to follow "Slurm: "
    outcome: Outcome | None = None  # if the job ended so and left no verdict of its own
    remedy: str = ""
    held: bool = False  # it will not run before somebody releases it


_AGAIN = "Run it again; --retries N does so by itself"

TABLE: Mapping[SlurmState, Meaning] = {
    SlurmState.PENDING: Meaning("it waits for its turn"),
    SlurmState.RUNNING: Meaning("it runs"),
    SlurmState.SUSPENDED: Meaning("it is suspended, most likely for a job of higher priority"),
    SlurmState.COMPLETED: Meaning(
        "the batch script ended with exit status 0",
        Outcome.LOST,
        "Look whether the working directory is on a file system that the nodes share with this host",
    ),
    SlurmState.CANCELLED: Meaning(
        "it was cancelled, by scancel or by an administrator", Outcome.CANCELLED, "Ask who cancelled it; run it again"
    ),
    SlurmState.FAILED: Meaning(
        "the batch script failed before Forge could write a verdict",
        Outcome.LOST,
        "Look at the end of the batch script's output, which is named in the reason",
    ),
    SlurmState.TIMEOUT: Meaning("it reached the time limit of the Slurm job", Outcome.TIMEOUT, "Raise runtime"),
    SlurmState.NODE_FAIL: Meaning("its node failed", Outcome.LOST, _AGAIN),
    SlurmState.PREEMPTED: Meaning(
        "it was preempted by a job of higher priority",
        Outcome.CANCELLED,
        "Run it again, or in a partition or QOS that is not preempted",
    ),
    SlurmState.BOOT_FAIL: Meaning("its node could not be booted", Outcome.LOST, _AGAIN),
    SlurmState.DEADLINE: Meaning("its deadline passed", Outcome.TIMEOUT, "Move the deadline in slurm_extra"),
    SlurmState.OUT_OF_MEMORY: Meaning(
        "the kernel killed it at the memory limit of the Slurm job", Outcome.OOM, "Raise mem_mb"
    ),
    SlurmState.COMPLETING: Meaning("it has ended, and its node is being cleared"),
    SlurmState.CONFIGURING: Meaning("its node is being prepared"),
    SlurmState.EXPEDITING: Meaning("it is to be run again at once, because its node failed"),
    SlurmState.LAUNCH_FAILED: Meaning("it could not be started on its node, and is to be requeued or held"),
    SlurmState.POWER_UP_NODE: Meaning("its node is being switched on"),
    SlurmState.RECONFIG_FAIL: Meaning("its node could not be configured", Outcome.LOST, _AGAIN),
    SlurmState.REQUEUED: Meaning("it is being requeued"),
    SlurmState.REQUEUE_FED: Meaning("it is being requeued by its federation"),
    SlurmState.REQUEUE_HOLD: Meaning("it was requeued and is held", held=True),
    SlurmState.RESIZING: Meaning("it is being resized"),
    SlurmState.RESV_DEL_HOLD: Meaning("it is held because its reservation was deleted", held=True),
    SlurmState.REVOKED: Meaning(
        "another cluster of the federation has taken it", Outcome.LOST, "Submit to one cluster only"
    ),
    SlurmState.SIGNALING: Meaning("it is being sent a signal"),
    SlurmState.SPECIAL_EXIT: Meaning("it was requeued in a special state and is held", held=True),
    SlurmState.STAGE_OUT: Meaning("its files are being staged out"),
    SlurmState.STOPPED: Meaning("it is stopped"),
    SlurmState.UPDATE_DB: Meaning("its accounting is being written"),
}
"""All states: tests/unit/test_slurm_parse.py sees to it."""


def parse_state(text: str) -> SlurmState | None:
    """The state in the output of a command, such as "CANCELLED by 1000" or "OUT_OF_ME+".

    Returns:
        None for a state that this version of Forge does not know; it takes such a job to be alive.
    """
    word = text.split(" ", 1)[0]
    if word.endswith("+"):
        matches = [state for state in SlurmState if state.startswith(word[:-1])]
        return matches[0] if len(matches) == 1 else None
    return SlurmState(word) if word in SlurmState.__members__ else None


NODE_AT_FAULT = frozenset({SlurmState.NODE_FAIL, SlurmState.BOOT_FAIL, SlurmState.LAUNCH_FAILED})
"""States of jobs that were lost for the sake of their node."""
