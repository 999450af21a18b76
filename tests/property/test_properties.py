"""Laws that hold for every input."""

from __future__ import annotations

import itertools
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.sandbox.namespaces import first_id
from snakemake_executor_plugin_forge.spec.errors import UsageError
from snakemake_executor_plugin_forge.spec.file_policy import PRIVATE_DIRECTORIES
from snakemake_executor_plugin_forge.spec.plan import exposures
from snakemake_executor_plugin_forge.spec.units import parse_bytes, parse_seconds, show_bytes, show_seconds
from snakemake_executor_plugin_forge.workers.channel import Channel, Frame, FrameKind

NAMES = st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.builds(lambda root, parts: "/".join([root, *parts]),
                  st.sampled_from([*PRIVATE_DIRECTORIES, "/data", "/home/u"]), st.lists(NAMES, min_size=1, max_size=4))


@given(st.text(max_size=12))
def test_sizes_and_times_are_read_or_refused(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        try:
            value = parse(text, "flag")
        except UsageError as error:
            assert text in str(error)
        else:
            assert value > 0


@given(st.integers(1, 2**50))
def test_plain_bytes_stay_what_they_are(number: int) -> None:
    assert parse_bytes(str(number), "x") == pytest.approx(number)
    assert show_bytes(number)


@given(st.floats(0, 1e7))
def test_times_can_be_shown(seconds: float) -> None:
    assert show_seconds(seconds)


@given(st.lists(PATHS, max_size=8), st.sets(PATHS, max_size=3))
def test_exposures_cover_what_is_asked_for_and_nothing_twice(paths: list[str], carried: set[str]) -> None:
    found = exposures(paths, (), carried)
    for path in paths:
        private = any(path.startswith(d + "/") for d in PRIVATE_DIRECTORIES)
        if private and path not in carried:
            assert any(path == f or path.startswith(f + "/") for f in found)
    for one in found:
        assert one not in PRIVATE_DIRECTORIES
        assert not any(one != other and one.startswith(other + "/") for other in found)


@given(st.lists(st.tuples(st.sampled_from(FrameKind), st.text(max_size=30), st.binary(max_size=5000)), max_size=10),
       st.integers(1, 4000))
def test_frames_survive_any_cut_of_the_stream(frames: list[tuple[FrameKind, str, bytes]], cut: int) -> None:
    sent = [Frame(kind, name.encode("utf-8", "ignore").decode(), body) for kind, name, body in frames]
    data = b"".join(frame.encode() for frame in sent)
    ours, theirs = socket.socketpair()
    received: list[Frame] = []
    channel = Channel(theirs)
    for start in range(0, len(data), cut):
        ours.sendall(data[start:start + cut])
        received += channel.receive()
    ours.close()
    received += channel.receive()
    assert channel.closed
    channel.close()
    assert received == sent


def test_writing_to_a_dead_peer_is_no_error() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    channel = Channel(ours)
    channel.send(Frame(FrameKind.RUN, "x", os.urandom(10)))
    assert channel.closed
    channel.close()


@given(st.sampled_from([1 << 15, 1 << 22, 40_000]), st.integers(1, 1 << 15), st.integers(1, 1 << 15))
def test_jobs_begin_with_ids_of_their_own(limit: int, one: int, other: int) -> None:
    room = limit - 301
    first, second = first_id(one, limit), first_id(other, limit)
    assert 300 <= first < limit
    assert (first == second) == (one % room == other % room)


@pytest.mark.parametrize(("limit", "apart"), [(1 << 15, 90), (1 << 22, 15_000)])
def test_jobs_that_run_together_have_room_for_children(limit: int, apart: int) -> None:
    firsts = sorted(first_id(number, limit) for number in range(7000, 7100))
    assert min(b - a for a, b in itertools.pairwise(firsts)) > apart
