"""Runs the same workflow with ``local`` and with ``forge`` and compares the files, name by name and byte by byte.

A module has a list of cases and makes one comparison of all of them for each user: two starts of Snakemake for each
version of the workflow, however many cases there are::

    CASES = [Case("chunks", '''
        rule @:
            output: "@/done.txt"
            shell: "rm -f @/chunk*; for i in {config[chunks]}; do echo $i > @/chunk$i; done; touch {output}"
        ''')]

    @pytest.fixture(scope="module", params=USERS)
    def both(request, tmp_path_factory):
        return Both.run(tmp_path_factory.mktemp("files"), CASES, user=request.param, versions=("chunks=1 2 3", "chunks=1"))

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    def test_the_files_are_those_of_local(both, case):
        both.check(case)
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ordinary
from .conftest import Result, run

# The guest has a phase for its ordinary user.
USERS = ["user"] if os.geteuid() != 0 else ["root"] if "FORGE_GUEST" in os.environ else ["root", "user"]

Tree = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Case:
    """A case's rules. In their text ``@`` is the case's name, which names its rules and the directory of all its files."""

    name: str
    rules: str
    before: Mapping[str, str] = field(default_factory=dict)  # files below the case's directory, before the first run
    outcome: str = "succeeded"  # of the last attempt of each rule, with Forge
    says: tuple[str, ...] = ()  # texts in the reason or the notes of its attempts
    differs: tuple[str, ...] = ()  # regular expressions: names below the directory that are not compared
    check: Callable[[Result, list[dict[str, Any]]], object] | None = None  # with Forge; gets the case's attempts, too

    def text(self) -> str:
        """The case's part of the Snakefile."""
        return textwrap.dedent(self.rules).replace("@", self.name)


@dataclass(frozen=True)
class Both:
    """The results of both executors after the last version."""

    local: Result
    forge: Result
    codes: tuple[tuple[int, int], ...]  # exit codes of both, for each version
    again: tuple[list[str], list[str]]  # rules that another run would execute, once for each job
    first_errors: str = ""  # output of local's runs that failed

    @classmethod
    def run(cls, place: Path, cases: Sequence[Case], *, user: str = "root", versions: Sequence[str] = ("version=1",),
            arguments: Sequence[str] = (), for_local: Sequence[str] = (), head: str = "", first_local: bool = False,
            prepare: Callable[[Path], object] | None = None, share: Callable[[Path], object] | None = None, beside: Both | None = None) -> Both:
        """Run a workflow of all cases with both executors.

        Args:
            place: gets a directory for each executor.
            versions: values of ``config`` (``--config WORDS``) of one run after the other, each with ``--forceall``.
            arguments: more arguments of Snakemake.
            for_local: more arguments for ``local`` only: ``--force-use-threads`` saves it a Snakemake for each ``run:`` block.
            head: the Snakefile's text before the rules.
            first_local: whether ``local`` runs the first version in both directories.
            beside: a comparison of the same cases and versions; its result of ``local`` is used again.
            prepare: called as root with each directory before the first run and before the user owns it.
            share: called as root with each directory once the user owns it.

        """
        text = textwrap.dedent(head) + "\n".join(case.text() for case in cases)
        targets = [name for name in re.findall(r"^rule (\w+):", text, re.MULTILINE) if not _has_wildcards(text, name)]
        results: dict[str, Result] = {}
        codes: dict[str, list[int]] = {}
        again: dict[str, list[str]] = {}
        errors = ""
        if beside is not None:
            results["local"], codes["local"], again["local"] = beside.local, [local for local, _ in beside.codes], beside.again[0]
            errors = beside.first_errors
        for executor in ("local", "forge") if beside is None else ("forge",):
            directory = (place / executor).resolve()
            for case in cases:
                (directory / case.name).mkdir(parents=True)
                for name, content in case.before.items():
                    path = directory / case.name / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content)
            (directory / "Snakefile").write_text(text)
            if prepare is not None:
                prepare(directory)
            before = ordinary.given_to(user, directory, groups=True)
            if share is not None:
                share(directory)
            codes[executor] = []
            for number, version in enumerate(versions):
                chosen = "local" if first_local and number == 0 else executor
                result = run(directory, "-j8", "-k", "--forceall", *arguments, *(for_local if chosen == "local" else ()), "--config", *_words(version), "--", *targets,
                             executor=chosen, before=before)
                codes[executor].append(result.code)
                errors += f"{executor}, {version}:\n{result.output[-6000:]}\n" if result.code and executor == "local" else ""
            results[executor] = result
            planned = run(directory, "-n", *arguments, "--config", *_words(versions[-1]), "--", *targets, executor="local", before=before)
            again[executor] = sorted(re.findall(r"^(?:local)?rule (\w+):", planned.output, re.MULTILINE))
        both = tuple(zip(codes["local"], codes["forge"], strict=True))
        return cls(results["local"], results["forge"], both, (again["local"], again["forge"]), errors)

    def check(self, case: Case) -> None:
        """The case's files are the same, and its attempts have the expected outcome."""
        rules = set(re.findall(r"^rule (\w+):", case.text(), re.MULTILINE))
        attempts = [a for a in self.forge.attempts() if a["rule"] in rules]
        assert attempts, self.forge.output
        latest = {(a["rule"], str(a["wildcards"])): a for a in attempts}
        outcomes = {a["outcome"] for a in latest.values()}
        said = "\n".join(str(a["reason"]) + "\n" + "\n".join(a["notes"]) for a in attempts)
        if self.codes[-1][0] != 0:
            said += f"\n--- local\n{self.local.output}"
        assert outcomes == {case.outcome}, said
        assert [word for word in case.says if word not in said] == [], said
        if case.outcome == "succeeded":
            expected, found = tree(self.local.directory / case.name, case.differs), tree(self.forge.directory / case.name, case.differs)
            assert found == expected, f"{said}\n{self.first_errors}"
            local, forge = ([rule for rule in planned if rule in rules] for planned in self.again)
            assert forge == local, "local and forge decide differently what to run again"
        if case.check is not None:
            assert case.check(self.forge, attempts) is not False


