"""Batch systems, services and terminal programs start Snakemake with odd signals, streams, descriptors and limits.

Each start runs one workflow with one job of each kind; the jobs report what they have inherited.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .. import ordinary
from ..conftest import DEADLINE, Result, command, residue, write_workflow
from ..side_by_side import USERS

pytestmark = [pytest.mark.slow, pytest.mark.security]

WORKFLOW = """
rule all:
    input: "shell.txt", "run.txt", "script.txt", "pipe.txt"
rule shell:
    output: "shell.txt"
    shell: "cat /proc/self/status > {output}; ls /proc/$$/fd > {output}.fds; ulimit -Sn > {output}.files"
rule run:
    output: "run.txt"
    run:
        import os, subprocess
        with open(output[0], "w") as file:
            file.write(open("/proc/self/status").read())
        assert subprocess.run(["false"]).returncode == 1, "children cannot be waited for"
        assert max(int(fd) for fd in os.listdir("/proc/self/fd")) < 100, os.listdir("/proc/self/fd")
rule script:
    output: "script.txt"
    script: "script.py"
rule pipe:
    output: "pipe.txt"
    shell: "(yes || echo $? >> {output}) 2>/dev/null | head -1 >/dev/null; test -s {output}"
"""
SCRIPT = "open(snakemake.output[0], 'w').write(open('/proc/self/status').read())"
SIGNALS = """
import os, signal, sys
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    if sys.argv[1] == "ignore":
        signal.signal(number, signal.SIG_IGN)
    else:
        signal.pthread_sigmask(signal.SIG_BLOCK, {number})
os.execvp(sys.argv[2], sys.argv[2:])
"""
_OF_GLIBC = 1 << 31 | 1 << 32  # posix_spawn(3) may leave the C library's own two ignored
_OF_PYTHON = _OF_GLIBC | 1 << 12 | 1 << 24  # each Python itself ignores SIGPIPE and SIGXFSZ
STARTS = {
    "few files, signals ignored": [
        sys.executable, "-c", SIGNALS, "ignore",
        "bash", "-c", 'exec 200</etc/passwd; ulimit -n 64; umask 0; exec "$@" <&- >&- 2>&-', "bash",
    ],
    "many files, signals blocked": [
        sys.executable, "-c", SIGNALS, "block",
        "bash", "-c", 'ulimit -n 4096; for i in {10..1100}; do eval "exec $i</etc/passwd"; done; exec "$@" 2>&-', "bash",
    ],
}  # fmt: skip


def _start(directory: Path, user: str, start: list[str], *arguments: str) -> Result:
    before = ordinary.given_to(user, directory)
    log = directory / "said"
    with log.open("w") as file:
        done = subprocess.run([*before, *start, *command("forge", *arguments)], cwd=directory, stdin=subprocess.DEVNULL,
                              stdout=file, stderr=subprocess.STDOUT, check=False, timeout=DEADLINE)
    return Result(done.returncode, log.read_text(), directory)


def _masks(text: str) -> dict[str, int]:
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return {name: int(lines[name], 16) for name in ("SigBlk", "SigIgn")}


@pytest.mark.parametrize(("how", "user"), list(zip(STARTS, (USERS[0], "user"), strict=True)))
def test_jobs_are_as_those_of_a_shell(workdir: Path, how: str, user: str) -> None:
    write_workflow(workdir, WORKFLOW)
    (workdir / "script.py").write_text(SCRIPT)
    result = _start(workdir, user, STARTS[how], "-j3")
    assert result.code == 0, result.output
    assert {a["outcome"] for a in result.attempts()} == {"succeeded"}
    shell, run, script = (_masks(result.read(f"{name}.txt")) for name in ("shell", "run", "script"))
    assert (shell["SigBlk"], shell["SigIgn"] & ~_OF_GLIBC) == (0, 0)
    for found in (run, script):
        assert (found["SigBlk"], found["SigIgn"] & ~_OF_PYTHON) == (0, 0)
    assert result.read("pipe.txt").strip() == str(128 + 13)  # SIGPIPE ends a writer without a reader
    assert {*result.read("shell.txt.fds").split()} <= {"0", "1", "2", "255"}  # the last is bash's own
    if how.startswith("few"):
        assert result.read("shell.txt.files").strip() == "64"
        assert (workdir / "shell.txt.fds").stat().st_mode & 0o777 == 0o666
    assert residue(workdir) == []


MANY = """
rule all:
    input: expand("shell/{i}", i=range(40)), expand("run/{i}", i=range(10))
rule shell:
    output: "shell/{i}"
    shell: "sleep 0.5; echo {wildcards.i} > {output}"
rule run:
    output: "run/{i}"
    run:
        import time
        time.sleep(0.5)
        open(output[0], "w").write(wildcards.i)
"""


@pytest.mark.parametrize(("limit", "user"), [("ulimit -n 64", USERS[0]), ("ulimit -u 60", "user")])
def test_jobs_wait_where_the_host_is_short(workdir: Path, limit: str, user: str) -> None:
    """All jobs succeed, although descriptors or processes do not suffice for all at once."""
    write_workflow(workdir, MANY)
    result = _start(workdir, user, ["bash", "-c", f'{limit}; exec "$@"', "bash"], "-j40", "--cores", "40")
    assert result.code == 0, result.output
    assert len(result.attempts()) == 50
    assert ("runs at most" in result.output) == ("-u" in limit)
    assert residue(workdir) == []


def test_without_processes_nothing_is_run(workdir: Path) -> None:
    write_workflow(workdir, MANY)
    env = ["env", "OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1"]
    result = _start(workdir, "user", [*env, "bash", "-c", 'ulimit -u 20; exec "$@"', "bash"], "-j4")
    assert result.code != 0
    assert "this user may have 20 processes and threads (ulimit -u)" in result.output
    assert "Traceback" not in result.output
    assert not (workdir / "shell").exists()
    assert residue(workdir) == []
