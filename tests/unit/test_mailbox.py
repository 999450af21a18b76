"""Verdicts through a mailbox: a verdict that is too large is sent with less text, and never lost."""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import socket
from dataclasses import replace

import pytest

from snakemake_executor_plugin_forge.kernel.descriptors import closing, is_readable
from snakemake_executor_plugin_forge.spec.verdict import Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.workers.channel import Channel, Frame, FrameKind, Mailbox, MessageTooLargeError
from snakemake_executor_plugin_forge.workers.pool import deliver

from ..property.specs import spec

JOB = spec("00001-call", None)
VERDICT = Verdict(Outcome.OOM, "out of memory", None, 9, Usage(memory_peak_bytes=5), "2026-01-01T00:00:00+00:00", 1.5)
TEXT = "x" * 1_000_000


@pytest.mark.parametrize(
    ("verdict", "buffer_bytes", "outcome"),
    [
        (VERDICT, 0, Outcome.OOM),
        (replace(VERDICT, error=TEXT, stderr_tail=TEXT), 0, Outcome.OOM),
        (replace(VERDICT, undeclared_writes=tuple(map(str, range(100_000)))), 0, Outcome.OOM),
        (replace(VERDICT, error=TEXT, stderr_tail=TEXT, reason=TEXT), 4608, Outcome.LOST),
    ],
)
def test_every_verdict_arrives(verdict: Verdict, buffer_bytes: int, outcome: Outcome) -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours:
        if buffer_bytes:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes // 2)  # the kernel doubles it
        deliver(Mailbox(ours), JOB, verdict)
        frame = Mailbox(theirs).receive()
    assert frame is not None
    assert (frame.kind, frame.name) == (FrameKind.DONE, JOB.name)
    arrived: Verdict = pickle.loads(frame.body)
    assert arrived.outcome is outcome
    assert (arrived.signal, arrived.usage.memory_peak_bytes) == ((9, 5) if outcome is Outcome.OOM else (None, 0))


def test_a_message_that_does_not_fit_is_an_error() -> None:
    reader, writer = Mailbox.pair()
    with pytest.raises(MessageTooLargeError, match="READY"):
        writer.send(Frame(FrameKind.READY, body=bytes(1_000_000)))
    reader.close()
    writer.send(Frame(FrameKind.READY))  # nobody reads: no error
    writer.close()


def test_bytes_that_are_no_message_are_refused_before_the_rest_is_awaited() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"INFO:snakemake.logging:Changing to shadow directory: .snakemake/shadow/tmp\n")
        with pytest.raises(ValueError, match="is not a valid FrameKind"):
            list(Channel(ours).receive())


def test_a_descriptor_above_1023_is_waited_for() -> None:
    """A supervisor keeps the number its socket had in the nursery of a run of 500 jobs: select(2) refuses it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    reader, writer = os.pipe()
    try:
        with closing(writer), closing(reader), closing(fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 1500)) as high:
            assert not is_readable(high)
            os.write(writer, b"x")
            assert is_readable(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
