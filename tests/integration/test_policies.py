"""Policies of a run, a runtime or a rule, tested by effect: the files and services that a job sees and reaches."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.sandbox import landlock

from .. import ordinary
from ..conftest import DEADLINE, Result, command, ending, forge, residue, run, wait_until, write_workflow, written

IS_ROOT = os.geteuid() == 0

CONNECT = """
import os, socket, sys
def reach(family, address):
    try:
        with socket.socket(family) as s:
            s.settimeout(2)
            s.connect(address)
            return "reached"
    except OSError:
        return "no"
abstract = bytes.fromhex(sys.argv[2])
print(reach(socket.AF_INET, ("127.0.0.1", int(sys.argv[1]))), reach(socket.AF_UNIX, abstract))
"""


@contextmanager
def services() -> Iterator[tuple[int, str]]:
    """Listen on 127.0.0.1 and on an abstract socket; yield the port and the hexadecimal name."""
    name = f"\0forge-test-{os.getpid()}".encode()
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(name)
        tcp.listen(50)
        unix.listen(50)
        yield tcp.getsockname()[1], name.hex()


def test_policies_of_a_run(workdir: Path) -> None:
    """One workflow tests variables, sockets, protected paths and nested sandboxes."""
    (workdir / "connect.py").parent.mkdir(parents=True, exist_ok=True)
    (workdir / "connect.py").write_text(CONNECT)
    for name in ("secret", "hidden", "shared"):
        (workdir / name).mkdir()
        (workdir / name / "file.txt").write_text(f"{name}\n")
    (workdir / "forge.yaml").write_text(f"""
version: 1
protect: ['{workdir}/secret']
runtimes:
  special: {{host: true, paths: {{hide: ['{workdir}/hidden'], write: ['{workdir}/shared']}}}}
rules: {{special: special}}
""")
    bwrap = shutil.which("bwrap")
    assert bwrap is not None, "bubblewrap is not installed: apt-get install bubblewrap"
    with services() as (port, abstract):
        connect = f"python3 connect.py {port} {abstract} > {{output}}"
        write_workflow(workdir, f"""
            envvars: "DECLARED_TOKEN"
            rule all:
                input: expand("{{n}}.out", n=["variables", "python", "on", "off", "protected", "nested", "bwrap", "not_nested", "special"])
            rule variables:
                output: "variables.out"
                shell: "env | grep -E '^(MY_SECRET|DECLARED_TOKEN|BASH_ENV|AWS_SECRET_ACCESS_KEY|HARMLESS)=' | sort > {{output}}"
            rule python:
                output: "python.out"
                run:
                    import os
                    names = ("MY_SECRET", "DECLARED_TOKEN", "BASH_ENV", "AWS_SECRET_ACCESS_KEY", "HARMLESS")
                    open(output[0], "w").write("".join(f"{{n}}={{os.environ[n]}}\\n" for n in sorted(names) if n in os.environ))
            rule on:
                output: "on.out"
                input: "connect.py"
                shell: {connect!r}
            rule off:
                output: "off.out"
                input: "connect.py"
                resources: forge_network="off"
                shell: {connect!r}
            rule protected:
                output: "protected.out"
                shell: "(ls secret | wc -l; cat secret/file.txt || echo no) > {{output}} 2>/dev/null"
            rule special:
                output: "special.out"
                shell: "(cat hidden/file.txt || echo no) > {{output}} 2>/dev/null; echo more >> shared/file.txt"
            rule nested:
                output: "nested.out"
                resources: forge_nested="on"
                shell: "unshare -Urm sh -c 'mount -t tmpfs none /tmp && echo mounted' > {{output}}"
            rule bwrap:
                output: "bwrap.out"
                resources: forge_nested="on"
                shell: "bwrap --unshare-user --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp echo inside > {{output}}"
            rule not_nested:
                output: "not_nested.out"
                shell: "(unshare -Urm true 2>/dev/null && echo yes || echo no) > {{output}}"
            """)
        result = run(workdir, "-j4", "-k", env={
            "MY_SECRET": "1", "DECLARED_TOKEN": "2", "BASH_ENV": "/dev/null", "AWS_SECRET_ACCESS_KEY": "3", "HARMLESS": "4",
        })
    assert result.code == 0, result.output
    assert result.read("variables.out") == result.read("python.out") == "DECLARED_TOKEN=2\nHARMLESS=4\n"
    assert result.read("on.out") == f"reached {'no' if landlock.abi() >= 6 else 'reached'}\n"
    assert result.read("off.out") == "no no\n"
    assert result.read("protected.out") == "0\nno\n"
    assert result.read("special.out") == "no\n"
    assert result.read("shared/file.txt") == "shared\nmore\n"
    assert result.read("nested.out") == "mounted\n"
    assert result.read("bwrap.out") == "inside\n"
    assert result.read("not_nested.out") == "no\n"
    mechanisms = {a["rule"]: set(a["isolation"]["mechanisms"]) for a in result.attempts()}
    assert {"landlock", "seccomp", "read-only", "layers"} <= mechanisms["on"]
    assert not {"landlock", "seccomp"} & mechanisms["nested"]
    assert residue(workdir) == []


WORKFLOW_OF_READS = """
rule all:
    input: "a.out", "b.out"
