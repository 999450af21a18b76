"""File accesses of jobs as data: one entry per case, all in one workflow, run as root and as an ordinary user.

A case is a rule, the outcome that its attempt must have, and a check of the files afterwards. Numbers refer
to docs/explanation/faults.md. The test compares every earlier file, inputs included, with its state before the run.
"""

from __future__ import annotations

import os
import stat
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .. import ordinary
from ..conftest import DEADLINE, Result, command, residue, run, write_workflow

pytestmark = [pytest.mark.kernel, pytest.mark.kernel_user, pytest.mark.security]

# The guest has a phase for its ordinary user.
USERS = ["user"] if os.geteuid() != 0 else ["root"] if "FORGE_GUEST" in os.environ else ["root", "user"]
MANY = 1_000 if "FORGE_GUEST" in os.environ else 10_000  # emulation takes milliseconds for each
Check = Callable[[Result, dict[str, Any]], object]

# Files that exist before the run; none of them may change.
BEFORE = {
    "in.txt": "input\n",
    "data/other.txt": "other\n",
    "data/deep/more.txt": "more\n",
    "precious.txt": "precious\n",
    "old.txt": "old version\n",
    "old2.txt": "old version\n",
    "old3.txt": "old version\n",
    "old4.txt": "old version\n",
    "old_dir/part.txt": "old part\n",
    "logs/old.log": "old log\n",
}


@dataclass(frozen=True)
class Case:
    """One rule; by default in.txt is its input and NAME.out its output."""

    name: str
    outcome: str
    shell: str
    directives: str = ""
    output: str = ""  # the text after "output:"
    input: str = "'in.txt'"
    check: Check | None = None

    def rule(self) -> str:
        """The rule in the Snakefile."""
        text = f"rule {self.name}:\n    input: {self.input}\n    output: {self.output or repr(self.name + '.out')}\n"
        text += textwrap.indent(self.directives, "    ") + ("\n" if self.directives else "")
        return text + f"    shell: {self.shell!r}\n"


def _text(name: str, text: str) -> Check:
    def check(result: Result, attempt: dict[str, Any]) -> None:
        assert result.read(name) == text

    return check


def _refused(result: Result, attempt: dict[str, Any]) -> None:
    assert result.read(f"{attempt['rule']}.out") == "refused\n"


def _says(*words: str) -> Check:
    def check(result: Result, attempt: dict[str, Any]) -> None:
        said = attempt["reason"] + " ".join(attempt["notes"])
        assert all(word in said for word in words), said

    return check


def _gone(*names: str) -> Check:
    def check(result: Result, attempt: dict[str, Any]) -> None:
        assert [name for name in names if os.path.lexists(result.directory / name)] == []

    return check


def _all(*checks: Check) -> Check:
    def check(result: Result, attempt: dict[str, Any]) -> None:
        for one in checks:
            assert one(result, attempt) is not False

    return check


def _try(name: str, what: str) -> Case:
    """An attack that must be refused without failing the job."""
    return Case(name, "succeeded", f"if ({what}) 2>/dev/null; then echo done; else echo refused; fi > {{output}}",
                check=_refused)


def _sparse(result: Result, attempt: dict[str, Any]) -> None:
    status = (result.directory / "sparse.out").stat()
    assert status.st_size == 2**40
    assert status.st_blocks * 512 < 2**20


def _many(result: Result, attempt: dict[str, Any]) -> None:
    assert len(list((result.directory / "many").glob("*.txt"))) == MANY


def _deep(result: Result, attempt: dict[str, Any]) -> None:
    assert sum(1 for _ in os.walk(result.directory / "deep")) == 201


def _no_setuid(result: Result, attempt: dict[str, Any]) -> None:
    for name in ("setuid.out", "setuid_dir/file"):
        assert stat.S_IMODE((result.directory / name).stat().st_mode) == 0o755, name


def _link(result: Result, attempt: dict[str, Any]) -> None:
    assert os.readlink(result.directory / "link.out") == "in.txt"


PY = 'python3 -c "{}"'
HOME = "forge-test-{0}"

