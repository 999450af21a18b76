"""Objects among the globals of a Snakefile that belong to one process, or whose state a fork would share."""

from __future__ import annotations

import concurrent.futures
import datetime as dt
import functools
import os
import random
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

from .parsing import LIBRARIES

_MOST, _DEEPEST = 20_000, 5
_SMALLEST_PID = 1000  # a smaller number may be any number
_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def objects(namespace: Mapping[str, Any], vanilla: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All objects in globals of a Snakefile and of its own modules, in containers and attributes too.

    Args:
        vanilla: what Snakemake gives every Snakefile.

    Yields:
        The name of the global that leads to it, and the object. At most 20,000, five levels deep.
    """
    stack = [(name, value, 0) for name, value in namespace.items() if vanilla.get(name) is not value]
    seen: set[int] = {id(namespace)}
    while stack and len(seen) < _MOST:
        name, value, depth = stack.pop()
        if not isinstance(value, _PLAIN):
            if id(value) in seen:
                continue
            seen.add(id(value))
            if depth < _DEEPEST:
                stack += [(name, part, depth + 1) for part in _parts(value, seen)]
        yield name, value


def _parts(value: Any, seen: set[int]) -> list[Any]:
    """Yield the objects that an object holds. The objects of libraries and of Snakemake hold nothing that counts."""
    match value:
        case list() | tuple() | set() | frozenset():
            return list(value)
        case dict():
            return list(value.values())
        case ModuleType():
            return [] if is_library(getattr(value, "__file__", None)) else _values(vars(value))
        case FunctionType():
            return _parts_of_function(value, seen)
        case MethodType():
            return [value.__self__, value.__func__]
        case functools.partial():
            return [value.func, *value.args, *value.keywords.values()]
        case type():
            return _values(vars(value)) if _is_own(value) else []
    return [*_values(getattr(value, "__dict__", {})), type(value)] if _is_own(type(value)) else []


def _parts_of_function(function: FunctionType, seen: set[int]) -> list[Any]:
    if is_library(function.__code__.co_filename):
        return []
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    parts = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if id(function.__globals__) not in seen and not is_library(function.__globals__.get("__file__")):
        seen.add(id(function.__globals__))
        parts += _values(function.__globals__)
    return parts


def _values(namespace: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in namespace.items() if not name.startswith("__")]


def is_library(path: str | None) -> bool:
    """Whether a file is of Python, of Snakemake or of an installed package; None is a part of the interpreter."""
    return path is None or path.startswith(LIBRARIES) or "/site-packages/" in path or "/dist-packages/" in path


def _is_own(kind: type) -> bool:
    """Whether a class is the Snakefile's, whose globals have no ``__name__``, or one of its modules."""
    return kind.__module__ is None or not is_library(getattr(sys.modules.get(kind.__module__), "__file__", None))


def live_object(value: Any, began: float) -> str | None:
    """Return the kind of an object that belongs to one process or has a state; None if a copy does as well.

    Args:
        began: when Snakemake started (seconds since the epoch): a later time was taken by the Snakefile.
    """
    kind = type(value)
    match value:
        case bool() | str() | bytes():
            return None
        case int():
            return "the process id" if value == os.getpid() and value >= _SMALLEST_PID else None
        case float() | dt.datetime():
            return "the time" if began <= _seconds(value) <= time.time() else None
        case uuid.UUID():
            return "a UUID" if value.version in (1, 4) else None
        case random.SystemRandom() | type() | ModuleType() | FunctionType():
            return None
        case random.Random() | concurrent.futures.Executor():
            return _called(kind)
    module = kind.__module__ or ""
    if module.startswith(("numpy.random", "multiprocessing.", "asyncio.")) and module != "multiprocessing.context":
        return _called(kind)
    if module in ("sqlite3", "socket", "subprocess", "_io", "mmap") or hasattr(kind, "__next__"):
        return _called(kind) if _is_active(value) else None
    return None


def _called(kind: type) -> str:
    return f"an object of {kind.__module__}.{kind.__qualname__}".replace("_io.", "io.")


def _is_active(value: Any) -> bool:
    """Whether a file, a socket or a process is in use still; an iterator always is."""
    if isinstance(value, subprocess.Popen):
        return value.returncode is None
    if type(value).__module__ == "sqlite3":
        return type(value).__name__ in ("Connection", "Cursor")
    if getattr(value, "closed", False) is True:
        return False
    if not hasattr(value, "fileno"):
        return hasattr(type(value), "__next__")
    try:
        return int(value.fileno()) > 2
    except (OSError, ValueError):  # closed, or in memory
        return False


def _seconds(value: float | dt.datetime) -> float:
    try:
        return value if isinstance(value, float) else value.timestamp()
    except (OverflowError, ValueError, OSError):
        return 0.0