rule a:
    input: "in.txt"
    output: "a.out"
    shell: "cat {input} other.txt > {output}; echo x > temporary.txt; cat temporary.txt; cat data/*.txt > /dev/null"
rule b:
    input: "a.out"
    output: "b.out"
    # What nobody has read yet of the last moment keeps the deleted files open.
    shell: "cat {input} > {output}; python3 -c 'import os; [(open(str(n), chr(119)).close(), os.unlink(str(n))) for n in range(200)]'"
"""


def _prepare_reads(workdir: Path) -> None:
    write_workflow(workdir, WORKFLOW_OF_READS)
    (workdir / "data").mkdir()
    for name in ("in.txt", "other.txt", "data/1.txt", "data/2.txt"):
        (workdir / name).write_text(name)


@pytest.mark.kernel
@pytest.mark.skipif(not IS_ROOT, reason="fanotify marks of mounts are root's; an ordinary user's case is the next test")
def test_undeclared_reads_are_listed(workdir: Path) -> None:
    _prepare_reads(workdir)
    result = run(workdir, "-j2", "--forge-audit")
    assert result.code == 0, result.output
    assert result.attempt("a")["undeclared_reads"] == ["data/1.txt", "data/2.txt", "other.txt"]
    assert result.attempt("b")["undeclared_reads"] == []
    assert "Forge: rule a reads data/1.txt, data/2.txt, other.txt, which it does not declare" in result.output
    listed = forge(workdir, "audit")
    assert listed.returncode == 0, listed.stderr
    assert "rule a" in listed.stdout and '"other.txt"' in listed.stdout and "rule b" not in listed.stdout
    found = json.loads(forge(workdir, "audit", "--json", check=True).stdout)
    assert [(entry["rule"], entry["reads"], entry["writes"]) for entry in found] == [
        ("a", ["data/1.txt", "data/2.txt", "other.txt"], ["temporary.txt"])
    ]
    assert residue(workdir) == []


def test_who_cannot_see_reads_is_told_once(workdir: Path) -> None:
    _prepare_reads(workdir)
    before = []
    if IS_ROOT:
        ordinary.hand_over(workdir)
        before = ordinary.prefix()
    done = run(workdir, "-j2", "--forge-audit", before=before)
    assert done.code == 0, done.output
    assert done.output.count("Forge: without --forge-audit: undeclared reads cannot be seen on this host") == 1
    assert done.attempt("a")["undeclared_reads"] is None


def test_a_target_that_somebody_else_changed_is_not_overwritten(workdir: Path) -> None:
    """Fault 71."""
    (workdir / "old.txt").parent.mkdir(parents=True, exist_ok=True)
    (workdir / "old.txt").write_text("old\n")
    write_workflow(workdir, """
        rule all:
            output: "old.txt"
            shell: "touch begun; until [ -s go.txt ]; do sleep 0.1; done; echo new > {output}"
        """)
    (workdir / "go.txt").touch()  # an overlay may remember a missing name, but sees new content of a file
    with (workdir / "log.txt").open("w") as log:
        process = subprocess.Popen(command("forge", "-j1", "-F"), cwd=workdir, stdout=log, stderr=subprocess.STDOUT)
        with ending(process):
            wait_until(lambda: written(workdir, "begun"), process)
            (workdir / "old.txt").write_text("by somebody else\n")
            (workdir / "go.txt").write_text("go\n")
            assert process.wait(DEADLINE) != 0
    result = Result(1, (workdir / "log.txt").read_text(), workdir)
    assert "changed by somebody else" in result.attempt("all")["reason"]
    assert result.read("old.txt") == "by somebody else\n"
    assert residue(workdir) == []


def test_keep_incomplete_keeps_beside(workdir: Path) -> None:
    """A partial output is kept beside the record: in place a later run would use it (snakemake#3808)."""
    write_workflow(workdir, """
        rule all:
            output: "out/half.txt"
            shell: "echo half > {output}; exit 1"
        """)
    result = run(workdir, "-j1", "--keep-incomplete")
    assert result.code != 0
    assert not (workdir / "out" / "half.txt").exists()
    kept = Path(result.attempt("all")["directory"], "incomplete", "1")
    assert kept.read_text() == "half\n"
    assert residue(workdir) == []


@pytest.mark.skipif(not IS_ROOT, reason="only root can mount; the file systems are the same for an ordinary user")
@pytest.mark.parametrize(("options", "words"), [("size=256k", "No space left"), ("ro", "Write-protected output files")])
def test_a_target_on_a_full_or_read_only_disk(workdir: Path, options: str, words: str) -> None:
    """Faults 76, 78: the job fails cleanly, and the old version stays."""
    small = workdir / "small"
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "forge-test", small], check=True)
    try:
        (small / "x.out").write_text("old\n")
        subprocess.run(["mount", "-o", f"remount,{options}", small], check=True)
        write_workflow(workdir, """
            rule all:
                output: "small/x.out"
                shell: "head -c 1000000 /dev/zero > {output}"
            """)
        result = run(workdir, "-j1", "-F")
        assert result.code != 0
        assert words in result.output, result.output
        assert (small / "x.out").read_text() == "old\n"
        assert residue(workdir) == []
    finally:
        subprocess.run(["umount", small], check=True)
