"""Streams: the parts that are kept, for any bytes in any pieces."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.record.streams import Stream


def _run(pieces: list[bytes], cap: int | None, *, echo: bool = True) -> tuple[bytes, bytes, str, int]:
    """Run a stream; return its file, terminal, tail, and the number of bytes left out."""
    ours, its = os.pipe()
    os.set_blocking(ours, False)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryFile() as terminal:
        stream = Stream(ours, log.fileno(), terminal.fileno() if echo else None, cap)
        for piece in pieces:
            os.write(its, piece)
            stream.pump()
        os.close(its)
        stream.drain()
        before = stream.tail(100)
        stream.finish()
        assert stream.tail(100) == before
        stream.show(wait=True)
        os.close(ours)
        assert stream.problem is None
        for file in (log, terminal):
            file.seek(0)
        return log.read(), terminal.read(), before, stream.left_out


PIECES = st.lists(st.binary(max_size=300), max_size=30)


@given(PIECES)
def test_without_a_cap_the_file_has_it_all(pieces: list[bytes]) -> None:
    whole = b"".join(pieces)
    assert _run(pieces, None) == (whole, whole, whole[-100:].decode("utf-8", "replace"), 0)


@given(PIECES, st.integers(2, 500))
def test_with_a_cap_it_has_head_and_tail(pieces: list[bytes], cap: int) -> None:
    whole = b"".join(pieces)
    log, terminal, tail, left_out = _run(pieces, cap)
    head, rest = cap // 2, cap - cap // 2
    assert terminal == whole or len(max(pieces, key=len)) > rest  # a terminal that keeps up has it all
    assert left_out == max(0, len(whole) - cap)
    if not left_out:
        assert log == whole
    else:
        assert log[:head] == whole[:head]
        assert log[-rest:] == whole[-rest:]
        assert f"\n[… {left_out} bytes of this stream".encode() in log
        assert len(log) <= cap + 100
        assert tail == whole[-min(rest, 100):].decode("utf-8", "replace")


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=5, max_size=30))
def test_a_terminal_that_stands_still_is_told_what_it_missed(pieces: list[bytes]) -> None:
    ours, its = os.pipe()
    shown, terminal = os.pipe()
    os.set_blocking(ours, False)
    os.set_blocking(terminal, False)
    with tempfile.TemporaryFile() as log:
        stream = Stream(ours, log.fileno(), terminal, 100)
        filled = 0
        try:
            while True:
                filled += os.write(terminal, b"x" * 4096)
        except BlockingIOError:
            pass
        for piece in pieces:  # none of them fits
            os.write(its, piece)
            stream.pump()
        os.close(its)
        stream.drain()
        stream.finish()
        while filled:
            filled -= len(os.read(shown, filled))
        stream.show(wait=True)
        os.close(terminal)
        with os.fdopen(shown, "rb") as file:
            got = file.read()
        os.close(ours)
    whole = b"".join(pieces)
    if len(whole) <= 100:
        assert got == whole
    else:
        assert got.startswith(whole[:50])
        assert got.endswith(whole[-50:])
        assert f"[… {len(whole) - 100} bytes".encode() in got


@pytest.mark.parametrize("cap", [None, 100])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_truncated_file_ends_neither_what_is_shown_nor_the_order(cap: int | None, *, terminal: bool) -> None:
    """A user empties the file (``> stdout.log``) while the terminal takes nothing."""
    ours, its = os.pipe()
    os.set_blocking(ours, False)
    shows, echo = os.openpty() if terminal else os.pipe()
    os.set_blocking(echo, False)
    with tempfile.TemporaryFile() as log:
        stream = Stream(ours, log.fileno(), echo, cap)
        for _ in range(300):  # more than a pipe or a terminal takes
            os.write(its, b"x" * 1000)
            stream.pump()
        os.ftruncate(log.fileno(), 0)
        stream.show(wait=False)
        os.set_blocking(shows, False)
        while True:
            with suppress(BlockingIOError):
                os.read(shows, 1 << 20)
                continue
            break
        stream.show(wait=False)
        os.write(its, b"after")
        os.close(its)
        stream.drain()
        os.ftruncate(log.fileno(), 0)
        stream.show(wait=False)
        stream.finish()
        stream.tail()
    for fd in (ours, shows, echo):
        os.close(fd)


def test_a_full_disk_is_a_problem_and_no_error() -> None:
    ours, its = os.pipe()
    os.set_blocking(ours, False)
    with open("/dev/full", "r+b", buffering=0) as full:
        stream = Stream(ours, full.fileno(), None, 100)
        os.write(its, b"x" * 300)
        stream.pump()
        stream.finish()
    assert stream.problem == "the log is incomplete: No space left on device"
    for fd in (ours, its):
        os.close(fd)


