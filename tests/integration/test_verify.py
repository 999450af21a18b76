"""Forge finds corruption: truncated formats and changed inputs before publication, damaged outputs afterwards."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ..conftest import (
    DEADLINE,
    Result,
    command,
    ending,
    forge,
    in_layer,
    residue,
    run,
    wait_until,
    write_workflow,
    written,
)
from ..programs import need
from ..property.test_checks import hdf5

SAM = "@HD\tVN:1.6\tSO:coordinate\n@SQ\tSN:c\tLN:100\n" + "".join(
    f"r{n}\t0\tc\t{n + 1}\t60\t4M\t*\t0\t0\tACGT\tIIII\n" for n in range(50)
)


def verify(directory: Path, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(forge(directory, "verify", "--json", *words).stdout)
    return answer


def flip(path: Path, place: int) -> None:
    """Flip a bit and keep the times, as a bad disk does."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Files of real tools, whole and truncated."""
    directory = tmp_path_factory.mktemp("formats").resolve()
    for program, package in (("samtools", "samtools"), ("bgzip", "tabix"), ("gzip", "gzip")):
        need(program, package)
    rules = {
        "bam": ("bam", "samtools view -b in.sam -o {output}"),
        "cram": ("cram", "samtools view -C --output-fmt-option no_ref=1 in.sam -o {output}"),
        "bgzf": ("vcf.gz", "bgzip -c in.sam > {output}"),
        "gz": ("txt.gz", "gzip -c in.sam > {output}"),
        "h5": ("h5", "cp in.h5 {output}"),
    }
    text = "rule all:\n    input: expand('{how}.{kind}', how=['whole', 'cut'], kind=" + repr([k for k, _ in rules.values()]) + ")\n"
    for name, (suffix, shell) in rules.items():
        text += f"rule {name}:\n    output: 'whole.{suffix}'\n    shell: '{shell} 2>/dev/null'\n"
        text += f"rule {name}_cut:\n    output: 'cut.{suffix}'\n    shell: '{shell} 2>/dev/null; truncate -s -7 {{output}}'\n"
    text += "rule refused:\n    output: 'refused.bam', 'beside.txt'\n    resources: forge_check_formats='fail'\n"
    text += "    shell: 'samtools view -b in.sam -o {output[0]}; truncate -s -28 {output[0]}; echo new > {output[1]}'\n"
    text += "rule quiet:\n    output: directory('quiet')\n    resources: forge_check_formats='off', forge_checksums='off'\n"
    text += "    shell: 'mkdir {output}; gzip -c in.sam > {output}/x.gz; truncate -s -9 {output}/x.gz'\n"
    text += "rule inside:\n    output: directory('inside')\n"
    text += "    shell: 'mkdir {output}; gzip -c in.sam > {output}/x.gz; truncate -s -9 {output}/x.gz'\n"
    write_workflow(directory, text)
    (directory / "in.sam").write_text(SAM)
    (directory / "in.h5").write_bytes(hdf5(0))
    (directory / "beside.txt").write_text("old\n")
    return run(directory, "-j2", "--keep-going", "all", "refused.bam", "quiet", "inside")


@pytest.mark.parametrize("rule", ["bam", "cram", "bgzf", "gz", "h5"])
def test_a_file_that_was_cut_is_noted_and_a_whole_one_is_not(formats: Result, rule: str) -> None:
    whole, cut = formats.attempt(rule), formats.attempt(f"{rule}_cut")
    assert whole["outcome"] == cut["outcome"] == "succeeded", formats.output
    assert whole["notes"] == []
    (note,) = cut["notes"]
    assert note.startswith("cut.")
    assert "truncated" in note
    assert note in formats.output


def test_a_cut_file_fails_its_job_where_that_is_asked_for(formats: Result) -> None:
    attempt = formats.attempt("refused")
    assert attempt["outcome"] == "failed"
    assert "refused.bam has no BGZF end-of-file marker" in attempt["reason"]
    assert attempt["outputs"] == []
    assert not (formats.directory / "refused.bam").exists()
    assert formats.read("beside.txt") == "old\n"


