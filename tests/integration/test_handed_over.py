"""Jobs that send open files and directories to another running job through a socket."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from ..conftest import DEADLINE, Result, command, ending, residue, wait_until
from ..ordinary import given_to
from ..side_by_side import USERS

pytestmark = [pytest.mark.security, pytest.mark.slow]

CATALOG = """
version: 1
runtimes:
  meeting: {host: true, paths: {write: [meeting]}}
defaults: {runtime: meeting}
"""
# A taker keeps all descriptors, and uses them once the other jobs have verdicts and their outputs are published.
HANDS = """
import os, socket, sys, time
def connected(name):
    while True:
        one = socket.socket(socket.AF_UNIX)
        try:
            one.connect(f"meeting/{name}")
            return one
        except OSError:
            one.close()
            time.sleep(0.05)
def give(*files):
    for name in ("nested", "plain"):
        one = connected(name)
        socket.send_fds(one, [b"x"], files)
        one.recv(1)
def take(name, out):
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"meeting/{name}")
    server.listen()
    kept = []
    while len(kept) < 10:
        one, _ = server.accept()
        kept += socket.recv_fds(one, 1, 10)[1]
        one.sendall(b"x")
    while not os.path.exists("meeting/go"):
        time.sleep(0.05)
    done = [f"{len(kept)} descriptors"]
    for fd in kept:
        ways = {
            "write": lambda: os.pwrite(fd, b"WRONG", 0),
            "reopen": lambda: os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"WRONG", 0),
            "chmod": lambda: os.chmod(f"/proc/self/fd/{fd}", 0o777),
            "change": lambda: os.pwrite(os.open("file", os.O_RDWR, dir_fd=fd), b"WRONG", 0),
            "create": lambda: os.open("WRONG", os.O_CREAT | os.O_WRONLY, dir_fd=fd),
            "remove": lambda: os.unlink("file", dir_fd=fd),
        }
        for way, act in ways.items():
            try:
                act()
                done.append(way)
            except OSError:
                pass
    with open(out, "w") as file:
        print(*done, sep="\\n", file=file)
"""
RULES = """
import hands
rule taker_nested:
    output: "nested"
    resources: forge_nested="on"
    shell: "python3 -c 'import hands; hands.take(\\"nested\\", \\"nested\\")'"
rule taker_plain:
    output: "plain"
    shell: "python3 -c 'import hands; hands.take(\\"plain\\", \\"plain\\")'"
rule writable:  # the taker could write until its end: not published
    output: "writable"
    shell: "python3 -c 'import hands, os; hands.give(os.open(\\"writable\\", os.O_CREAT | os.O_WRONLY))'"
rule mapped:
    output: "mapped"
    run:
        import ctypes
        with open(output[0], "w+b") as file:
            file.write(b"RIGHT")
            file.flush()
            hands.give(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDWR))
rule inside:
    output: directory("inside")
    shell: "mkdir inside; python3 -c 'import hands, os; hands.give(os.open(\\"inside/file\\", os.O_CREAT | os.O_WRONLY))'"
rule undeclared:
    output: "undeclared"
    shell: "echo RIGHT > undeclared; python3 -c 'import hands, os; hands.give(os.open(\\"beside\\", os.O_CREAT | os.O_WRONLY))'"
rule readable:  # by these nobody can write any more when the job has ended
    output: "readable/file"
    shell: "echo RIGHT > {output}; python3 -c 'import hands, os; hands.give(os.open(\\"{output}\\", os.O_RDONLY))'"
rule directory:
    output: directory("directory")
    shell: "mkdir directory; echo RIGHT > directory/file; python3 -c 'import hands, os; hands.give(os.open(\\"directory\\", os.O_RDONLY))'"
rule path:
    output: "path/file"
    shell: "echo RIGHT > {output}; python3 -c 'import hands, os; hands.give(os.open(\\"{output}\\", os.O_PATH), os.open(\\"path\\", os.O_PATH))'"
rule top:
    output: "top/file"
    shell: "echo RIGHT > {output}; python3 -c 'import hands, os; hands.give(os.open(\\".\\", os.O_PATH), os.open(\\"/\\", os.O_PATH))'"
"""


@pytest.mark.parametrize("user", USERS)
def test_whatever_a_job_hands_to_another_one_changes_no_output(workdir: Path, user: str) -> None:
    held, given = ["writable", "mapped", "inside", "undeclared"], ["readable", "directory", "path", "top"]
    (workdir / "Snakefile").write_text(RULES)
    (workdir / "hands.py").write_text(HANDS)
    (workdir / "forge.yaml").write_text(CATALOG)
    (workdir / "meeting").mkdir()
    targets = ["nested", "plain", *held, *(name if name == "directory" else f"{name}/file" for name in given)]
    words = [*given_to(user, workdir), *command("forge", "-j10", "-k", *targets)]
    with subprocess.Popen(words, cwd=workdir, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process, ending(process):
        wait_until(lambda: len([*workdir.glob(".snakemake/forge/runs/*/*/verdict.json")]) == 8, process)
        (workdir / "meeting/go").touch()
        result = Result(process.wait(DEADLINE), process.communicate()[0], workdir)
    for name in held:
        attempt = result.attempt(name)
        assert attempt["outcome"] == "failed", result.output
        assert "open for writing in another job" in attempt["reason"], attempt["reason"]
        assert not (workdir / name).exists()
    assert not (workdir / "beside").exists()
    for name in given:
        assert result.attempt(name)["outcome"] == "succeeded", result.output
        assert sorted({*os.listdir(workdir / name)} - {".snakemake_timestamp"}) == ["file"]
        assert result.read(f"{name}/file") == "RIGHT\n"
        assert (workdir / name / "file").stat().st_mode & 0o777 == 0o644
    for name in ("nested", "plain"):
        said = result.read(name).split()
        assert said[0] == "10"
        assert set(said[2:]) <= {"write", "reopen", "chmod"}, said  # works on files that are open for writing, and published nowhere
    assert not (workdir / "WRONG").exists()
    assert residue(workdir) == []
