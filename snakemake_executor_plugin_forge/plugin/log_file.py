"""Snakemake's log file on a disk that is full, over its quota or read-only: one line, no tracebacks."""

from __future__ import annotations

import errno
import io
import logging
import sys
from collections.abc import Callable
from typing import Any

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def expect_a_full_disk(logger: Any) -> None:
    """Have the log files of a logger take any text, and say once that they cannot be written."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            if isinstance(handler.stream, io.TextIOWrapper):
                handler.stream.reconfigure(errors="backslashreplace")  # paths can have any bytes
            handler.handleError = _Complaint(handler, handler.handleError)  # type: ignore[method-assign]


class _Complaint:
    def __init__(self, handler: logging.FileHandler, other: Callable[[logging.LogRecord], None]) -> None:
        self._handler, self._other = handler, other
        self._said = False

    def __call__(self, record: logging.LogRecord) -> None:
        error = sys.exception()
        if not isinstance(error, OSError) or error.errno not in _NO_SPACE:
            self._other(record)
        elif not self._said and sys.stderr is not None:
            self._said = True
            print(f"Forge: {self._handler.baseFilename} is incomplete: {error.strerror}", file=sys.stderr)