def test_files_in_directories_count_and_nothing_is_said_where_that_is_off(formats: Result) -> None:
    (note,) = formats.attempt("inside")["notes"]
    assert note == "inside/x.gz is truncated: its gzip stream does not end"
    quiet = formats.attempt("quiet")
    assert quiet["notes"] == []
    (output,) = quiet["outputs"]
    assert (output["kind"], output["checksum"], output["covers"]) == ("directory", None, None)
    assert output["bytes"] == (formats.directory / "quiet" / "x.gz").stat().st_size


def test_the_checksum_is_that_of_sha256sum(formats: Result) -> None:
    (output,) = formats.attempt("bam")["outputs"]
    done = subprocess.run(["sha256sum", "whole.bam"], cwd=formats.directory, capture_output=True, text=True, check=True)
    assert output["checksum"] == f"sha256:{done.stdout.split()[0]}"
    assert output["covers"] == "whole"
    assert output["bytes"] == (formats.directory / "whole.bam").stat().st_size
    assert residue(formats.directory) == []


# -- damage afterwards -------------------------------------------------------------------------------------------------

DAMAGE = """
    rule all:
        input: "a b.txt", "tree", "made.txt", "large.bin", "link.txt", "shadowed.txt"
    rule plain:
        output: "a b.txt"
        shell: "echo plain > {output:q}"
    rule tree:
        output: directory("tree")
        shell: "mkdir -p {output}/deep; echo 1 > {output}/one; echo 2 > {output}/deep/two"
    rule passing:
        output: temp("passing.txt")
        shell: "echo passing > {output}"
    rule made:
        input: "passing.txt"
        output: "made.txt", "second.txt"
        shell: "cp {input} {output[0]}; cp {input} {output[1]}"
    rule large:
        output: "large.bin"
        shell: "truncate -s 160M {output}; echo end >> {output}"
    rule link:
        output: "link.txt"
        shell: "ln -s Snakefile {output}"
    rule shadowed:
        output: "shadowed.txt"
        shadow: "minimal"
        shell: "echo shadow > {output}"
"""


def test_damage_is_found_and_the_printed_command_mends_exactly_that(tmp_path: Path) -> None:
    write_workflow(tmp_path, DAMAGE)
    first = run(tmp_path, "-j2", "all")
    assert first.code == 0, first.output
    (large,) = first.attempt("large")["outputs"]
    assert large["covers"] == "samples"  # because of its size: see record/checksum.py
    sound = verify(tmp_path)
    assert (sound["damaged"], sound["missing"], sound["used_up"]) == ([], [], 1)
    assert sound["checked"] == sound["sound"] + 1 == 8
    assert sound["samples_only"] == 1
    assert forge(tmp_path, "verify").returncode == 0
    before = {name: (tmp_path / name).read_bytes() for name in ("a b.txt", "made.txt", "tree/deep/two", "large.bin")}

    flip(tmp_path / "a b.txt", 2)
    flip(tmp_path / "tree" / "deep" / "two", 0)
    flip(tmp_path / "large.bin", (160 << 20) + 1)
    (tmp_path / "second.txt").unlink()
    found = verify(tmp_path)
    assert {row["path"]: row["state"] for row in found["damaged"]} == {
        "a b.txt": "changed", "tree": "changed", "large.bin": "changed"}
    assert [row["path"] for row in found["missing"]] == ["second.txt"]
    assert [row["path"] for row in verify(tmp_path, "plain")["damaged"]] == ["a b.txt"]
    shown = forge(tmp_path, "verify")
    assert shown.returncode == 1
    assert shlex.join(found["rebuild"]) in shown.stdout

    started = len(first.attempts())
    words = found["rebuild"]
    assert words == ["snakemake", "--executor", "forge", "--scheduler", "greedy", "-j2", "--force", "--",
                     "a b.txt", "large.bin", "tree"]
    assert subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    again = first.attempts()[started:]
    assert sorted(attempt["rule"] for attempt in again) == ["large", "plain", "tree"]
    assert verify(tmp_path)["damaged"] == []
    words = found["rebuild_missing"]
    assert subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert verify(tmp_path)["missing"] == []
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert residue(tmp_path) == []


