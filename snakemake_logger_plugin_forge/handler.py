"""The log handler that Snakemake makes: messages as Snakemake's own handler shows them, and the progress of the run.

Two threads use it: Snakemake's for log records, and one that begins with the first job and looks once a second.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from snakemake_interface_logger_plugins.base import LogHandlerBase

from .settings import INTERVAL, LogHandlerSettings

if TYPE_CHECKING:
    from .screen import Lines, Terminal
    from .watched import Known, Watched

__all__ = ["LogHandler", "LogHandlerSettings"]

_T = TypeVar("_T")
_TICK = 1.0
_ROUND = "Select jobs to execute..."


def _is_needless(record: logging.LogRecord, *, terminal: bool) -> bool:
    """Whether the progress says what a message of Snakemake's says. Snakemake's log file has it in any case."""
    match getattr(record, "event", None):
        case "progress":
            return True
        case "job_started" | "job_finished":
            return terminal
        case None:
            return terminal and record.msg == _ROUND
    return False


class _Collected(io.StringIO):
    """The text of one message, for a handler that wants to know whether it writes to a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def take(self) -> str:
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@dataclass(slots=True)
class _Parts:
    """The parts that the first log record needs, and that a start of Snakemake which logs elsewhere does not."""

    watched: Watched
    known: Known
    screen: Terminal | Lines
    collected: _Collected
    formatting: logging.Handler  # Snakemake's own, which writes into ``collected``

    @classmethod
    def load(cls, handler: LogHandler) -> _Parts:
        from snakemake.logging import ColorizingTextHandler

        from .screen import Lines, Terminal, is_terminal
        from .watched import Known, Watched

        stream = handler.stream
        terminal = is_terminal(stream)
        colours = terminal and not handler.common_settings.nocolor and not os.environ.get("NO_COLOR")
        interval = max(1, getattr(handler.settings, "interval", None) or INTERVAL)
        screen = Terminal(stream, colours=colours) if terminal else Lines(stream, interval)
        collected = _Collected(terminal=terminal)
        return cls(Watched(), Known(), screen, collected, ColorizingTextHandler(nocolor=not colours, stream=collected))


class LogHandler(LogHandlerBase):  # type: ignore[misc]
    """The handler of ``snakemake --logger forge``."""

    def __post_init__(self) -> None:
        """Look at the settings; write and start nothing yet."""
        if not hasattr(self, "filters"):
            logging.Handler.__init__(self)  # the interface before 2.0 leaves that to the plugin
        common = self.common_settings
        self.stream = sys.stdout if common.stdout else sys.stderr
        quiet = {str(getattr(word, "name", word)).lower() for word in common.quiet or ()}
        self._shows = not common.dryrun and not quiet & {"all", "progress"}
        self._mutex = threading.RLock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._parts: _Parts | None = None
        self._lost = False  # nobody reads what it writes

    @property
    def writes_to_stream(self) -> bool:
        """True: it takes the place of Snakemake's own handler."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """False: Snakemake keeps its log file."""
        return False

    @property
    def has_filter(self) -> bool:
        """Whether it has a filter of its own: no, Snakemake's knows what --quiet means."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Whether it has a formatter of its own: no, messages look as they always do."""
        return False

    @property
    def needs_rulegraph(self) -> bool:
        """Whether it wants the graph of rules: yes, for the time that chains of rules take."""
        return self._shows

    def handle(self, record: logging.LogRecord) -> Any:
        """Take the facts of a record, also where --quiet leaves out its message."""
        event = getattr(record, "event", None)
        if self._shows and event is not None:
            try:
                self._note(str(event), record)
            except (KeyError, TypeError, AttributeError):  # of another Snakemake: messages matter more than progress
                self._shows = False
        return super().handle(record)

    def _note(self, event: str, record: logging.LogRecord) -> None:
        with self._mutex:
            self._loaded().watched.note(event, record.__dict__, record.created)
            if self._thread is None and self._loaded().watched.began is not None:
                self._thread = threading.Thread(target=self._watch, name="forge-progress", daemon=True)
                self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message."""
        parts = self._loaded()
        if self._shows and _is_needless(record, terminal=parts.collected.isatty()):
            return
        with self._mutex:
            parts.formatting.setFormatter(self.formatter)
            parts.formatting.emit(record)
            self._write(parts.screen.message, parts.collected.take())

    def close(self) -> None:
        """End the bar, with a line on what was reached. Snakemake closes it once, and Python at its exit."""
        self._closing.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2 * _TICK)
            self._thread = None
            self._conclude()
        super().close()

    def _conclude(self) -> None:
        from snakemake_executor_plugin_forge.spec.progress import sentence

        with self._mutex:
            parts, now = self._loaded(), time.time()
            reached = parts.watched.progress(parts.known, now)
            last = f"[{time.asctime()}] {sentence(reached, ended=True)}\n"
            self._write(parts.screen.close, last)

    def _watch(self) -> None:
        """Show the progress until the end, in a thread of its own."""
        from .records import Records

        with Records() as records:
            while not self._closing.wait(_TICK):
                parts = self._loaded()
                known = records.known(parts.watched.total)
                with self._mutex:
                    parts.known = known
                    if not self._closing.is_set():
                        self._write(parts.screen.progress, parts.watched.progress(known, time.time()))

    def _write(self, write: Callable[[_T], None], what: _T) -> None:
        if not self._lost:
            try:
                write(what)
            except (OSError, ValueError):  # the terminal or the reader of the pipe is gone
                self._lost = True

    def _loaded(self) -> _Parts:
        if self._parts is None:
            self._parts = _Parts.load(self)
        return self._parts
