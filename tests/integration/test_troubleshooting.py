"""docs/how-to/troubleshooting.md: jobs, and evidence of what takes longer to provoke, show each text that a user may look for there."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.spec import words
from snakemake_executor_plugin_forge.spec.verdict import Cause, Oom, OomScope, Refusal, RefusalKind, Writer, WritesTo

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
    agent = Refusal(RefusalKind.SOCKET, "/run/docker.sock")
    verdicts = [
        judged(oom_kills=1, oom=Oom(OomScope.RUN)), judged(timed_out=True, exit_code=None), judged(pids_hits=4, exit_code=1),
        judged(exit_code=1, refusals=(Refusal(RefusalKind.FULL, "/data"),)), judged(exit_code=1, refusals=(agent,)),
        judged(exit_code=1, log_tail="java.lang.OutOfMemoryError: Java heap space"), judged(inputs_changed=("a.bam",)), judged(setup_error="mount: no", exit_code=None),
        judged(writers=(Writer("tee", "a.log", WritesTo.OUTPUT),), truncated=True),
    ]
    texts = [verdict.reason for verdict in verdicts] + [words.unseen(Cause.SUPERVISOR_KILLED).happened]
    return "\n".join([done.output, large.output, *texts, *(note for a in done.attempts() for note in a["notes"])])


@pytest.mark.parametrize("symptom", SYMPTOMS)
def test_the_text_is_said(said: str, symptom: str) -> None:
    parts = [part for part in re.split(r"\s*…\s*", symptom) if part]
    assert re.search(".{0,300}?".join(map(re.escape, parts)), said), said


def test_the_page_has_all_of_them() -> None:
    assert len(SYMPTOMS) > 25
