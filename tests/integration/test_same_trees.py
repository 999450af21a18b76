"""Directories that jobs rename, nest thousands of levels deep, or name with any bytes."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.kernel import tree
from snakemake_executor_plugin_forge.sandbox.renames import MOST_BYTES

from .. import ordinary
from ..conftest import forge, run, wait_until
from ..side_by_side import USERS, Both, Case

pytestmark = [pytest.mark.slow, pytest.mark.security]

LEVELS = 1100  # more than Python's recursion limit, and a path longer than PATH_MAX
_NAMES = r"""[b"-rf", b"a\nb", b"\\", b"'\"", b"\xff\xfe", b"\xed\xb3\xbf", b"x" * 255, b" ", b"\x1b[2J", b"{a}", b"\xc3\xa9"]"""

RENAMED = Case("renamed", """
    rule @_first:
        output: "@/first"
        shell: "mkdir -p @/r/sub/deep @/a/b @/kept; echo 1 > @/r/one; echo 2 > @/r/sub/two; echo 3 > @/r/sub/deep/three;"
               "ln -s one @/r/link; ln @/r/one @/r/hard; echo x > @/a/b/x; chmod 750 @/r/sub; touch -d 2001-02-03 @/r/one; echo > {output}"
    rule @_second:
        input: "@/first"
        output: "@/second", directory("@/result")
        run:
            import os
            os.rename("@/r", "@/old")                        # what an earlier job has made
            with open("@/old/sub/two", "a") as file:
                file.write("more")
            os.unlink("@/old/link")
            os.rename("@/old/sub/deep", "@/old/deeper")      # out of one that was renamed
            os.mkdir("@/r")                                  # again, with other files
            open("@/r/new", "w").close()
            os.rename("@/a/b", "@/moved")
            os.rename("@/moved", "@/again")                  # twice
            os.makedirs("@/fresh/y")
            os.rename("@/again", "@/fresh/y/z")              # to a new directory
            os.rename("@/kept", "@/result")                  # to a declared one
            open(output[0], "w").close()
    rule @_third:
        input: "@/second"
        output: "@/third"
        shell: "mv @/old @/older; git init -q @/repo; cd @/repo; mkdir d; echo > d/f; git add .; git mv d e; git ls-files > ../third; rm -rf .git"
    """, differs=(r"\.snakemake_timestamp",))

NAMES = Case("names", f"""
    rule @_writes:
        output: "@/out"
        run:
            import os
            for name in {_NAMES}:
                os.mkdir(b"@/" + name)
                for inner in {_NAMES}:
                    with open(b"@/" + name + b"/" + inner, "wb") as file:
                        file.write(inner)
                os.symlink(name, b"@/" + name + b"/link")
            open(output[0], "w").close()
    rule @_changes:
        input: "@/out"
        output: "@/changed"
        run:
            import os
            for name in {_NAMES}:
                with open(b"@/" + name + b"/" + name, "ab") as file:
                    file.write(b"more")
                os.unlink(b"@/" + name + b"/link")
                os.unlink(b"@/" + name + b"/\\xff\\xfe")
            os.rename(b"@/\\xff\\xfe/" + b"x" * 255, b"@/\\xfe")
            open(output[0], "w").close()
    """)


@pytest.fixture(scope="module", params=USERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("trees"), [RENAMED, NAMES], user=request.param)


@pytest.mark.parametrize("number", [0, 1], ids=["renamed", "names"])
def test_the_files_are_those_of_local(both: Both, number: int) -> None:
    case = (RENAMED, NAMES)[number]
    both.check(case)
    for words in (["jobs"], ["why"], ["verify"], ["report", "--output", "r.html"], ["audit"], ["gc", "--dry-run"], ["logs", f"{case.name}_first"]):
        done = forge(both.forge.directory, *words)
        assert "Traceback" not in done.stderr, done.stderr


def test_a_rename_that_is_refused_names_the_line_that_allows_it(workdir: Path) -> None:
    """An ordinary user's job cannot rename a large directory, nor root's job one that no job has made; it stays in place."""
    (workdir / "theirs").mkdir()
    (workdir / "theirs" / "file").touch()
    os.truncate(workdir / "theirs" / "file", MOST_BYTES + 1)
    (workdir / "Snakefile").write_text("""
