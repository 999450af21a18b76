"""Every state that Slurm gives to a job, and what it means to Forge. Pure.

Source: https://slurm.schedmd.com/job_state_codes.html and slurm.h of 22.05 to 25.05: base states, and flags that
squeue and sacct show instead of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from ..model import Outcome


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


class Fate(enum.Enum):
    """What Forge does with a job in such a state."""

    WAIT = enum.auto()  # it will run, or runs, or its end is being tidied up
    HELD = enum.auto()  # it will not run before somebody releases it: the same, and the user is told
    ENDED = enum.auto()  # it is over: its own verdict counts; if it left none, the one of the table


@dataclass(frozen=True, slots=True)
class Meaning:
    """One row of the table."""

    fate: Fate
    words: str  # what Slurm says of the job, to follow "Slurm: "
    outcome: Outcome | None = None  # of a job that ended so and left no verdict of its own
    remedy: str = ""


def _waits(words: str) -> Meaning:
    return Meaning(Fate.WAIT, words)


def _held(words: str) -> Meaning:
    return Meaning(Fate.HELD, words)


def _ended(words: str, outcome: Outcome, remedy: str) -> Meaning:
    return Meaning(Fate.ENDED, words, outcome, remedy)


_AGAIN = "Run it again; --retries N does so by itself"

TABLE: Mapping[SlurmState, Meaning] = {
    SlurmState.PENDING: _waits("it waits for its turn"),
    SlurmState.RUNNING: _waits("it runs"),
    SlurmState.SUSPENDED: _waits("it is suspended, most likely for a job of higher priority"),
    SlurmState.COMPLETED: _ended(
        "the batch script ended with exit status 0",
        Outcome.LOST,
        "Look whether the working directory is on a file system that the nodes share with this host",
    ),
    SlurmState.CANCELLED: _ended(
        "it was cancelled, by scancel or by an administrator", Outcome.CANCELLED, "Ask who cancelled it; run it again"
    ),
    SlurmState.FAILED: _ended(
        "the batch script failed before Forge could write a verdict",
        Outcome.LOST,
        "Look at the end of the batch script's output, which is named in the reason",
    ),
    SlurmState.TIMEOUT: _ended("it reached the time limit of the Slurm job", Outcome.TIMEOUT, "Raise runtime"),
    SlurmState.NODE_FAIL: _ended("its node failed", Outcome.LOST, _AGAIN),
    SlurmState.PREEMPTED: _ended(
        "it was preempted by a job of higher priority",
        Outcome.CANCELLED,
        "Run it again, or in a partition or QOS that is not preempted",
    ),
    SlurmState.BOOT_FAIL: _ended("its node could not be booted", Outcome.LOST, _AGAIN),
    SlurmState.DEADLINE: _ended("its deadline passed", Outcome.TIMEOUT, "Move the deadline in slurm_extra"),
    SlurmState.OUT_OF_MEMORY: _ended(
        "the kernel killed it at the memory limit of the Slurm job", Outcome.OOM, "Raise mem_mb"
    ),
    SlurmState.COMPLETING: _waits("it has ended, and its node is being cleared"),
    SlurmState.CONFIGURING: _waits("its node is being prepared"),
    SlurmState.EXPEDITING: _waits("it is to be run again at once, because its node failed"),
    SlurmState.LAUNCH_FAILED: _waits("it could not be started on its node, and is to be requeued or held"),
    SlurmState.POWER_UP_NODE: _waits("its node is being switched on"),
    SlurmState.RECONFIG_FAIL: _ended("its node could not be configured", Outcome.LOST, _AGAIN),
    SlurmState.REQUEUED: _waits("it is being requeued"),
    SlurmState.REQUEUE_FED: _waits("it is being requeued by its federation"),
    SlurmState.REQUEUE_HOLD: _held("it was requeued and is held"),
    SlurmState.RESIZING: _waits("it is being resized"),
    SlurmState.RESV_DEL_HOLD: _held("it is held because its reservation was deleted"),
    SlurmState.REVOKED: _ended(
        "another cluster of the federation has taken it", Outcome.LOST, "Submit to one cluster only"
    ),
    SlurmState.SIGNALING: _waits("it is being sent a signal"),
    SlurmState.SPECIAL_EXIT: _held("it was requeued in a special state and is held"),
    SlurmState.STAGE_OUT: _waits("its files are being staged out"),
    SlurmState.STOPPED: _waits("it is stopped"),
    SlurmState.UPDATE_DB: _waits("its accounting is being written"),
}
"""All states: tests/unit/test_slurm_text.py sees to it."""


def parse_state(text: str) -> SlurmState | None:
    """A state as the commands write it: "CANCELLED by 1000" and "OUT_OF_ME+" are such.

    Returns:
        None for a state that this version of Forge does not know: such a job is taken to be alive.

    """
    word = text.split(" ", 1)[0]
    if word.endswith("+"):
        matches = [state for state in SlurmState if state.startswith(word[:-1])]
        return matches[0] if len(matches) == 1 else None
    return SlurmState(word) if word in SlurmState.__members__ else None
