"""Crashes on purpose, for tests/integration/test_crash_matrix.py: who is killed at which step.

``FORGE_FAULT=PROCESS:STEP[:RULE][,…]`` in the environment, read once when a process is started. Without it, ``reached``
does nothing. Nobody is killed but the Snakemake that was started with it and its descendants.

- PROCESS: ``snakemake``, ``nursery``, ``launcher``, ``supervisor`` (the one that gets there or, elsewhere, all),
  ``all``, ``self`` (whoever gets there).
- STEP: a name that the code gives to :func:`reached`.
- RULE: only when a job of this rule gets there.

``FORGE_FAULT_LOG`` names a file to which a line is added before anybody is killed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Protocol

_NAMES = {"nursery": "forge-nursery", "launcher": "forge-launcher", "supervisor": "forge-super"}
_TOP = "FORGE_FAULT_TOP"


class Reached(Protocol):
    """What is called at a step."""

    def __call__(self, step: str, rule: str | None = None, /) -> None:
        """Note a step.

        Args:
            rule: whose job it is; None: that of the last :meth:`begin` in this process.

        """

    def begin(self, rule: str) -> None:
        """Note whose job this process has in hand."""


class _Never:
    """Without a fault: nothing."""

    def __call__(self, step: str, rule: str | None = None, /) -> None:
        pass

    def begin(self, rule: str) -> None:
        pass


class Fault:
    """One crash."""

    def __init__(self, text: str, log: str | None) -> None:
        """Read ``PROCESS:STEP[:RULE]``.

        Raises:
            ValueError: if it is none.

        """
        self._process, self._step, *rest = text.split(":")
        self._wanted = rest[0] if rest else None
        self._log = log
        self._rule = ""
        if self._process not in (*_NAMES, "snakemake", "all", "self"):
            raise ValueError(f"FORGE_FAULT={text}: there is no process {self._process!r}")

    def begin(self, rule: str) -> None:
        """See :class:`Reached`."""
        self._rule = rule

    def __call__(self, step: str, rule: str | None = None, /) -> None:
        """See :class:`Reached`."""
        if step != self._step or self._wanted not in (None, self._rule if rule is None else rule):
            return
        victims = list(self._victims())
        if not victims:
            return
        if self._log is not None:
            fd = os.open(self._log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
            os.write(fd, f"{self._process}:{step}:{self._rule if rule is None else rule} {victims}\n".encode())
            os.close(fd)
        for pid in sorted(victims, key=lambda pid: pid == os.getpid()):  # ourselves last
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _victims(self) -> Iterator[int]:
        """Of this very run alone: itself, and what is below the Snakemake that was started with the fault."""
        own = os.getpid()
        if self._process == "self" or (self._process == "supervisor" and _name(own) == _NAMES["supervisor"]):
            yield own
            return
        top, start = map(int, os.environ[_TOP].split(":"))
        if _start_time(top) != start:
            return  # it is dead, and the others are about to end
        if self._process in ("snakemake", "all"):
            yield top
        names = _NAMES.values() if self._process == "all" else [_NAMES.get(self._process)]
        yield from (pid for pid in _below(top) if _name(pid) in names)


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


class _Several:
    """More than one."""

    def __init__(self, faults: list[Fault]) -> None:
        self._faults = faults

    def begin(self, rule: str) -> None:
        for fault in self._faults:
            fault.begin(rule)

    def __call__(self, step: str, rule: str | None = None, /) -> None:
        for fault in self._faults:
            fault(step, rule)


def _read() -> Reached:
    text, log = os.environ.get("FORGE_FAULT"), os.environ.get("FORGE_FAULT_LOG")
    if not text:
        return _Never()
    os.environ.setdefault(_TOP, f"{os.getpid()}:{_start_time(os.getpid())}")  # for the launcher, which is started anew
    return _Several([Fault(one, log) for one in text.split(",")])


reached: Reached = _read()