rule all:
    output: "out"
    shell: "python3 -c 'import os; os.rename(\\"theirs\\", \\"mine\\")'; touch {output}"
""")
    before = []
    if os.geteuid() == 0:
        result = run(workdir, "-j1")
        assert result.attempt("all")["outcome"] == "violation" and "theirs/file" in result.attempt("all")["reason"], result.output
        assert (workdir / "theirs" / "file").stat().st_nlink == 1 and not (workdir / "mine").exists()
        subprocess.run(["rm", "-rf", str(workdir / ".snakemake")], check=True)
        ordinary.hand_over(workdir)
        before = ordinary.prefix()
    result = run(workdir, "-j1", before=before)
    assert result.attempt("all")["outcome"] == "failed", result.output
    assert 'forge_files="open"' in result.output and "theirs" in result.attempt("all")["reason"], result.output


def test_a_job_that_renames_the_state_of_forge_gets_nothing_of_it(workdir: Path) -> None:
    """The job's layer lies in that directory, and would be copied into itself."""
    (workdir / "Snakefile").write_text("""
rule all:
    output: "out"
    shell: "python3 -c 'import os; os.rename(\\".snakemake/forge\\", \\"mine\\")'; touch {output}"
""")
    result = run(workdir, "-j1")
    assert result.attempt("all")["outcome"] == ("succeeded" if os.geteuid() == 0 else "failed"), result.output
    assert list(workdir.glob("mine/*/*")) == [] and list(workdir.glob(".snakemake/forge/runs/*/run.json")) != []


DEEP = f"""
import os, sys
for top in sys.argv[1:]:
    os.makedirs(top, exist_ok=True)
    fd = os.open(top, os.O_RDONLY)
    for _ in range({LEVELS}):
        try:
            os.mkdir("dir", dir_fd=fd)
        except FileExistsError:
            pass
        below = os.open("dir", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    end = os.open("end", os.O_CREAT | os.O_WRONLY | os.O_APPEND, dir_fd=fd)
    os.write(end, b"x")
"""

DEEP_WORKFLOW = """
rule all:
    input: "deep.txt", "sibling.txt", "d"
rule deep:
    output: "deep.txt"
    resources: disk_mb=500
    shell: "python3 deep.py left $TMPDIR/x $HOME/forge-test-deep; echo > {output}"
rule declared:
    output: directory("d")
    shell: "rm -rf d; python3 deep.py d"
rule fails:
    output: "never.txt"
    shell: "python3 deep.py left in/vain; exit 3"
rule sibling:
    output: "sibling.txt"
    shell: "sleep 1; echo > {output}"
"""


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    (tmp_path / "Snakefile").write_text(DEEP_WORKFLOW)
    (tmp_path / "deep.py").write_text(DEEP)
    return tmp_path.resolve()


def _ends(root: Path) -> list[int]:
    """The sizes of all files below a directory."""
    return [entry.stat(follow_symlinks=False).st_size for _, entry in tree.scan(str(root)) if not entry.is_dir(follow_symlinks=False)]


@pytest.mark.parametrize("user", USERS)
def test_trees_of_many_levels(deep: Path, user: str) -> None:
    before = ordinary.given_to(user, deep)
    try:
        for number in (1, 2):
            result = run(deep, "-j3", "-k", "--forceall", "--show-failed-logs", "all", "never.txt", before=before)
            outcomes = {a["rule"]: a["outcome"] for a in result.attempts()}
            assert outcomes == {"deep": "succeeded", "declared": "succeeded", "sibling": "succeeded", "fails": "failed"}, result.output
            assert _ends(deep / "left") == [number], "the file has one byte for each run"
            assert len(_ends(deep / "d")) == 2, "the file and Snakemake's time stamp"
            assert not (deep / "in").exists()
            assert "Traceback" not in result.output, result.output
        for words in (["verify"], ["gc", "--compact-after", "1s", "--keep-runs", "0"], ["jobs"]):
            done = forge(deep, *words, before=before)
            assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert not list((deep / ".snakemake/forge").glob("staging/*"))

        def no_home() -> bool:  # the process that holds the home may outlive the run for a moment
            forge(deep, "gc", "--only", "home", "--kept-after", "1s", before=before)
            return not list((deep / ".snakemake/forge").glob("home/*"))

        wait_until(no_home)
    finally:
        for path in deep.iterdir():
            tree.remove_tree(str(path))
