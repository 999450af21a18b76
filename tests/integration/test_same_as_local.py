"""Files that a rule writes, changes and deletes beside its outputs: Forge leaves the same files as ``local``."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ..conftest import Result
from ..side_by_side import USERS, Both, Case

pytestmark = pytest.mark.slow  # runs each case with local, too


def _same_inode(name: str) -> Any:
    """The last run has kept the file itself: NAME.was has its earlier inode and time."""

    def check(result: Result, attempts: list[dict[str, Any]]) -> None:
        status = (result.directory / name).stat()
        assert (result.directory / f"{name}.was").read_text().split() == [str(status.st_ino), str(int(status.st_mtime))]

    return check


def _untouched(name: str, files: dict[str, str]) -> Any:
    """The case's directory has exactly these files, unchanged."""

    def check(result: Result, attempts: list[dict[str, Any]]) -> None:
        root = result.directory / name
        assert {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()} == files

    return check


def _repositories(directory: Path) -> None:
    """Make the user's git repositories, with an index older than the files' times."""
    for name in ("pulled", "described"):
        root = directory / name / "repo"
        root.mkdir()
        git = ["git", "-c", "user.email=a@b", "-c", "user.name=a", "-C", str(root)]
        subprocess.run([*git, "init", "-q"], check=True)
        for version in ("1", "2"):
            (root / "file").write_text(version)
            subprocess.run([*git, "add", "-A"], check=True)
            subprocess.run([*git, "commit", "-q", "-m", version, "--date=2001-01-01T00:00:00Z"], check=True,
                           env={**os.environ, "GIT_COMMITTER_DATE": "2001-01-01T00:00:00Z"})  # fmt: skip
        os.utime(root / "file", (1, 1))


