"""Crashes on purpose: which process dies at which step. Forge's processes load this file: see kernel/failpoints.py.

The environment has ``FORGE_FAULT=PROCESS:STEP[:RULE][,…]``. Only the Snakemake that was started with it, and its
descendants, can be killed.

- PROCESS: ``snakemake``, ``nursery``, ``launcher``, ``supervisor`` (the one that reaches the step; all of them if
  another process does), ``all``, ``self`` (the process that reaches the step).
- STEP: a name that the code passes to ``reached``.
- RULE: only a job of this rule triggers the fault.

``FORGE_FAULT_LOG`` names a file that gets a line before each kill.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

NAMES = {"nursery": "forge-nursery", "launcher": "forge-launcher", "supervisor": "forge-super"}
_TOP = "FORGE_FAULT_TOP"


def environment(fault: str, log: object = None) -> dict[str, str]:
    """The variables that make ``fault`` happen."""
    return {"FORGE_FAILPOINTS": __file__, "FORGE_FAULT": fault} | ({} if log is None else {"FORGE_FAULT_LOG": str(log)})


class Fault:
    """One crash."""

    def __init__(self, text: str, log: str | None) -> None:
        self._process, self._step, *rest = text.split(":")
        self._wanted = rest[0] if rest else None
        self._log = log
        if self._process not in (*NAMES, "snakemake", "all", "self"):
            raise ValueError(f"FORGE_FAULT={text}: there is no process {self._process!r}")

    def reached(self, step: str, rule: str) -> None:
        """Kill if this is the step."""
        if step != self._step or self._wanted not in (None, rule) or not (victims := list(self._victims())):
            return
        if self._log is not None:
            fd = os.open(self._log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
            os.write(fd, f"{self._process}:{step}:{rule} {victims}\n".encode())
            os.close(fd)
        for pid in sorted(victims, key=lambda pid: pid == os.getpid()):  # this process last
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _victims(self) -> Iterator[int]:
        own = os.getpid()
        if self._process == "self" or (self._process == "supervisor" and _name(own) == NAMES["supervisor"]):
            yield own
            return
        top, start = map(int, os.environ[_TOP].split(":"))
        if _start_time(top) != start:
            return  # Snakemake is dead, and the others are about to end
        if self._process in ("snakemake", "all"):
            yield top
        names = NAMES.values() if self._process == "all" else [NAMES.get(self._process)]
        yield from (pid for pid in _below(top) if _name(pid) in names)


class Killer:
    """Several faults, each tried at every step."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults
        self._rule = ""

    def begin(self, rule: str) -> None:
        self._rule = rule

    def __call__(self, step: str, rule: str | None = None, /) -> None:
        for fault in self._faults:
            fault.reached(step, self._rule if rule is None else rule)


def open_hook() -> Killer:
    """Make the hook of kernel/failpoints.py."""
    os.environ.setdefault(_TOP, f"{os.getpid()}:{_start_time(os.getpid())}")  # for the launcher, which is a separate program
    return Killer([Fault(one, os.environ.get("FORGE_FAULT_LOG")) for one in os.environ["FORGE_FAULT"].split(",")])


def _name(pid: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().strip()
    return ""


def _start_time(pid: int) -> int | None:
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])
    return None


def _below(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                for child in file.read().split():
                    yield int(child)
                    yield from _below(int(child))