CASES = [
    # Inputs: 38 to 43
    _try("append", "echo x >> {input}"),
    _try("truncate", ": > {input}"),
    _try("touch", "touch {input}"),
    _try("chmod", "chmod 777 {input}"),
    _try("attribute", PY.format("import os; os.setxattr('{input}', 'user.x', b'1')")),
    _try("remove", "rm -f {input}"),
    _try("rename", "mv {input} elsewhere.txt"),
    _try("replace", "echo x > new.txt && mv -f new.txt {input}"),
    _try("truncate_call", PY.format("import os; os.truncate('{input}', 0)")),
    Case("remove_workdir", "violation", "rm -rf ./* 2>/dev/null || true; mkdir -p x; echo ok > {output}",
         check=_all(_gone("remove_workdir.out"), _says("deleted", "Snakefile", "no job of this workflow has made"))),
    Case("remove_snakemake", "succeeded", "rm -rf .snakemake 2>/dev/null || true; echo ok > {output}",
         check=lambda result, _: (result.directory / ".snakemake" / "metadata").is_dir()),
    Case("linked_input", "succeeded",  # 50
         "cat {input} > {output}; (echo x >> {input}) 2>/dev/null && exit 9; echo refused >> {output}",
         input="'chain.txt'", check=_text("linked_input.out", "outside\nrefused\n")),
    # Outputs
    Case("link", "succeeded", "ln -s in.txt {output}", check=_link),
    Case("link_out", "succeeded", 'ln -s "$PWD/../outside/target.txt" {output}',  # 52
         check=lambda result, _: os.path.islink(result.directory / "link_out.out")),
    Case("was_link", "succeeded", "echo new > {output}", check=_all(  # the target of the old link is untouched
        _text("was_link.out", "new\n"), lambda result, _: not os.path.islink(result.directory / "was_link.out"))),
    Case("fifo", "failed", "mkfifo {output}", check=_says("fifo.out is a FIFO")),  # 54
    Case("socket", "failed", PY.format("import socket; socket.socket(socket.AF_UNIX).bind('{output}')"),  # 55
         check=_says("socket.out is a socket")),
    Case("fifo_inside", "failed", "mkdir -p {output}/a; mkfifo {output}/a/p", output="directory('fifo_inside.out')",
         check=_says("fifo_inside.out/a/p is a FIFO")),
    Case("dir_for_file", "failed", "mkdir {output}", check=_says("does not say directory()")),  # 56
    Case("file_for_dir", "failed", "touch {output}", output="directory('file_for_dir.out')",
         check=_says("says directory()")),
    Case("missing", "failed", "echo new > old.txt", output="'old.txt', 'missing.out'",  # 58
         check=_all(_says("did not write missing.out"), _gone("missing.out"), _text("old.txt", "old version\n"))),
    Case("fails_late", "failed", "echo new > {output}; exit 1", output="'old2.txt'",  # 59
         check=_text("old2.txt", "old version\n")),
    Case("fails_dir", "failed", "mkdir {output}; echo new > {output}/part.txt; exit 1", output="directory('old_dir')",
         check=_text("old_dir/part.txt", "old part\n")),
    Case("ensured_empty", "failed", ": > {output}", output="ensure('old3.txt', non_empty=True)",
         check=_all(_says("old3.txt is empty"), _text("old3.txt", "old version\n"))),
    Case("ensured_checksum", "failed", "echo new > {output}", output="ensure('old4.txt', sha256='0' * 64)",
         check=_all(_says("not what ensure() says"), _text("old4.txt", "old version\n"))),
    Case("ensured", "succeeded", "printf 'x' > {output}",
         output="ensure('ensured.out', non_empty=True, sha256=lambda w: "
                "'2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881')"),
    Case("new_version", "succeeded", "[ ! -e {output} ] && echo new > {output}", output="'version.txt'",
         check=_text("version.txt", "new\n")),
    Case("new_dir", "succeeded", "mkdir {output}; echo new > {output}/b.txt", output="directory('version_dir')",
         check=_all(_text("version_dir/b.txt", "new\n"), _gone("version_dir/a.txt"))),
    Case("updated", "succeeded", "echo two >> {output}", output="update('growing.txt')",
         check=_text("growing.txt", "one\ntwo\n")),
    Case("closed", "succeeded", "echo x > {output[0]}; chmod 000 {output[0]}; mkdir -p {output[1]}/d; "  # 61
         "touch {output[1]}/d/f; chmod 000 {output[1]}/d", output="'closed.out', directory('closed_dir')"),
    Case("closed_top", "succeeded or rejected", "mkdir {output}; chmod 000 {output}", output="directory('closed_top')"),
    Case("many", "succeeded", f"mkdir {{output}}; cd {{output}}; seq {MANY} | sed 's/$/.txt/' | xargs touch",  # 64
         output="directory('many')", check=_many),
    Case("deep", "succeeded", "mkdir -p {output}$(printf '/d%.0s' $(seq 200))", output="directory('deep')",  # 64
         check=_deep),
    Case("sparse", "succeeded", "truncate -s 1T {output}", check=_sparse),  # 66
    Case("setuid", "succeeded", "touch {output[0]}; mkdir {output[1]}; touch {output[1]}/file; "
         "chmod 6755 {output[0]} {output[1]}/file", output="'setuid.out', directory('setuid_dir')", check=_no_setuid),
    Case("hard_linked", "succeeded", "echo x > {output[0]}; ln {output[0]} {output[1]}", output="'hard1.out', 'hard2.out'",
         check=lambda r, _: os.path.samefile(r.directory / "hard1.out", r.directory / "hard2.out")),
    Case("odd_name", "succeeded", "echo x > '{output}'", output="'odd/w, o:r\\\\\\\\k é.out'"),
    Case("new_directory", "succeeded", "echo x > {output}", output="'made/by/forge/x.out'"),
    Case("outside", "succeeded", "echo new > {output}", output="OUTSIDE + '/result.txt'",
         check=lambda r, _: (r.directory.parent / "outside" / "result.txt").read_text() == "new\n"),
    Case("linked_directory", "succeeded", "echo new > {output}", output="'linked/x.out'",
         check=lambda r, _: (r.directory.parent / "outside" / "linked" / "x.out").read_text() == "new\n"),
    Case("other_file_system", "succeeded", "echo new > {output}", output="SHM + '/x.out'",  # 68
         check=lambda r, _: Path(f"/dev/shm/forge-test-{r.directory.parent.name}/x.out").read_text() == "new\n"),
    Case("in_tmp", "succeeded", "echo new > {output}", output="'/tmp/forge-test-' + TAG + '.out'",
         check=lambda r, _: Path(f"/tmp/forge-test-{r.directory.parent.name}.out").read_text() == "new\n"),
    Case("log_of_success", "succeeded", "echo new > {log}; touch {output}", directives="log: 'logs/new.log'",
         check=_text("logs/new.log", "new\n")),
    Case("log_of_failure", "failed", "echo why > {log}; touch {output}; exit 1", directives="log: 'logs/why.log'",
         check=_text("logs/why.log", "why\n")),
    Case("benchmarked", "succeeded", "touch {output}", directives="benchmark: 'bench/x.tsv'",
         check=lambda result, _: result.read("bench/x.tsv").startswith("s\th:m:s\tmax_rss")),
    # Undeclared files
    Case("undeclared", "succeeded", "touch {output}; echo plot > Rplots.pdf; mkdir -p tmpdir_x/y; touch tmpdir_x/y/z",
         check=_all(_says("Rplots.pdf", 'output: "Rplots.pdf"'), _text("Rplots.pdf", "plot\n"),
                    lambda _, attempt: attempt["undeclared_writes"] == ["Rplots.pdf", "tmpdir_x"],
                    lambda result, _: (result.directory / "tmpdir_x/y/z").exists())),
    Case("undeclared_dropped", "succeeded", "touch {output} dropped.txt", directives="resources: forge_undeclared='discard'",
         check=_all(_gone("dropped.txt"), _says("dropped.txt", "Forge dropped"))),
    Case("undeclared_refused", "violation", "touch {output} forbidden.txt", directives="resources: forge_undeclared='fail'",
         check=_all(_gone("forbidden.txt"), _says("forbidden.txt", "wrote outside its outputs"))),
    Case("undeclared_of_failure", "failed", "touch {output} rest.txt; exit 1", check=_gone("rest.txt")),
    Case("removes_other", "violation", "rm precious.txt data/other.txt; rm -r data/deep; touch {output}",  # 70
         check=_all(_gone("removes_other.out"), _says("deleted", "precious.txt", "data/other.txt", "data/deep/more.txt",
                                                      'resources: forge_undeclared="allow"'))),
    Case("changes_other", "violation", "echo x >> precious.txt; chmod 600 data/other.txt; touch {output}",
         check=_all(_gone("changes_other.out"), _says("changed", "precious.txt", "data/other.txt", 'update("precious.txt")'))),
    Case("changes_dropped", "succeeded", "echo x >> precious.txt; rm data/other.txt; touch {output}",
         directives="resources: forge_undeclared='discard'", check=_says("precious.txt", "data/other.txt", "dropped")),
    Case("replaces_other", "violation", "rm -r data; echo x > data; touch {output}", check=_says("replaced data")),
    Case("home", "succeeded", "mkdir -p ~/" + HOME.format("x") + "; touch {output}",
         check=lambda *_: not Path("~", HOME.format("x")).expanduser().exists()),
    _try("system", "touch /usr/forge-test || touch /etc/forge-test || touch /forge-test || touch /opt/forge-test"),
    Case("beside", "succeeded", "touch ../outside/beside.txt 2>/dev/null || true; touch {output}",
         check=_gone("../outside/beside.txt")),
    _try("hard_link_to_outside", "ln ../outside/target.txt x.txt && echo x >> x.txt && [ ! -e ../outside ]"),
    _try("remount", "mount -o remount,rw / || mount -o remount,rw {input}"),  # 85
    _try("remount_nested", "unshare -rm mount -o remount,rw,bind / || unshare -rm umount {input}"),
    _try("staging", "ls .snakemake/forge/staging/* | grep -q ."),
    # Controls
    Case("rename_inside", "succeeded", "mkdir a_dir; echo x > a_dir/x; mv a_dir b_dir; mv b_dir/x {output}; rm -r b_dir"),
    Case("temporary_beside", "succeeded", "sort -T . {input} > {output}.tmp; mv {output}.tmp {output}",
         check=_text("temporary_beside.out", "input\n")),
    Case("shared_memory", "succeeded", "echo x > /dev/shm/x; cat /dev/shm/x > {output}"),
    Case("process_substitution", "succeeded", "cat <(cat {input}) > {output}", check=_text("process_substitution.out", "input\n")),
    Case("mapped", "succeeded", PY.format(
        "import mmap; f = open('{output}', 'wb+'); f.truncate(5); m = mmap.mmap(f.fileno(), 5); m[:] = b'hello'"),
         check=_text("mapped.out", "hello")),
    Case("shadowed", "succeeded", "cat {input} > {output}; touch junk.txt", directives="shadow: 'minimal'",
         check=_gone("junk.txt")),
    # strict
    Case("strict_hides", "failed", "cat data/other.txt > {output}", directives="resources: forge_files='strict'",
         check=lambda _, attempt: "No such file" in Path(attempt["directory"], "stderr.log").read_text()),
    Case("strict_shows", "succeeded", "cat {input} > {output}; ls >> {output}; ls .. /home /root /srv 2>/dev/null | grep -c outside "
         ">> {output} || true", directives="resources: forge_files='strict'",
         check=_text("strict_shows.out", "input\nin.txt\nstrict_shows.out\n0\n")),
    Case("open_writes", "succeeded", "touch {output}; echo x > open.txt; ls /usr > /dev/null",
         directives="resources: forge_files='open'", check=_text("open.txt", "x\n")),
]  # fmt: skip