def tree(directory: Path, differs: Sequence[str] = ()) -> Tree:
    """Every name below a directory, with kind, mode, group, access control lists, and content or target."""
    found: Tree = {}
    for parent, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(parent, name)
            relative = str(path.relative_to(directory))
            if not any(re.search(pattern, relative) for pattern in differs):
                found[relative] = _entry(path)
    return found


def _entry(path: Path) -> tuple[str, ...]:
    status = path.lstat()
    mode, group = f"{stat.S_IMODE(status.st_mode):04o}{_lists(path)}", str(status.st_gid)
    if stat.S_ISLNK(status.st_mode):
        return "link", os.readlink(path)
    if stat.S_ISDIR(status.st_mode):
        return "directory", mode, group
    if stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
        return "file", mode, group, content[:2000].decode("utf-8", "backslashreplace"), hashlib.sha256(content).hexdigest()
    return stat.filemode(status.st_mode)[0], mode, group


def _lists(path: Path) -> str:
    """The access control lists of a file, as the kernel stores them: acl(5)."""
    found = ""
    for name in ("access", "default"):
        with suppress(OSError):
            found += f" {name} {os.getxattr(path, f'system.posix_acl_{name}', follow_symlinks=False).hex()}"
    return found


def _has_wildcards(text: str, name: str) -> bool:
    body = re.split(r"^rule ", text.split(f"rule {name}:", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    output = re.search(r"output:(.*?)(?:\n    \w+:|\Z)", body, re.DOTALL)
    return output is not None and "{" in output[1]


def _words(version: str) -> list[str]:
    """Split ``a=1 2 b=3`` into the words ``a=1 2`` and ``b=3``."""
    return re.findall(r"\w+=.*?(?=\s+\w+=|$)", version)
