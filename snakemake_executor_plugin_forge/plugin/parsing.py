"""A watch on Python while Snakemake reads a Snakefile: the files that it reads, and those that it leaves open.

An audit hook (PEP 578) sees it, from the moment when Snakemake makes Forge's settings, and ``os.stat`` is replaced
while the Snakefile is read, for ``os.path.exists()``. A hook cannot be removed: later it returns at once.
"""

from __future__ import annotations

import enum
import logging
import os
import random
import sys
import threading
import time
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any

_LISTINGS = ("os.listdir", "os.scandir")
_EVENTS = frozenset(("exec", "open", "sqlite3.connect", *_LISTINGS))
LIBRARIES = tuple({path + "/" for p in (sys.prefix, sys.base_prefix) for path in (p, os.path.realpath(p))})
_OWN = (*LIBRARIES, "/proc/", "/sys/", "/dev/")
_READER = "/snakemake/workflow.py"
_MOST = 5000  # paths; the rest of a huge tree is not noted
_CONTAINERS = (list, dict, set)


class _Stage(enum.Enum):
    WAITING = enum.auto()
    READING = enum.auto()
    OVER = enum.auto()


class Parsing:
    """The observations while Snakemake read the Snakefile: none, if Snakemake was called without settings for Forge."""

    def __init__(self) -> None:
        self.began = time.time()
        self.random = random.getstate()
        self.tasks: set[int] = set()  # threads of a program around Snakemake
        with suppress(OSError):  # without /proc no run begins: see plugin/run_blocks.py
            self.tasks = {int(name) for name in os.listdir("/proc/self/task")}
        self.codes: list[CodeType] = []  # of the Snakefile and of what it includes
        self.read: set[str] = set()  # absolute paths of files that were opened or asked for
        self.listed: set[str] = set()  # directories
        self.patterns: dict[tuple[str, str], set[str]] = {}  # of glob_wildcards(), see _glob_pattern(): where it looked
        self.left_open: dict[int, str] = {}
        self.handlers = _handlers()  # of a program around Snakemake, for logging
        self.values: dict[str, object] = {}  # the fingerprints of the Snakefile's globals when it had been read
        self._stage = _Stage.WAITING
        self._globals: dict[str, Any] = {}
        self._thread = 0
        self._stat = os.stat

    def saw(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Note an event. Called by the hook: two frames above is who caused it."""
        if event == "exec":
            frame = sys._getframe(2)
            if (
                frame.f_code.co_name == "include"
                and frame.f_code.co_filename.endswith(_READER)
                and isinstance(arguments[0], CodeType)
            ):
                self._begin(frame)
                self.codes.append(arguments[0])
        elif self._stage is _Stage.READING:
            self._note(event, arguments)

    def _begin(self, frame: FrameType) -> None:
        if self._stage is not _Stage.WAITING:
            return
        self._globals = frame.f_locals["self"].globals
        self._thread = threading.get_ident()
        self._before = _descriptors()
        self.handlers = _handlers()
        os.stat = self._noting_stat
        self._stage = _Stage.READING

    def _noting_stat(self, path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if self._stage is _Stage.READING:
            _quietly(self._note, "stat", (path,))
        return self._stat(path, *arguments, **options)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._snakefile() is None:
            self.finish()
        elif sys._getframe(3).f_code.co_filename.startswith("<frozen importlib"):  # it lists the whole sys.path
            return
        elif event in _LISTINGS:
            pattern = _glob_pattern(sys._getframe(3))
            directories = self.listed if pattern is None else self.patterns.setdefault(pattern, set())
            self._add(directories, "." if arguments[0] is None else arguments[0])
        elif event != "open" or arguments[2] & os.O_ACCMODE != os.O_WRONLY:
            self._add(self.read, arguments[0])

    @staticmethod
    def _add(noted: set[str], path: object) -> None:
        if not isinstance(path, str | bytes | os.PathLike):  # a descriptor
            return
        path = os.fsdecode(path)
        if (
            len(noted) < _MOST
            and not path.startswith(_OWN)
            and "/.snakemake/" not in path
            and "/__pycache__/" not in path
        ):
            noted.add(os.path.abspath(path))

    def _snakefile(self) -> FrameType | None:
        """The frame of the Snakefile's top level, if it is being read. Threads of it may have any frames."""
        frame: FrameType | None = sys._getframe(2)
        if threading.get_ident() != self._thread:
            return frame
        while frame is not None and not (frame.f_globals is self._globals and frame.f_code.co_name == "<module>"):
            frame = frame.f_back
        return frame

    def is_of(self, namespace: dict[str, Any]) -> bool:
        """Whether :attr:`values` are those of a namespace: each module of a workflow has its own."""
        return namespace is self._globals

    def finish(self) -> None:
        """Stop noting: the Snakefile has been read."""
        if self._stage is not _Stage.READING:
            return
        self._stage = _Stage.OVER
        os.stat = self._stat
        after = _descriptors()
        self.left_open = {n: link for n, link in after.items() if self._before.get(n) != link}
        self.values = {name: fingerprint(value) for name, value in self._globals.items()}


def fingerprint(value: object) -> object:
    """A value that differs when a global has been bound again, or a built-in container has other elements."""
    if not isinstance(value, _CONTAINERS) or len(value) > _MOST:
        return id(value)
    parts = (*value.keys(), *value.values()) if isinstance(value, dict) else tuple(value)
    return id(value), hash(tuple(map(id, parts)))


def is_open_still(number: int, link: str) -> bool:
    """Whether a descriptor that the Snakefile has left open is open now."""
    try:
        return os.readlink(f"/proc/self/fd/{number}") == link
    except OSError:
        return False


def _handlers() -> list[Any]:
    """References to all handlers of Python's logging."""
    return list(logging._handlerList)  # type: ignore[attr-defined]


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the directory itself
            continue
    return found


def _glob_pattern(frame: FrameType | None) -> tuple[str, str] | None:
    """The regular expression and the directory of Snakemake's ``glob_wildcards()``, if that lists a directory."""
    for _ in range(6):
        if frame is None:
            return None
        if frame.f_code.co_name == "glob_wildcards":
            return str(frame.f_locals["pattern"].pattern), str(frame.f_locals["dirname"])
        frame = frame.f_back
    return None


def _quietly(call: Any, *arguments: Any) -> None:
    """Call a function. An error here would be one of whatever the hook looks at."""
    try:
        call(*arguments)
    except Exception:
        return


_current: list[Parsing] = []  # at most one


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS and _current:
        try:
            _current[0].saw(event, arguments)
        except Exception:
            return


def begin() -> None:
    """Note from now on what the next Snakefile does."""
    if _current:
        _current[0].finish()
    else:
        sys.addaudithook(_hook)
    _current[:] = [Parsing()]


def leave_handlers() -> None:
    """Take from all loggers of a forked process the handlers that a program around Snakemake had given them.

    Those of the Snakefile stay: a new process would make them, too.
    """
    handlers = [handler() for handler in ended().handlers]  # all of them, if Snakemake was called without settings
    for log in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(log, logging.Logger):
            log.handlers[:] = [handler for handler in log.handlers if handler not in handlers]


def ended() -> Parsing:
    """The observations."""
    if not _current:
        return Parsing()
    _current[0].finish()
    return _current[0]
