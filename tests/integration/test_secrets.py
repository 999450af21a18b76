"""Secrets in Snakemake's environment: no process that a job can read has one in its environment or memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import DEADLINE, Result, residue, write_workflow
from ..side_by_side import USERS

pytestmark = pytest.mark.security

# The head of the Snakefile copies and frees the environment, as Python programs often do.
WORKFLOW = """
import os, subprocess
subprocess.run(["true"], env={**os.environ, "MORE": "1"})
rule all:
    input: "shell.txt", "script.txt", "run.txt", "inner.txt"
rule by_shell:
    output: "shell.txt"
    shell: "python3 search.py {output}"
rule by_script:
    output: "script.txt"
    script: "search.py"
rule by_run:
    output: "run.txt"
    run:
        exec(open("search.py").read(), {"place": output[0]})
rule by_inner:
    output: "inner.txt"
    resources: forge_run_blocks="new"
    run:
        exec(open("search.py").read(), {"place": output[0]})
"""
SEARCH = """
import os, re, sys
if "snakemake" in globals():
    place = snakemake.output[0]
elif "place" not in globals():
    place = sys.argv[1]
SECRET = re.compile(b"forge-can[a]ry-[0-9]")  # which does not match itself
def places(pid):
    with open(f"/proc/{pid}/maps") as file:
        return [line.split()[0].split("-") for line in file if line.split()[1].startswith("rw")]
def look(pid):
    with open(f"/proc/{pid}/comm") as file:
        name = file.read().strip()
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            yield f"{name} environ {len(SECRET.findall(file.read()))}"
    except PermissionError:
        yield f"{name} environ unreadable"
    found = read = 0
    try:
        before = places(pid)
        memory = open(f"/proc/{pid}/mem", "rb", buffering=0)
        same = places(pid) == before
    except PermissionError:
        yield f"{name} memory unreadable"
        return
    for begin, end in before if same else ():
        try:
            memory.seek(int(begin, 16))
            text = memory.read(int(end, 16) - int(begin, 16))
        except (OSError, OverflowError):
            continue
        read += len(text)
        found += len(SECRET.findall(text))
    if read <= 100_000:  # it has ended, or become another program, whose memory is not what was opened
        assert not before or not same or places(pid) != before, (pid, name, read)
        raise ProcessLookupError
    yield f"{name} memory {found}"
lines, left = [], [name for name in os.listdir("/proc") if name.isdigit()]
while left:
    try:
        lines += list(look(left[-1]))
        left.pop()
    except (FileNotFoundError, ProcessLookupError):
        if not os.path.exists(f"/proc/{left[-1]}/exe"):  # a link without a target: nothing of it but its parent's wait is left
            left.pop()
text = "\\n".join(sorted(lines)) + "\\n"
open(place, "w").write(text)
"""
SECRETS = {"MY_SECRET": "forge-canary-1", "AWS_SESSION_TOKEN": "forge-canary-2 with a blank", "DB_PASSWORD": "forge-canary-3"}


@pytest.mark.parametrize("user", USERS)
def test_no_job_finds_a_secret_in_any_process_that_it_can_read(user: str, tmp_path: Path) -> None:
    write_workflow(tmp_path, WORKFLOW)
    (tmp_path / "search.py").write_text(SEARCH)
    # Snakemake is executed, not forked: a fork of the warm server has the request in memory, with the environment.
    before = ordinary.given_to(user, tmp_path)
    done = subprocess.run([*before, sys.executable, "-P", "-m", "snakemake", "--executor", "forge", "--scheduler", "greedy", "-j2"], cwd=tmp_path,
                          capture_output=True, stdin=subprocess.DEVNULL, text=True, check=False, timeout=DEADLINE, env=os.environ | SECRETS)
    result = Result(done.returncode, done.stdout + done.stderr, tmp_path)
    assert result.code == 0, result.output
    for kind in ("shell", "script", "run", "inner"):
        lines = result.read(f"{kind}.txt").splitlines()
        assert any(line.endswith(" memory 0") for line in lines), lines  # at least the job's own process
        assert all(line.endswith((" 0", " unreadable")) for line in lines), (kind, lines)
    # Process 1 of the job is Forge's and shows no secret. In a run: job it is a fork until it has become cat.
    first = {"cat environ 0", "cat environ unreadable", "forge-super environ unreadable"}
    assert first & {*result.read("run.txt").splitlines()} and "forge-init environ unreadable" in result.read("shell.txt")
    assert not residue(tmp_path)