def _prepare(directory: Path) -> None:
    tag = directory.parent.name
    for name, text in BEFORE.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    outside = directory.parent / "outside"
    (outside / "linked").mkdir(parents=True)
    (directory.parent / "home").mkdir()
    (outside / "target.txt").write_text("outside\n")
    (directory / "chain.txt").symlink_to("chain2.txt")
    (directory / "chain2.txt").symlink_to("../outside/target.txt")
    (directory / "linked").symlink_to("../outside/linked")
    (directory / "was_link.out").symlink_to("../outside/target.txt")
    (directory / "version.txt").write_text("one\n")
    (directory / "growing.txt").write_text("one\n")
    (directory / "version_dir").mkdir()
    (directory / "version_dir" / "a.txt").write_text("a\n")
    Path(f"/dev/shm/forge-test-{tag}").mkdir()
    rules = "\n".join(case.rule() for case in CASES)
    targets = [f"rules.{case.name}.output" for case in CASES]
    head = f"OUTSIDE, SHM, TAG = {str(outside)!r}, '/dev/shm/forge-test-{tag}', {tag!r}\n"
    write_workflow(directory, f"{head}{rules}\nrule all:\n    input: {', '.join(targets)}\n    default_target: True\n")


def _snapshot(directory: Path) -> dict[str, tuple[Any, ...]]:
    """Content and metadata of the files that must not change."""
    paths = [directory / name for name in BEFORE] + [directory.parent / "outside" / "target.txt", Path("/etc/profile")]  # no installation of a package replaces it meanwhile
    found = {}
    for path in paths:
        status = path.lstat()
        attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
        found[str(path)] = (path.read_bytes(), status.st_mtime_ns, status.st_mode, status.st_uid, status.st_ino, attributes)
    return found