CASES = [
    Case("side", """
        rule @:
            input: expand("@/{s}.txt", s=list("abcd"))
            output: "@/all.txt"
            shell: "cat {input} > {output}"
        rule @_one:
            output: "@/{s}.txt"
            shell: "mkdir -p @/side/deep; echo {wildcards.s} > @/side/{wildcards.s}.idx; sleep 0.3; "
                   "echo {wildcards.s} > @/side/deep/{wildcards.s}; echo {wildcards.s} > {output}"
        """),
    Case("chunks", """
        rule @:
            output: "@/done.txt"
            shell: "mkdir -p @/parts; rm -f @/parts/chunk*; for i in {config[chunks]}; do echo $i v{config[vv]} > @/parts/chunk$i; done; "
                   "cat @/parts/chunk* > {output}"
        """),
    Case("again", """
        rule @:
            output: "@/done.txt"
            shell: "rm -rf @/work; mkdir -p @/work/sub; for i in {config[chunks]}; do echo $i v{config[vv]} > @/work/sub/$i; "
                   "ln -s $i @/work/sub/link$i; done; cat @/work/sub/* > {output}"
        """),
    Case("links", """
        rule @:
            output: "@/done.txt"
            shell: "mkdir -p @/v{config[vv]}; ln -sfn v{config[vv]} @/latest; readlink @/latest > {output}"
        """),
    Case("sidecar", """
        rule @:
            output: "@/out.bam"
            shell: "echo v{config[vv]} > {output}; sleep 0.1; echo index v{config[vv]} > {output}.csi"
        """),
    Case("modes", """
        rule @:
            output: "@/done.txt"
            shell: "mkdir -p @/d; echo same > @/d/x; chmod 60{config[vv]} @/d/x; chmod 75{config[vv]} @/d; touch {output}"
        """),
    Case("renamed", """
        rule @:
            output: "@/done.txt"
            shell: "if [ -e @/new ]; then mv @/new @/newer; rm -f @/gone; mv @/dir @/moved; "
                   "else echo x > @/new; echo y > @/gone; mkdir @/dir; echo z > @/dir/z; fi; touch {output}"
        """),
    Case("readonly", """
        rule @:
            output: "@/done.txt"
            shell: "[ ! -e @/d ] || chmod -R u+w @/d @/e; mkdir -p @/d/sub; rm -rf @/d/x @/e; echo v{config[vv]} > @/d/x; "
                   "cp -r @/d @/e; touch @/e/v{config[vv]}; chmod 444 @/d/x; chmod 555 @/d/sub @/d @/e/sub @/e; touch {output}"
        """),
    Case("moved", """
        rule @:
            output: "@/done.txt"
            shell: "rm -rf @/old; [ ! -e @/work ] || mv @/work @/old; mkdir @/work; echo v{config[vv]} > @/work/x; "
                   "rm -f @/hard; ln @/work/x @/hard; touch {output}"
        """),
    Case("emptied", """
        rule @:
            output: "@/done.txt"
            shell: "if [ -e @/d ]; then rm -rf @/d/*; [ ! -e @/e ] || rmdir @/e; else mkdir -p @/d/sub @/e; touch @/d/x @/d/sub/y; fi; touch {output}"
        """),
    Case("kinds", """
        rule @:
            output: "@/done.txt"
            shell: "rm -rf @/a @/b; if [ {config[vv]} = 1 ]; then mkdir @/a; echo x > @/a/x; echo b > @/b; "
                   "else echo a > @/a; mkdir @/b; echo y > @/b/y; fi; touch {output}"
        """),
    Case("equal", """
        rule @:
            input: expand("@/{s}.txt", s=list("ab"))
            output: "@/all.txt"
            shell: "touch {output}"
        rule @_one:
            output: "@/{s}.txt"
            shell: "stat -c '%i %Y' @/ref.fai > @/ref.fai.was 2> /dev/null || true; rm -f @/ref.fai; echo index > @/ref.fai; "
                   "rm -f @/given.fai; echo given > @/given.fai; touch {output}"
        """, before={"given.fai": "given\n"}, differs=(r"\.was$",), check=_same_inode("equal/ref.fai")),
    Case("fifo", """
        rule @:
            output: "@/done.txt"
            shell: "mkdir -p @/d; rm -f @/d/pipe; mkfifo @/d/pipe; echo v{config[vv]} > @/d/x; mkfifo @/loose; touch {output}; rm @/loose"
        """, differs=("pipe",), says=("fifo/d/pipe (a FIFO) cannot be kept",)),
    Case("plots", """
        rule @:
            input: expand("@/{s}.txt", s=list("abc")), "@/other.txt"
            output: "@/all.txt"
            shell: "cat {input} > {output}"
        rule @_one:
            output: "@/{s}.txt"
            shell: "echo a plot of {wildcards.s} > @/Rplots.pdf; touch {output}"
        rule @_other:
            output: "@/other.txt"
            shell: "echo a plot of v{config[vv]} > @/Rplots.pdf; touch {output}"
        ruleorder: @_other > @_one
        """, differs=("Rplots.pdf",), check=lambda result, _: (result.directory / "plots/Rplots.pdf").read_text().startswith("a plot")),
    Case("deletes", """
        rule @:
            input: "@/made.txt"
            output: "@/done.txt"
            shell: "cp @/helper @/copy; rm @/helper; rm -f @/copy2; touch {output}"
        rule @_make:
            output: "@/made.txt"
            shell: "echo v{config[vv]} > @/helper; echo x > @/copy2; touch {output}"
        """),
    Case("appends", """
        rule @:
            input: expand("@/{s}.txt", s=list("abcdef"))
            output: "@/all.txt"
            shell: "sort @/order.out > {output}; wc -c < @/new/order.out >> {output}"
        rule @_one:
            output: "@/{s}.txt"
            shell: "for i in 1 2 3; do echo same >> @/order.out; sleep 0.1; echo {wildcards.s} v{config[vv]} >> @/order.out; done; "
                   "mkdir -p @/new; seq 3000 | sed s/.*/line/ >> @/new/order.out; touch {output}"
        """, differs=("order.out",)),
    Case("closed", """
        rule @:
            output: "@/done.txt"
            shell: "mkdir -p @/d{config[vv]}/sub; echo x > @/d{config[vv]}/x; mkfifo @/d{config[vv]}/pipe; chmod 000 @/d{config[vv]}/x; "
                   "chmod 100 @/d{config[vv]}/sub; chmod 555 @/d{config[vv]}; touch {output}"
        """, differs=("pipe",)),
    Case("extracted", """
        rule @:
            output: "@/done.txt"
            shell: "rm -rf @/s @/a @/copy; mkdir -p @/s/a; echo v{config[vv]} > @/s/a/x; touch -d 2001-01-01 @/s/a/x @/s/a; "
                   "tar cf - -C @/s a | tar xf - -C @; cp -p @/a/x @/copy; echo v{config[vv]} > @/a/x; touch -d 2002-02-02 @/a/x {output}"
        """),
    Case("cleaned", """
        rule @:
            input: "@/x/made.txt"
            output: "@/done.txt"
            shell: "rm -rf @/x2; touch {output}"
        rule @_make:
            output: "@/x/made.txt"
            log: "@/logs/make.log"
            benchmark: "@/bench/make.tsv"
            shell: "mkdir -p @/x2; echo v | tee {output} @/x2/side > {log}"
        """, differs=(r"\.tsv$",)),
    Case("names", r"""
        rule @:
            output: "@/blank é.txt"
            shell:
                r'''
                cd @; rm -f "x "*; echo v > "x {config[vv]}"; echo > $'new\nline{config[vv]}'; mkdir -p "d d/é日本"; echo > '{{b}}*?[x]'
                echo v{config[vv]} >> "d d/é日本/q'uote"; echo > ./-rf; ln -sfn user.1:{config[vv]} .#lock; touch "blank é.txt"
                '''
        """),
    Case("mirrored", """
        rule @:
            output: "@/done.txt"
            shell: "rm -rf @/src @/snap @/old{config[vv]}; mkdir -p @/src/d{config[vv]} @/cur; echo same > @/src/same; echo v{config[vv]} > @/src/x; "
                   "ln -s ../x @/src/d{config[vv]}/link; cp -alf @/src/. @/cur; rm -f @/cur/x; echo {config[vv]} > @/cur/x; [ ! -e @/dst ] || mv @/dst @/old{config[vv]}; "
                   "cp -a @/src @/dst; cp -al @/cur @/snap; truncate -s 1M @/hole; sed -i s/v/w/ @/dst/x; touch {output}"
        """),
    Case("git", """
        rule @:
            input: "@/up.txt"
            output: "@/done.txt"
            shell: "if [ ! -e @/repo ]; then git clone -q @/up @/repo; else git -C @/repo pull -q; fi; ls @/repo > {output}; "
                   "git -C @/repo describe --always > /dev/null"
        rule @_up:
            output: "@/up.txt"
            shell: "export GIT_AUTHOR_DATE='2001-01-01 00:00Z' GIT_COMMITTER_DATE='2001-01-01 00:00Z'; "
                   "git init -q @/up; cd @/up; git config user.email a@b; git config user.name a; mkdir -p d; "
                   "rm -f old*; echo v{config[vv]} > old{config[vv]}; echo v{config[vv]} > d/x; git add -A; "
                   "git commit -q -m v{config[vv]}; touch ../up.txt"
        """, differs=(r"\.git/(index|logs|config|FETCH_HEAD|ORIG_HEAD)", r"\.git$", r"repo/\.git/objects/../")),
]  # fmt: skip
NOBODYS = [
    Case("raw", """
        rule @:
            output: "@/done.txt"
            shell: "echo more >> @/raw.txt; touch @/new.txt {output}"
        """, before={"raw.txt": "raw\n"}, outcome="violation", says=("changed raw/raw.txt", 'output: update("raw/raw.txt")'),
         check=_untouched("raw", {"raw.txt": "raw\n"})),
    Case("clean", """
        rule @:
            output: "@/done.txt"
            shell: "rm -rf @/data/*; mkdir @/new; touch @/new/x {output}"
        """, before={"data/a": "a\n", "data/deep/b": "b\n"}, outcome="violation",
         says=("deleted clean/data/a, clean/data/deep/b", "rule clean is to do that", 'resources: forge_undeclared="allow"'),
         check=_untouched("clean", {"data/a": "a\n", "data/deep/b": "b\n"})),
    Case("allowed", """
        rule @:
            output: "@/done.txt"
            resources: forge_undeclared="allow"
            shell: "echo more >> @/raw.txt; rm -rf @/data/*; rm -r @/gone; echo file > @/gone; touch @/new.txt {output}"
        """, before={"raw.txt": "raw\n", "data/a": "a\n", "data/deep/b": "b\n", "gone/x": "x\n"}),
    Case("dropped", """
        rule @:
            output: "@/done.txt"
            resources: forge_undeclared="discard"
            shell: "echo more >> @/raw.txt; rm -rf @/data/*; touch @/new.txt {output}"
        """, before={"raw.txt": "raw\n", "data/a": "a\n"}, differs=(".",),
         says=("dropped/new.txt", "changed or deleted dropped/data/a, dropped/raw.txt"),
         check=_untouched("dropped", {"raw.txt": "raw\n", "data/a": "a\n", "done.txt": ""})),
    Case("pulled", """
        rule @:
            output: "@/done.txt"
            shell: "git -C @/repo describe --always --dirty > {output}; git -C @/repo checkout -q HEAD~1"
        """, outcome="violation", says=("pulled/repo/.git/HEAD", "nothing was published")),
    Case("described", """
        rule @:
            output: "@/done.txt"
            shell: "git -C @/repo describe --always --dirty > {output}; git -C @/repo status -s > /dev/null"
        """, differs=(r"\.git/index",), check=lambda _, attempts: attempts[-1]["notes"] == []),
]  # fmt: skip
VERSIONS = ("vv=1 chunks=1 2 3", "vv=2 chunks=1 2", "vv=3 chunks=2 3")


@pytest.fixture(scope="module", params=USERS)
def user(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(user: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both.run(tmp_path_factory.mktemp("same"), CASES, user=user, versions=VERSIONS)


@pytest.fixture(scope="module")
def after_local(user: str, both: Both, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The cases with existing files of the local executor."""
    return Both.run(tmp_path_factory.mktemp("local"), CASES, user=user, versions=VERSIONS, first_local=True, beside=both)


@pytest.fixture(scope="module")
def nobodys(user: str, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The cases with existing files that no job has made."""
    return Both.run(tmp_path_factory.mktemp("nobodys"), NOBODYS, user=user, prepare=_repositories)


@pytest.mark.parametrize("case", NOBODYS, ids=lambda case: case.name)
def test_other_files_are_changed_with_permission_only(nobodys: Both, case: Case) -> None:
    nobodys.check(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_files_are_those_of_local(both: Both, case: Case) -> None:
    both.check(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_files_of_the_local_executor_are_the_workflows_own(after_local: Both, case: Case) -> None:
    after_local.check(case)
