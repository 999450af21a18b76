"""The places of messages and progress: a terminal with a bar in its last row, or anything else."""

from __future__ import annotations

import os
import time
from typing import Any, TextIO

from snakemake_executor_plugin_forge.spec.progress import Progress, pieces, sentence

_GAP = "  "
_LEAST_BAR, _MOST_BAR = 10, 30
_LEAST_RULES = 8  # columns that are worth it
_SHARE = 5  # percent
_LEAST_ROWS = 4
_SAVE, _RESTORE = "\x1b7", "\x1b8"  # the cursor, with its colours: console_codes(4)


class Terminal:
    """A terminal whose last row is the bar.

    All other rows are its scrolling region. So whatever anybody writes appears above the bar, whole, also what jobs
    write without asking Snakemake: half lines, or progress bars of their own. Each change of the bar is one write(2),
    which leaves the cursor where it was.
    """

    def __init__(self, stream: TextIO, *, colours: bool) -> None:
        """Take the stream; nothing is written yet."""
        self._stream, self._colours = stream, colours
        self._rows = self._columns = 0  # as long as there is no bar
        self._bar = ""

    def message(self, text: str) -> None:
        """Write a message."""
        _write(self._stream, text)

    def progress(self, progress: Progress) -> None:
        """Draw the bar."""
        columns, rows = size(self._stream)
        resized, text = (columns, rows) != (self._columns, self._rows), ""
        if resized:
            text += self._end()
        if rows < _LEAST_ROWS:
            _write(self._stream, text)
            return
        if resized:
            # Down and up again: if the cursor is in the last row, that scrolls.
            text += f"\x1bD{_SAVE}\x1b[1;{rows - 1}r{_RESTORE}\x1b[A"
            self._rows, self._columns = rows, columns
        bar = self._drawn(progress)
        if text or bar != self._bar:
            self._bar = bar
            _write(self._stream, f"{text}{_SAVE}\x1b[{rows};1H\x1b[2K{bar}{_RESTORE}")

    def close(self, last: str) -> None:
        """Write the last line, without the bar."""
        _write(self._stream, f"{self._end()}{last}")

    def _end(self) -> str:
        """Return the sequence that makes a plain terminal of it again; "" if it is one."""
        rows, self._rows = self._rows, 0
        return f"{_SAVE}\x1b[{rows};1H\x1b[2K\x1b[r{_RESTORE}" if rows else ""

    def _drawn(self, progress: Progress) -> str:
        from rich.console import Console, RenderableType  # only where there is a terminal
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        console = Console(
            file=self._stream, force_terminal=True, width=self._columns, no_color=not self._colours, highlight=False
        )
        ascii_only = console.options.ascii_only
        bar, texts = fitted(pieces(progress), console.width, "..." if ascii_only else "…")
        words = Text(_GAP.join(texts), no_wrap=True)
        words.highlight_words([text for text in texts if text.endswith(" failed")], "bold red")
        table = Table.grid(expand=True)
        if bar:
            table.add_column(width=bar)
            table.add_column(width=len(_GAP))
        table.add_column(ratio=1, no_wrap=True)
        drawn = ProgressBar(total=max(1, progress.total), completed=progress.done, width=bar)
        cells: list[RenderableType] = [drawn, Text(_GAP), words] if bar else [words]
        table.add_row(*cells)
        with console.capture() as captured:
            console.print(table, end="")
        return captured.get().rstrip("\n")


class Lines:
    """A log file, or a pipe: now and then a line."""

    def __init__(self, stream: TextIO, interval: float) -> None:
        """Take the stream, and the most seconds between two lines."""
        self._stream, self._interval = stream, interval
        self._last = time.monotonic()
        self._percent = 0

    def message(self, text: str) -> None:
        """Write a message."""
        _write(self._stream, text)

    def progress(self, progress: Progress) -> None:
        """Write a line if it is time for one."""
        percent, now = progress.done * 100 // max(1, progress.total), time.monotonic()
        if progress.done < progress.total and is_due(now - self._last, percent - self._percent, self._interval):
            self._last, self._percent = now, percent
            _write(self._stream, f"[{time.asctime()}] {sentence(progress)}\n")

    def close(self, last: str) -> None:
        """Write the last line."""
        _write(self._stream, last)


def size(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of a terminal; zeros if they are not known."""
    try:
        return tuple(os.get_terminal_size(stream.fileno()))  # type: ignore[return-value]
    except (OSError, ValueError):
        return 0, 0


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream can have a bar."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and size(stream)[1] >= _LEAST_ROWS


def is_due(seconds: float, percents: int, interval: float) -> bool:
    """Whether it is time for a line, so many seconds and percents after the last."""
    return seconds >= interval or (percents >= _SHARE and seconds >= interval / 6)


def fitted(parts: list[str], width: int, cut: str) -> tuple[int, list[str]]:
    """The width of the bar, 0 for none, and the texts that a line has room for.

    Args:
        parts: the most important first; the last one can be cut.
        cut: what stands for the rest of it.
    """
    *whole, rules = parts
    shown, room = [""] * len(whole), width
    for number, part in enumerate(whole):
        least = 0 if number < 3 else _LEAST_BAR + len(_GAP)
        if part and len(part) + len(_GAP) + least <= room:
            shown[number] = part
            room -= len(part) + len(_GAP)
    bar = min(_MOST_BAR, max(room, 0) // 2 if rules else room)
    bar = max(bar, min(room, _LEAST_BAR))
    bar = bar if bar >= _LEAST_BAR else 0
    room -= bar + len(_GAP) if bar else 0
    if len(rules) > room:
        rules = f"{rules[: room - len(cut)]}{cut}" if room >= _LEAST_RULES else ""
    count, eta, failed, running, percent = shown
    return bar, [text for text in (count, percent, running, failed, eta, rules) if text]


def _write(stream: Any, text: str) -> None:
    """Write a text, with escapes for what the stream's encoding does not have."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.write(text.encode(stream.encoding, "backslashreplace").decode(stream.encoding))
    stream.flush()