@dataclass(frozen=True)
class Run:
    """A finished run, and the files before and after it."""

    result: Result
    is_root: bool
    before: dict[str, tuple[Any, ...]]
    after: dict[str, tuple[Any, ...]]


@pytest.fixture(scope="module", params=USERS)
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    directory = tmp_path_factory.mktemp(f"files{os.getpid()}-").resolve() / "w, o:r\\k"  # the special characters of an overlay's options
    directory.mkdir()
    _prepare(directory)
    before_command: list[str] = []
    if request.param == "user" and os.geteuid() == 0:
        before_command = [*ordinary.prefix(), "env", "-C", str(directory), f"HOME={directory.parent}/home"]
        owner = f"{ordinary.UID}:{ordinary.UID}"
        subprocess.run(["chown", "-Rh", owner, directory.parent, f"/dev/shm/forge-test-{directory.parent.name}"], check=True)
        subprocess.run(["chgrp", "-R", "0", directory / "logs", directory / "growing.txt"], check=True)  # belongs to another group
    before = _snapshot(directory)
    try:
        finished = subprocess.run(
            [*before_command, *command("forge", "-j4", "--keep-going", "--forge-pids", "400", "--forceall")],
            cwd=directory.parent if before_command else directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, text=True, errors="replace", check=False, timeout=DEADLINE,
        )
        result = Result(finished.returncode, finished.stdout, directory)
        assert {a["rule"] for a in result.attempts()} >= {case.name for case in CASES}, result.output
        yield Run(result, request.param == "root", before, _snapshot(directory))
    finally:
        subprocess.run(["rm", "-rf", f"/dev/shm/forge-test-{directory.parent.name}",
                        f"/tmp/forge-test-{directory.parent.name}.out"], check=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(done: Run, case: Case) -> None:
    attempt = done.result.attempt(case.name)
    expected = case.outcome
    if expected == "succeeded or rejected":  # only root can use a directory that is closed to its owner
        expected = "succeeded" if done.is_root else "failed"
    assert attempt["outcome"] == expected, (attempt["reason"], attempt["notes"])
    if case.check is not None:
        assert case.check(done.result, attempt) is not False
    if expected != "succeeded" and not case.output:
        assert not os.path.lexists(done.result.directory / f"{case.name}.out")


def test_what_was_there_is_what_it_was(done: Run) -> None:
    assert done.after == done.before


def test_nothing_is_left(done: Run) -> None:
    assert residue(done.result.directory) == []


def test_the_record_says_what_was_in_force(done: Run) -> None:
    policies = {a["rule"]: a["isolation"]["files"] for a in done.result.attempts()}
    assert policies["append"] == "guard"
    assert policies["strict_hides"] == "strict"
    assert policies["open_writes"] == "open"


def test_strict_jobs_do_not_see_where_others_before_them_had_something(workdir: Path) -> None:
    """A supervisor has one scratch for all its jobs, and leaves the empty mount points in it."""
    write_workflow(workdir / "work", """
        rule all:
            input: expand("b{n}.txt", n=range(4))
        rule a:
            input: "../outside/in.txt"
            output: "a{n}.txt", "../outside/a{n}.txt"
            shell: "touch {output}"
        rule b:
            input: expand("a{n}.txt", n=range(4))
            output: "b{n}.txt"
            resources: forge_files="strict"
            shell: "ls .. > {output}"
    """)
    (workdir / "outside").mkdir()
    (workdir / "outside" / "in.txt").touch()
    result = run(workdir / "work", "-j2")
    assert result.code == 0, result.output
    assert [result.read(f"b{n}.txt") for n in range(4)] == ["work\n"] * 4
