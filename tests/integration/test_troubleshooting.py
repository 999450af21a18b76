"""docs/how-to/troubleshooting.md: jobs print each text that a user may look for there.

The tests leave out one, which takes ten minutes: a process that still writes an output long after its command has ended.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.spec.verdict import Writer, WritesTo

from .. import killer
from ..conftest import run, write_workflow
from ..unit.test_outcome import judged

PAGE = Path(__file__).parents[2] / "docs/how-to/troubleshooting.md"
SYMPTOMS = re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)
RULES = r"""
    rule oom:
        output: "oom.out"
        resources: mem_mb=40
        shell: "python3 -c 'x = bytearray(90 * 2**20)' > {output}"
    rule tool:
        output: "tool.out"
        resources: walltime=60
        shell: "samtoolz > {output}"
    rule disk:
        output: "disk.out"
        resources: disk_mb=5
        shell: "head -c 4M /dev/zero > $TMPDIR/a; cp $TMPDIR/a $TMPDIR/b; cp $TMPDIR/a {output}; sleep 60"
    rule missing:
        output: "missing.out"
        shell: "touch missing.outt"
    rule killed:
        output: "killed.out"
        shell: "kill -9 $$"
    rule kind:
        output: "kind.out"
        shell: "mkfifo {output}"
    rule raw:
        output: touch("raw.out")
        shell: "echo x >> raw.txt"
    rule moves:
        input: "in.txt"
        output: "moved.out"
        shell: "mv {input} {output}"
    rule elsewhere:
        output: touch("elsewhere.out")
        shell: "touch OUT/x"
    rule private:
        output: "private.out"
        shell: "cat HOSTFILE > {output}"
    rule variable:
        output: "variable.out"
        shell: "echo $FIRST_TOKEN > {output}"
    rule network:
        output: touch("network.out")
        resources: forge_network="off"
        shell: "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 9))'"
    rule nested:
        output: touch("nested.out")
        shell: "unshare -Um true"
    rule beside:
        output: touch("beside.out")
        shell: "touch beside.txt; mkfifo beside.fifo; touch /tmp/wanted.txt; flock raw.txt true; sleep 1000 & touch beside.txt"
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("troubleshooting")
    with tempfile.TemporaryDirectory(dir="/opt") as out, tempfile.NamedTemporaryFile(dir="/tmp") as host_file:
        write_workflow(place, RULES.replace("OUT", out).replace("HOSTFILE", host_file.name))
        for name in ("in.txt", "raw.txt"):
            (place / name).write_text("a\n")
        rules = re.findall(r"rule (\w+)", RULES)
        done = run(place, "-j4", "-k", *rules, env={"FIRST_TOKEN": "1"})
    assert [a["rule"] for a in done.attempts() if a["outcome"] == "succeeded"] == ["beside"]
    large = run(place, "-j1", "--set-resources", "tool:mem_mb=99999999", "--", "tool.out")
    writes = judged(writers=(Writer("tee", "a.log", WritesTo.OUTPUT),), truncated=True).reason
    notes = [note for a in done.attempts() for note in a["notes"]]
    return "\n".join([done.output, large.output, _said_where_limits_are_tight(tmp_path_factory.mktemp("limits")), writes, *notes])


TIGHT = r"""
    rule endless:
        output: "endless.out"
        shell: "sleep 1000"
    rule hog:
        output: "hog.out"
        resources: runtime=30
        shell: "python3 -c 'x = bytearray(900 * 2**20)'; touch {output}"
    rule forks:
        output: "forks.out"
        resources: runtime=30
        shell: "for i in {{1..60}}; do sleep 5 & done; wait; exit 1"
    rule heap:
        output: "heap.out"
        log: "heap.log"
        resources: runtime=30
        shell: "echo 'java.lang.OutOfMemoryError: Java heap space' > {log}; exit 1"
    rule full:
        output: "small/full.out"
        resources: runtime=30
        shell: "head -c 9M /dev/zero > {output}"
    rule reads:
        input: "shared.txt"
        output: "reads.out"
        resources: runtime=30
        shell: "cat {input} > {output}; until ! cmp -s {input} {output}; do sleep 0.1; done"
    rule changes:
        output: "changes.out"
        resources: runtime=30, forge_files="open"
        shell: "for i in {{1..40}}; do echo more >> shared.txt; sleep 0.2; done; touch {output}"
    rule nowhere:
        output: "nowhere.out"
        resources: runtime=30, tmpdir="/proc"
        shell: "touch {output}"
    rule shot:
        output: "shot.out"
        resources: runtime=30
        shell: "touch {output}"
    rule agent:
        output: touch("agent.out")
        resources: runtime=30
        shell: "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"OUT/agent\")'"
    rule pipe:
        output: "pipe.out"
        resources: runtime=30
        shell: "yes | head -n 1 > {output}"
"""


def _said_where_limits_are_tight(place: Path) -> str:
    """The output of a run whose jobs reach its limits, with a killed supervisor and a full file system."""
    (place / "small").mkdir()
    (place / "shared.txt").write_text("a\n")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", str(place / "small")], check=True)
    try:
        with tempfile.TemporaryDirectory(dir="/opt") as out, socket.socket(socket.AF_UNIX) as agent:
            agent.bind(f"{out}/agent")
            agent.listen()
            write_workflow(place, TIGHT.replace("OUT", out))
            outputs = [name.replace("full.out", "small/full.out") for name in (f"{rule}.out" for rule in re.findall(r"rule (\w+)", TIGHT))]
            env = killer.environment("supervisor:looked through:shot") | {"SSH_AUTH_SOCK": f"{out}/agent"}
            limits = ("--forge-wall", "4s", "--forge-run-memory", "400MiB", "--forge-pids", "40")
            done = run(place, "-j12", "-k", *limits, "--", *outputs, env=env)
    finally:
        subprocess.run(["umount", "-l", str(place / "small")], check=True)
    assert [a["rule"] for a in done.attempts() if a["outcome"] == "succeeded"] == ["changes"], done.output
    return done.output


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_the_text_is_said(said: str, symptom: str) -> None:
    parts = [part for part in re.split(r"\s*…\s*", symptom) if part]
    assert re.search(".{0,300}?".join(map(_whole, parts)), said), said


def _whole(text: str) -> str:
    """A pattern for a text that is no part of longer words or numbers: exit code 1 is not said by exit code 127."""
    return rf"(?<!\w){re.escape(text)}(?!\w)" if text[0].isalnum() else rf"{re.escape(text)}(?!\w)"


def test_the_page_has_all_of_them() -> None:
    assert len(SYMPTOMS) > 25
