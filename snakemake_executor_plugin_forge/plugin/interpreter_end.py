"""The end of an interpreter, for a job whose process is a fork: what its code leaves to the end has to be done then.

Such a process ends with ``os._exit()``, because its exit handlers, finalizers and objects are mostly those of the
process that called Snakemake. A new process, which ``local`` starts for a ``run:`` block, would write what is in the
buffers of files that are still open, delete its objects, and call ``__del__`` and ``finally`` of what is left.
"""

from __future__ import annotations

import _io
import atexit
import errno
import gc
import io
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

from ..kernel.syscalls import flush_c_streams

_LOWER = (io.BufferedWriter, io.BufferedRandom, io.BufferedReader, io.BufferedRWPair)
_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_EXECUTORS = (("concurrent.futures.thread", "_threads_queues"), ("concurrent.futures.process", "_threads_wakeups"))


def disown() -> None:
    """Leave to the process from which this one was forked what was to be done at its end."""
    atexit._clear()
    logging._handlerList.clear()  # type: ignore[attr-defined]
    atexit.register(logging.shutdown)
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    threading._threading_atexits.clear()  # type: ignore[attr-defined]
    for name, threads in _EXECUTORS:
        module = sys.modules.get(name)
        if module is not None:  # they would be waited for, and one of them may be what this process has become
            getattr(module, threads).clear()
            threading._register_atexit(module._python_exit)  # type: ignore[attr-defined]
    gc.callbacks.clear()
    process = sys.modules.get("multiprocessing.process")
    if process is not None:  # each job would end them, and fail because they are not its own
        process._children.clear()


class InterpreterEnd:
    """The end of a job's code. Make it when the code is about to begin."""

    def __init__(self, namespace: dict[str, Any], *, collects: bool) -> None:
        self._namespace = namespace
        self._before = dict(namespace)
        gc.freeze()  # what there is belongs to this process's parents: no collection copies it, none deletes it
        if collects:
            gc.enable()

    def come(self) -> None:
        """Wait for threads, call exit handlers, delete what the code has made, write buffers.

        Raises:
            BaseException: from an exit handler.
            OSError: if the buffer of a file could not be written.
        """
        threading._shutdown()  # type: ignore[attr-defined]
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util._exit_function()
        atexit._run_exitfuncs()
        for name in list(self._namespace):  # and no variable here that keeps a value
            if name not in self._before or self._before[name] is not self._namespace[name]:
                del self._namespace[name]
        gc.collect()
        for file in _open_files():
            _close(file)
        flush_c_streams()
        sys.stdout.flush()
        sys.stderr.flush()


def _open_files() -> Iterator[Any]:
    """The files that the code has left open, each before the one to which it writes."""
    files = [found for found in gc.get_objects() if issubclass(type(found), _io._IOBase)]
    streams = (sys.stdin, sys.stdout, sys.stderr)
    ends = {id(part) for stream in streams for part in (stream, stream.buffer, getattr(stream.buffer, "raw", None))}
    left = [file for file in files if id(file) not in ends and not issubclass(type(file), io.FileIO)]
    yield from (file for file in left if issubclass(type(file), io.TextIOWrapper))
    yield from (file for file in left if not issubclass(type(file), _LOWER))  # compressed, of packages
    yield from left


def _close(file: Any) -> None:
    """Close a file. As at an interpreter's end, errors are none, but for data that are lost."""
    try:
        file.close()
    except OSError as error:
        if error.errno in _LOST:
            raise
    except Exception:
        return
