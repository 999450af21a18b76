"""Fingerprints tell whether a job is the same: laws, on real files."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.spec.job import FilePolicy, Files, Network, Target, TargetKind, Undeclared
from snakemake_executor_plugin_forge.staging.fingerprint import (
    ContentVersion,
    Fingerprint,
    differences,
    input_versions,
    take_fingerprint,
)

from .specs import spec

texts = st.text(max_size=8)
versions_of_files = st.none() | st.builds(
    ContentVersion,
    st.integers(0, 1 << 40), st.integers(0, 1 << 62), st.none() | st.text("0123456789abcdef", min_size=8, max_size=8),
)
identities = st.builds(
    Fingerprint,
    rule=texts,
    wildcards=st.dictionaries(texts, texts, max_size=3),
    outputs=st.lists(texts, max_size=3).map(tuple),
    logs=st.lists(texts, max_size=2).map(tuple),
    recipe=texts,
    command=texts,
    runtime=texts,
    policy=texts,
    inputs=st.dictionaries(texts, versions_of_files, max_size=4),
)


@given(identities)
def test_the_same_is_the_same_after_it_was_written_down(one: Fingerprint) -> None:
    again = Fingerprint.from_json(json.loads(json.dumps(one.as_json())))
    assert differences(one, again) == []
    assert differences(again, one) == []


@given(identities, identities)
def test_whatever_differs_is_named(one: Fingerprint, other: Fingerprint) -> None:
    """The order of inputs counts, as a command may name them by number; that of outputs does not."""
    same = (
        replace(one, outputs=(), logs=(), inputs={}) == replace(other, outputs=(), logs=(), inputs={})
        and sorted(one.outputs) == sorted(other.outputs)
        and sorted(one.logs) == sorted(other.logs)
        and dict(one.inputs) == dict(other.inputs)
    )
    assert (differences(one, other) == []) == same
    assert bool(differences(one, other)) == bool(differences(other, one))


@given(identities, st.sampled_from(["rule", "recipe", "command", "runtime", "policy"]), texts)
def test_one_field(one: Fingerprint, field: str, value: str) -> None:
    other = replace(one, **{field: value})  # type: ignore[arg-type]
    assert bool(differences(one, other)) == (getattr(one, field) != value)


@given(st.binary(max_size=64), st.binary(max_size=64), st.booleans())
def test_content_of_small_files_counts_whatever_their_times_say(old: bytes, new: bytes, keep_time: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "in")
        path.write_bytes(old)
        before, times = input_versions(directory, ["in"]), path.stat()
        path.write_bytes(new)
        later = times.st_mtime_ns + (0 if keep_time else 1)
        os.utime(path, ns=(times.st_atime_ns, later))
        assert (input_versions(directory, ["in"]) == before) == (old == new and keep_time)


def test_what_is_looked_at_of_inputs(tmp_path: Path) -> None:
    """Large files count by size and time, directories by Snakemake's stamp in them, missing files as missing."""
    (tmp_path / "large").write_bytes(b"x" * ((1 << 20) + 1))
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / ".snakemake_timestamp").touch()
    before = input_versions(str(tmp_path), ["large", "directory", "gone", "large"])
    assert list(before) == ["large", "directory", "gone"]
    large, directory = before["large"], before["directory"]
    assert large is not None and large.sha256 is None
    assert directory is not None
    assert before["gone"] is None
    (tmp_path / "directory" / "index").touch()
    assert input_versions(str(tmp_path), ["large", "directory", "gone"]) == before
    os.utime(tmp_path / "directory" / ".snakemake_timestamp", ns=(1, 1))
    assert input_versions(str(tmp_path), ["directory"]) != {"directory": directory}


def test_what_belongs_to_a_job(tmp_path: Path) -> None:
    """Limits, retries, run and attempt do not; its code, inputs, outputs, software and sandbox do."""
    (tmp_path / "in").write_text("in")
    output = Target(f"{tmp_path}/out", "out")
    files = Files(FilePolicy.GUARD, targets=(output, Target(f"{tmp_path}/log", "log", TargetKind.LOG)))
    job = replace(spec("00001-call", 1 << 30), workdir=str(tmp_path), files=files, inputs=("in",), command="true", recipe="r")
    one = take_fingerprint(job)
    assert one.outputs == (output.path,)
    other_run = replace(job, name="00009-call", job_dir="/elsewhere", attempt=3, retry=1, scratch_base="/scratch/forge-x")
    assert differences(one, take_fingerprint(replace(other_run, limits=replace(job.limits, memory_bytes=None, cpus=7)))) == []
    for changed in (
        replace(job, command="false"),
        replace(job, recipe="s"),
        replace(job, wildcards={"a": "b"}),
        replace(job, runtime="genomics"),
        replace(job, runtime_id="other packages"),
        replace(job, network=Network.OFF),
        replace(job, files=replace(files, undeclared=Undeclared.FAIL)),
        replace(job, files=replace(files, policy=FilePolicy.STRICT)),
        replace(job, files=replace(files, targets=(output,))),
        replace(job, inputs=()),
        replace(job, sources=("in2",)),
    ):
        assert differences(one, take_fingerprint(changed)) != []
    (tmp_path / "in").write_text("IN")
    assert differences(one, take_fingerprint(job)) == ["in changed meanwhile"]