# -- inputs that change while a job runs -------------------------------------------------------------------------------

CHANGING = """
    rule all:
        input: "appended.out", "replaced.out", "touched.out", "removed.out", "kept.out", "opened.out", "failing.out"
    rule appended:
        input: "appended.in"
        output: "appended.out"
        shell: "echo new > {output}; until grep -q go go.txt; do sleep 0.05; done"
    use rule appended as replaced with:
        input: "replaced.in"
        output: "replaced.out"
    use rule appended as touched with:
        input: "kept.in", "touched.in"
        output: "touched.out"
    use rule appended as removed with:
        input: "removed.in"
        output: "removed.out"
    use rule appended as kept with:
        input: "kept.in", "directory"
        output: "kept.out"
    rule opened:
        input: "opened.in"
        output: "opened.out"
        resources: forge_files="open"
        shell: "echo more >> {input}; echo new > {output}"
    rule failing:
        input: "appended.in"
        output: "failing.out"
        shell: "echo begun; until grep -q go go.txt; do sleep 0.05; done; exit 3"
"""


def test_an_input_that_changes_while_a_job_runs_fails_it(tmp_path: Path) -> None:
    """Fault 48."""
    write_workflow(tmp_path, CHANGING)
    for name in ("appended", "replaced", "touched", "removed", "kept", "opened"):
        (tmp_path / f"{name}.in").write_text("old\n")
    (tmp_path / "go.txt").write_text("")
    (tmp_path / "directory").mkdir()
    (tmp_path / "appended.out").write_text("previous\n")
    os.utime(tmp_path / "appended.out", (1, 1))
    waiting = ("appended", "replaced", "touched", "removed", "kept")
    process = subprocess.Popen(command("forge", "-j8", "--keep-going"), cwd=tmp_path, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with ending(process):
        wait_until(lambda: all(in_layer(tmp_path, f"{name}.out") for name in waiting[1:])
                   and written(tmp_path, "opened.out")
                   and any(path.stat().st_size for path in tmp_path.glob(".snakemake/forge/runs/*/*-failing/stdout.log")), process)
        with (tmp_path / "appended.in").open("a") as file:
            file.write("more\n")
        (tmp_path / "other").write_text("old\n")
        shutil.copystat(tmp_path / "replaced.in", tmp_path / "other")  # the same size and times
        (tmp_path / "other").rename(tmp_path / "replaced.in")
        (tmp_path / "touched.in").touch()
        (tmp_path / "removed.in").unlink()
        (tmp_path / "directory" / "new").touch()
        (tmp_path / "go.txt").write_text("go\n")
        output, _ = process.communicate(timeout=DEADLINE)
    result = Result(process.returncode, output, tmp_path)
    for name in waiting[:-1]:
        attempt = result.attempt(name)
        assert attempt["outcome"] == "failed", output
        assert f"input {name}.in was changed while the job ran" in attempt["reason"]
        assert attempt["evidence"]["inputs_changed"] == [f"{name}.in"]
        assert attempt["outputs"] == []
    assert result.read("appended.out") == "previous\n"
    assert not any((tmp_path / f"{name}.out").exists() for name in ("replaced", "touched", "removed"))
    assert result.attempt("kept")["outcome"] == "succeeded", output
    opened = result.attempt("opened")
    assert opened["outcome"] == "succeeded"
    assert opened["notes"] == ["its inputs were changed while it ran: opened.in"]
    failing = result.attempt("failing")
    assert failing["reason"].startswith("exit code 3")
    assert failing["notes"] == ["its inputs were changed while it ran: appended.in"]
    assert residue(tmp_path) == []
