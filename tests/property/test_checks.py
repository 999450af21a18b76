"""Checksums, formats and decisions of gc, for any files, sizes and ages."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.analysis.outputs import newest
from snakemake_executor_plugin_forge.record.checksum import (
    BYTES_PER_SECOND,
    FREE_BYTES,
    SAMPLED_BYTES,
    SAMPLES,
    WHOLE,
    budget_bytes,
    digest,
    fitting,
    measure,
    sample_ranges,
)
from snakemake_executor_plugin_forge.run.garbage import Age, decide
from snakemake_executor_plugin_forge.spec.job import Checksums
from snakemake_executor_plugin_forge.staging.formats import BGZF_END, problem
from snakemake_executor_plugin_forge.staging.recovery import Kind, Leftover

# Files of h5py 3.16 (HDF5 2.0): one data set of 20 numbers, written with libver "earliest" (superblock 0) and
# "latest" (superblock 3); the last one with a user block of 512 bytes before. Cut by one byte, h5py refuses each:
# "truncated file: eof = 2087, … stored_eof = 2088".
HDF5 = {
    0: "eNrtVTsOwjAMfU5aCIVCCwyIibEjV0BqUSdAwMDIMTgCbByDo3CrkpBYarOygOhbnvyRbSnPzq3M13E0j2CgFAIkqKNyyFTT5vjZMTm+On4I9tM7NnP+1NX38477ojDZlQfuswwsK7T4R5TFamf45GxW6VM08y6eHssP+xJCW4vYtkomso6py2OWejITSbRQRW3SUCvX+IUQZHVs60hiSWde5/tXvsNhs83NRvMeLmSrzRYtfhek75TU/36IDrp6r3uI0McAMYYY6euVYowJXuijLOw=",
    3: "eNrt1SEOwjAUxvF/WwajbDAGiiCQk1j8QuZIMGgkN5jgApwFieEMCA6DQ8FL0yZogiHpz7z0pXn9qt6pqde5nVmTpgQvr/Ktpe/vV+fbpqm3mlaXnxcDq1HQzZCi2kuY1/Azh+f86CLIA2oKWrnihGoyVCHRtTsVJJLK2FQSG4X/UhUGXvlbj/tiRxRFURR9R8miNHRI6NKT/djHMiAjZ8hI1ueYkglvhponBw==",
    -3: "eNpjYBgFIxl0eri48XJJcTFzcDAwMEHE/kOBBheEbwBVW3NdScTfwyWIiaGCSQhZIQxwMTEwMjCw8TAAKcaKzTA7PKjn3MyfMjVgJwAtYBQBupgRTIEBjGbmYWAUgPtGgIEV6CpmLg6gi5kZGTggajRgBu4YulH36ZxC+GgCHgWjYBSMglFAJmAEVpTMDCwMrAxsDOzA+pGTgYuBm4GHgZeBj4EfWH0KMggxCDMAAH1YJoU=",
}


def hdf5(version: int) -> bytes:
    return zlib.decompress(base64.b64decode(HDF5[version]))


def bgzf(*blocks: bytes) -> bytes:
    """Compress blocks as bgzip does: the SAM specification, 4.1."""
    made = b""
    for block in blocks:
        packer = zlib.compressobj(6, zlib.DEFLATED, -15)
        data = packer.compress(block) + packer.flush()
        head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + (len(data) + 25).to_bytes(2, "little")
        made += head + data + zlib.crc32(block).to_bytes(4, "little") + len(block).to_bytes(4, "little")
    return made + BGZF_END


def says(name: str, data: bytes, gzip_bytes: int = 1 << 30) -> str | None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return problem(file.name, name, gzip_bytes)


# -- formats -----------------------------------------------------------------------------------------------------------

WHOLE_FILES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("x.bam", lambda data: bgzf(data)),
    ("x.vcf.gz", lambda data: bgzf(data, data)),
    ("x.gz", gzip.compress),
    ("x.fastq.gz", lambda data: gzip.compress(data) + gzip.compress(data)),
    ("x.h5", lambda _: hdf5(0)),
    ("x.h5ad", lambda _: hdf5(3)),
    ("x.h5", lambda _: hdf5(-3)),
]


@given(st.sampled_from(WHOLE_FILES), st.binary(max_size=3000))
def test_a_whole_file_is_no_problem(kind: tuple[str, Callable[[bytes], bytes]], data: bytes) -> None:
    name, make = kind
    assert says(name, make(data)) is None


@given(st.sampled_from([k for k in WHOLE_FILES if k[0] != "x.fastq.gz"]), st.binary(min_size=50, max_size=3000), st.data())
def test_any_truncation_is_seen(kind: tuple[str, Callable[[bytes], bytes]], data: bytes, draw: st.DataObject) -> None:
    name, make = kind
    whole = make(data)
    # Without its first bytes it is no such file; a user block (512 bytes of zeros) alone says nothing.
    least = 600 if whole.startswith(bytes(512)) else 20
    assert says(name, whole[: draw.draw(st.integers(least, len(whole) - 1))]) is not None


@given(st.binary(min_size=100, max_size=2000), st.data())
def test_a_flipped_bit_in_a_gzip_stream_is_seen(data: bytes, draw: st.DataObject) -> None:
    whole = bytearray(gzip.compress(data))
    place = draw.draw(st.integers(10, len(whole) - 1))  # the header has a time and the system's number, which do not matter
    whole[place] ^= 1 << draw.draw(st.integers(0, 7))
    assert says("x.gz", bytes(whole)) is not None or gzip.decompress(whole) == data


@given(st.sampled_from(["x.bam", "x.gz", "x.cram", "x.h5", "x.nc", "x.txt", "x"]), st.binary(max_size=200), st.sampled_from(
    [b"", b"\x1f\x8b", b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0", b"CRAM\x03\0", b"\x89HDF\r\n\x1a\n\0", b"\x89HDF\r\n\x1a\n\x03"]))
def test_nothing_that_a_job_writes_breaks_it(name: str, data: bytes, start: bytes) -> None:
    found = says(name, start + data)
    assert found is None or (isinstance(found, str) and name not in ("x.txt", "x"))


def test_what_is_too_large_to_unpack_and_what_is_empty_is_no_problem() -> None:
    whole = gzip.compress(os.urandom(5000))
    assert says("x.gz", whole[:-9], gzip_bytes=1000) is None
    assert says("x.gz", whole[:-9]) == "is truncated: its gzip stream does not end"
    bomb = gzip.compress(bytes(50_000_000))
    assert says("x.gz", bomb[:-1], gzip_bytes=len(bomb)) is None
    assert says("x.bam", b"") is says("x.h5", b"") is None
    assert says("x.gz", whole + bytes(100)) is None


# -- checksums ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**12), max_size=30), st.integers(0, 10**12))
def test_what_is_read_whole_stays_within_the_budget(costs: list[int], budget: int) -> None:
    chosen = fitting(costs, budget)
    assert sum(cost for cost, whole in zip(costs, chosen, strict=True) if whole) <= budget
    left_out = [cost for cost, whole in zip(costs, chosen, strict=True) if not whole]
    assert all(cost <= min(left_out, default=0) for cost, whole in zip(costs, chosen, strict=True) if whole and left_out)
    assert all(fitting(costs, None))
    if sum(costs) <= budget:
        assert all(chosen)


@given(st.floats(0, 1e7))
def test_the_budget_grows_with_the_time_of_the_job(seconds: float) -> None:
    assert budget_bytes(Checksums.FULL, seconds) is None
    assert budget_bytes(Checksums.OFF, seconds) == 0
    auto = budget_bytes(Checksums.AUTO, seconds)
    assert auto is not None
    assert FREE_BYTES <= auto <= FREE_BYTES + BYTES_PER_SECOND * seconds


@given(st.integers(0, 1 << 50), st.sampled_from([SAMPLED_BYTES, SAMPLED_BYTES // 32]))
def test_samples_are_within_the_file_and_have_both_ends(size: int, most: int) -> None:
    ranges = sample_ranges(size, most)
    assert sum(length for _, length in ranges) <= most
    assert ranges[0][0] == 0
    assert sum(ranges[-1]) == size
    for (start, length), (following, _) in itertools.pairwise(ranges):
        assert start + length <= following


@given(st.binary(max_size=5000), st.data())
def test_the_whole_checksum_is_that_of_sha256sum_and_sees_every_bit(data: bytes, draw: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x")
        path.write_bytes(data)
        found = measure(str(path))
        assert found is not None
        before = digest(found, WHOLE)
        assert before == f"sha256:{hashlib.sha256(data).hexdigest()}"
        if data:
            changed = bytearray(data)
            changed[draw.draw(st.integers(0, len(data) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
            path.write_bytes(changed)
            assert digest(found, WHOLE) != before
            assert digest(found, SAMPLES) != before


Trees = st.dictionaries(st.text("abc é\n", min_size=1, max_size=4).filter(lambda n: n.strip(".")), st.binary(max_size=9), max_size=6)


@given(Trees, Trees, st.sampled_from([WHOLE, SAMPLES]))
def test_two_directories_have_the_same_checksum_only_if_they_are_the_same(
    one: dict[str, bytes], other: dict[str, bytes], covers: str
) -> None:
    digests = []
    for tree in (one, other):
        with tempfile.TemporaryDirectory() as directory:
            Path(directory, ".snakemake_timestamp").write_bytes(os.urandom(3))
            for number, (name, data) in enumerate(sorted(tree.items())):
                parent = Path(directory, f"d{len(name)}")
                parent.mkdir(exist_ok=True)
                if number == 5:
                    parent.joinpath(name).symlink_to("x" + data.hex())
                else:
                    parent.joinpath(name).write_bytes(data)
            found = measure(directory)
            assert found is not None
            digests.append(digest(found, covers))
    assert (digests[0] == digests[1]) == (one == other)


def test_a_large_file_is_told_by_its_ends_its_size_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"a")
    os.truncate(path, 200 << 20)
    found = measure(str(path))
    assert found is not None
    before = digest(found, SAMPLES)
    for offset in (0, (200 << 20) - 1, sample_ranges(200 << 20, SAMPLED_BYTES)[4][0]):
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(b"x")
        after = digest(found, SAMPLES)
        assert after != before
        before = after


# -- the attempt that counts, and removals by gc -----------------------------------------------------------------------

Attempts = st.lists(st.tuples(st.sampled_from(["succeeded", "failed", "oom"]), st.sets(st.sampled_from("abc")), st.integers(0, 9)))


@given(Attempts)
def test_the_newest_attempt_that_succeeded_counts(attempts: list[tuple[str, set[str], int]]) -> None:
    records = [
        {"outcome": outcome, "rule": f"r{number}", "wildcards": {}, "directory": "",
         "outputs": [{"path": path, "kind": "file", "bytes": size} for path in paths]}
        for number, (outcome, paths, size) in enumerate(attempts)
    ]
    expected: dict[str, tuple[str, int]] = {}
    for number, (outcome, paths, size) in enumerate(attempts):
        if outcome == "succeeded":
            expected |= dict.fromkeys(paths, (f"r{number}", size))
    found = newest(records)
    assert {output.path: (output.rule, output.size_bytes) for output in found} == expected
    assert [output.path for output in found] == sorted(expected)


def _nothing(by: str) -> list[str]:
    del by
    pytest.fail("deciding removes nothing")


Left = st.builds(Leftover, st.sampled_from(Kind), st.just(("/x",)), st.just("run"), st.integers(0, 100), st.floats(0, 1000), st.just(_nothing))


@given(st.lists(Left, max_size=12), st.none() | st.floats(0, 1000), st.none() | st.floats(0, 1000), st.none() | st.integers(0, 500))
def test_gc_removes_what_is_old_and_of_what_is_wanted_no_more_than_it_must(
    found: list[Leftover], after: float | None, wanted_after: float | None, most: int | None
) -> None:
    chosen = [item for item, _ in decide(found, Age(after, wanted_after, most))]
    for item in found:
        limit = wanted_after if item.wanted else after
        old = limit is not None and item.age_seconds > limit
        assert not old or item in chosen
        assert item.wanted or old or item not in chosen
    left = list(found)
    for item in chosen:
        left.remove(item)
    if most is not None:
        assert sum(item.size_bytes for item in left if item.wanted) <= most
    by_size = [item for item, why in decide(found, Age(after, wanted_after, most)) if why == "size"]
    assert most is not None or not by_size
    for item in by_size:
        assert all(item.age_seconds >= other.age_seconds for other in left if other.wanted)
