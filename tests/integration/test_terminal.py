"""No kind of job reaches the terminal in which Snakemake was started; jobs can open their own terminals."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from .. import ordinary
from ..conftest import command, in_a_terminal, residue, write_workflow
from ..side_by_side import USERS

pytestmark = pytest.mark.security

PROBE = """
import errno, fcntl, json, os, pty, socket, sys, termios

def probe(output):
    def attempt(call):
        try:
            return call()
        except OSError as error:
            return errno.errorcode[error.errno]

    def opened(path):
        os.close(os.open(path, os.O_RDWR | os.O_NOCTTY))
        return "opened"

    def terminals(pid):
        names = attempt(lambda: os.listdir(f"/proc/{pid}/fd"))
        links = [] if isinstance(names, str) else [attempt(lambda: os.readlink(f"/proc/{pid}/fd/{n}")) for n in names]
        return [link for link in links if link.startswith(("/dev/pts", "/dev/tty"))]

    found = {
        "controlling terminal": open("/proc/self/stat").read().rsplit(")", 1)[1].split()[4],
        "descriptors": sum((terminals(pid) for pid in os.listdir("/proc") if pid.isdigit()), []),
        "/dev/tty": attempt(lambda: opened("/dev/tty")),
        "others": sorted(os.listdir("/dev/pts")),
        "a device elsewhere": attempt(lambda: opened("null")),
        "/dev/null": attempt(lambda: opened("/dev/null")),
    }
    controller, terminal = pty.openpty()
    found["own"] = os.ttyname(terminal)
    for name, request in (("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C)):
        found[name] = attempt(lambda: fcntl.ioctl(terminal, request, b"x"))
    found["vsock"] = attempt(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close())
    with open(output, "w") as file:
        json.dump(found, file)

if __name__ == "__main__":
    probe(sys.argv[1])
"""

NOTHING = {
    "controlling terminal": "0",
    "descriptors": [],
    "/dev/tty": "ENXIO",
    "others": ["ptmx"],
    "a device elsewhere": "EACCES",
    "/dev/null": "opened",
    "own": "/dev/pts/0",
    "TIOCSTI": "EPERM",
    "TIOCLINUX": "EPERM",
    "vsock": "EAFNOSUPPORT",
}

KINDS = ("call", "nested", "everything", "strict", "apart", "block", "inner", "code")

WORKFLOW = """
import os, sys
KINDS = ["call", "nested", "everything", "strict", "apart", "block", "inner", "code"]
rule all:
    input: expand("{k}.json", k=KINDS), "programs.txt"
rule call:
    input: "probe.py", "null"
    output: "call.json"
    shell: "python3 probe.py {output}"
rule nested:
    output: "nested.json"
    resources: forge_nested="on"
    shell: "python3 probe.py {output}"
rule everything:
    output: "everything.json"
    resources: forge_files="open"
    shell: "python3 probe.py {output}"
rule strict:
    input: "probe.py", "null"
    output: "strict.json"
    resources: forge_files="strict"
    shell: "python3 probe.py {output}"
rule apart:
    output: "apart.json"
    resources: forge_network="off"
    shell: "python3 probe.py {output}"
rule block:
    output: "block.json"
    resources: forge_run_blocks="fork"
    run:
        sys.path.insert(0, os.getcwd())
        import probe
        probe.probe(output[0])
rule inner:
    output: "inner.json"
    resources: forge_run_blocks="new"
    run:
        sys.path.insert(0, os.getcwd())
        import probe
        probe.probe(output[0])
rule code:
    output: "code.json"
    script: "code.py"
rule programs:
    output: "programs.txt"
    shell:
        '''script -qec "tty; stty rows 20 cols 70; stty size" /dev/null > {output}
        python3 -c 'import pty; pty.spawn(["sh", "-c", "tty; read x < /dev/tty; echo $x"])' >> {output} <<< word'''
"""


@pytest.fixture(scope="module", params=USERS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("terminal").resolve()
    write_workflow(directory, WORKFLOW)
    (directory / "probe.py").write_text(PROBE)
    (directory / "code.py").write_text("import os, sys\nsys.path.insert(0, os.getcwd())\nimport probe\nprobe.probe(snakemake.output[0])\n")
    if os.geteuid() == 0:
        os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        (directory / "null").chmod(0o666)
    else:
        (directory / "null").touch(mode=0)  # only root can make devices
    before = ordinary.given_to(request.param, directory)
    code, output = in_a_terminal([*before, *command("forge", "-j3", "-k")], directory)
    assert code == 0, output
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_job_reaches_the_terminal(place: Path, kind: str) -> None:
    found: dict[str, Any] = json.loads((place / f"{kind}.json").read_text())
    assert found == NOTHING


def test_programs_have_terminals_of_their_own(place: Path) -> None:
    lines = (place / "programs.txt").read_text().split()
    assert sorted(lines) == ["/dev/pts/0", "/dev/pts/0", "20", "70", "word", "word"]


def test_nothing_is_left(place: Path) -> None:
    assert residue(place) == []
