"""Random workflows, and random days in the life of each: runs, edits, deletions and crashes, with ``local`` and with Forge.

A workflow consists of pieces: a rule or a few, of one kind each. A piece has a version, which its files contain, and may be broken.
A day is a list of steps. ``local`` plays it without the crashes; after each step, both directories must be the same.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import textwrap
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import ordinary
from .conftest import Result, command, end_at_once, ending, forge, residue, run
from .side_by_side import tree

# HOME of an ordinary user; and Snakemake's own mark in a directory that was published right before a crash.
DIFFERS = (r"^\.snakemake(/|$)", r"^bench/", r"^\.local(/|$)", r"^\.cache(/|$)", r"(^|/)\.snakemake_timestamp$")
SOURCES = {"data/a.txt": "one\ntwo\n", "data/b.txt": "three\n", "data/deep/c.txt": "four\n"}

# In a piece, @ is its name, IN its inputs, V its version, N a number of parts that depends on the version; a broken piece
# has `exit 1` in the place of FAIL. The last file of each piece is its result, which other pieces may take as input.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "plain": ("""
        rule @:
            input: IN
            output: "@.txt"
            shell: "(echo @ V; cat {input}) | cksum > {output}FAIL"
        """, ("@.txt",)),
    "several": ("""
        rule @:
            input: IN
            output: first="@/deep/first.txt", other="@/other.txt"
            log: "logs/@.log"
            benchmark: "bench/@.tsv"
            threads: 2
            shell: "echo @ V > {log}; cat {input} > {output.first}FAIL; cksum < {output.first} > {output.other}"
        """, ("@/deep/first.txt", "@/other.txt")),
    "parameters": ("""
        rule @:
            input: ancient(IN)
            output: ensure("@.txt", non_empty=True)
            params: version=V, name=lambda wildcards, output: output[0]
            priority: 5
            shell: "(echo {params.version} {params.name}; cat {input}) > {output}FAIL; chmod 750 {output}"
        """, ("@.txt",)),
    "scatter": ("""
        rule @_part:
            input: IN
            output: "@/part{i}.txt"
            shell: "(echo {wildcards.i} V; cat {input}) | cksum > {output}"
        rule @:
            input: expand("@/part{i}.txt", i=range(N))
            output: "@/all.txt"
            shell: "cat {input} > {output}FAIL"
        """, ("@/all.txt",)),
    "temporary": ("""
        rule @_part:
            input: IN
            output: temp("@/part{i}.txt")
            shell: "(echo {wildcards.i} V; cat {input}) | cksum > {output}"
        rule @_tree:
            input: IN
            output: temp(directory("@/tree"))
            shell: "mkdir -p {output}/x; cat {input} > {output}/x/y"
        rule @:
            input: expand("@/part{i}.txt", i=range(N)), "@/tree"
            output: "@/all.txt"
            shell: "cat {input[0]} {input[1]} @/tree/x/y > {output}FAIL"
        """, ("@/all.txt",)),
    "checkpoint": ("""
        checkpoint @_split:
            input: IN
            output: directory("@/parts")
            shell: "mkdir -p {output}; for i in $(seq N); do (echo $i V; cat {input}) | cksum > {output}/$i.txt; done"
        rule @_one:
            input: "@/parts/{i}.txt"
            output: "@/one/{i}.txt"
            shell: "cksum < {input} > {output}"
        def @_found(wildcards):
            found = glob_wildcards(checkpoints.@_split.get().output[0] + "/{i}.txt").i
            return expand("@/one/{i}.txt", i=sorted(found))
        rule @:
            input: @_found
            output: "@/all.txt"
            shell: "cat {input} > {output}FAIL"
        """, ("@/all.txt",)),
    "directory": ("""
        rule @_tree:
            input: IN
            output: directory("@/tree")
            shell: "mkdir -p {output}/a/b; for i in $(seq N); do cat {input} > {output}/a/$i.txt; done; ln -s ../1.txt {output}/a/b/link; "
                "echo V > {output}/.hidden; chmod 700 {output}/a"
        rule @:
            input: "@/tree"
            output: "@/all.txt"
            shell: "(cd {input}; find . ! -name .snakemake_timestamp | sort; cat a/*.txt .hidden a/b/link) > {output}FAIL"
        """, ("@/all.txt",)),
    "flag": ("""
        rule @_flag:
            input: IN
            output: touch("@.done"), "@.log.txt"
            shell: "echo V > @.log.txtFAIL"
        rule @:
            input: "@.done", "@.log.txt"
            output: "@.txt"
            shell: "cat {input} > {output}"
        """, ("@.done", "@.txt")),
    "pipe": ("""
        rule @_write:
            input: IN
            output: pipe("@.pipe")
            shell: "(echo @ V; cat {input}) > {output}"
        rule @:
            input: "@.pipe"
            output: "@.txt"
            shell: "cksum < {input} > {output}FAIL"
        """, ("@.txt",)),
    "group": ("""
        rule @_first:
            input: IN
            output: "@/first.txt"
            group: "@"
            shell: "(echo V; cat {input}) > {output}"
        rule @:
            input: "@/first.txt"
            output: "@/second.txt"
            group: "@"
            shell: "cksum < {input} > {output}FAIL"
        """, ("@/first.txt", "@/second.txt")),
    "shadow": ("""
        rule @:
            input: IN
            output: "@/shadowed.txt"
            shadow: "SHADOW"
            shell: "mkdir -p @ beside.@; echo V > beside.@/x; cat beside.@/x {input} | cksum > {output}FAIL"
        """, ("@/shadowed.txt",)),
    "python": ("""
        rule @:
            input: IN
            output: "@.txt"
            run:
                text = "".join(open(name).read() for name in input)
                with open(output[0], "w") as file:
                    file.write(f"@ V {len(text)} {sum(map(ord, text))}\\\\n")
                if FAILS:
                    raise ValueError("broken")
        """, ("@.txt",)),
    "script": ("""
        rule @:
            input: IN
            output: multiext("@", ".x", ".y")
            params: version=V, fails=FAILS
            script: "scripts/sums.py"
        """, ("@.x", "@.y")),
    "update": ("""
        rule @:
            input: IN
            output: update("@.txt")
            shell: "(echo V; cksum < {input[0]}) >> {output}FAIL"
        """, ("@.txt",)),
    "retried": ("""
        rule @:
            input: IN
            output: "@.txt"
            retries: 2
            resources: tries=lambda wildcards, attempt: attempt, mem_mb=lambda wildcards, attempt: 100 * attempt
            shell: "echo half > {output}; [ {resources.tries} -ge 2 ] || exit 1; (echo V {resources.mem_mb}; cat {input}) > {output}FAIL"
        """, ("@.txt",)),
    "undeclared": ("""
        rule @:
            input: IN
            output: "@/declared.txt"
            shell: "trueFAIL; mkdir -p @/kept; rm -f @/old*; echo V > @/old.V; echo V >> @/kept/count.V; ln -sfn old.V @/newest; cat {input} > {output}"
        """, ("@/declared.txt",)),
    "linked": ("""
        rule @:
            input: IN
            output: "@/file.txt", "@/hard.txt", "@/link.txt"
            shell: "(echo V; cat {input}) > {output[0]}; ln -f {output[0]} {output[1]}; ln -sfn file.txt {output[2]}FAIL"
        """, ("@/file.txt", "@/hard.txt", "@/link.txt")),
    "here": ("""
        localrules: @
        rule @:
            input: IN
            output: "@.txt"
            shell: "(echo V; cat {input}) | rev > {output}FAIL"
        """, ("@.txt",)),
}  # fmt: skip
SHADOWS = ("minimal", "shallow", "full", "copy-minimal")
SCRIPT = """
text = "".join(open(name).read() for name in snakemake.input)
for name in snakemake.output:
    with open(name, "w") as file:
        file.write(f"{name[-1]} {snakemake.params.version} {len(text)}\\n")
if snakemake.params.fails:
    raise SystemExit(3)
"""


@dataclass
class Piece:
    """A rule or a few of one kind."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    shadow: str
    version: int = 1
    broken: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """The files that the piece leaves; the last one is its result."""
        return tuple(output.replace("@", self.name) for output in KINDS[self.kind][1])

    def text(self) -> str:
        """The piece's part of the Snakefile."""
        words = {
            "@": self.name, "IN": ", ".join(repr(name) for name in self.inputs), "V": str(self.version), "N": str(2 + self.version % 3),
            "FAILS": str(self.broken), "FAIL": "; exit 1" if self.broken else "", "SHADOW": self.shadow,
        }  # fmt: skip
        if self.kind == "parameters":
            words["IN"] = repr(list(self.inputs))
        return re.sub(r"@|\b(IN|V|N|FAILS|SHADOW)\b|FAIL(?!S)", lambda found: words[found[0]], textwrap.dedent(KINDS[self.kind][0]))


@dataclass(frozen=True)
class Step:
    """Changes to both directories, then one run of each executor."""

    changes: tuple[tuple[str, str], ...]  # kind of change, and the piece or file
    arguments: tuple[str, ...]
    crash: tuple[str, float] | None = None  # Forge only: who is killed, "snakemake" or "all", and after how many seconds
    resumes: bool = False  # with `snakemake-forge resume`, else with the command again


@dataclass
class Workflow:
    """A random workflow and its day."""

    seed: str
    pieces: list[Piece] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    flags: tuple[str, ...] = ()  # Forge's own
    user: str = "root"

    @classmethod
    def make(cls, seed: str) -> Workflow:
        """Make the workflow of that seed."""
        rng = random.Random(seed)
        made = cls(seed, flags=rng.choice(((), (), ("--forge-files", "strict"), ("--forge-files", "open"), ("--forge-on-disconnect", "finish"))),
                   user=rng.choice(("root", "root", "user")))
        policy = made.flags[-1] if made.flags else ""
        kinds = [kind for kind in KINDS if (policy, kind) != ("strict", "undeclared")]
        files = list(SOURCES)
        for number in range(rng.randint(4, 9)):
            inputs = tuple(rng.sample(files, min(len(files), rng.choice((1, 1, 2, 3)))))
            piece = Piece(f"p{number}", rng.choice(kinds), inputs, rng.choice(SHADOWS))
            made.pieces.append(piece)
            files += piece.outputs[-1:] * 2  # later files are likelier inputs: chains, not only fans
        crashes = rng.random() < 0.8 and policy != "open"  # there, a job that is killed and runs again appends twice
        made.steps.append(Step((), (), _crash(rng) if crashes else None, rng.random() < 0.5))
        for _ in range(rng.randint(2, 4)):
            made.steps.append(_step(rng, made.pieces, crashes=crashes))
        if rng.random() < 0.8:
            made.steps.append(Step((("mend", ""),), ()))
        return made

    def text(self) -> str:
        """The Snakefile."""
        everything = [output for piece in self.pieces for output in piece.outputs]
        head = f"wildcard_constraints: i=r'\\d+'\nrule all:\n    input: {everything!r}\n"
        return head + "\n".join(piece.text() for piece in self.pieces)


def _crash(rng: random.Random) -> tuple[str, float] | None:
    return (rng.choice(("snakemake", "all")), rng.uniform(0.2, 4)) if rng.random() < 0.6 else None


def _step(rng: random.Random, pieces: list[Piece], *, crashes: bool) -> Step:
    changes: list[tuple[str, str]] = []
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        piece = rng.choice(pieces)
        changes.append(rng.choice((
            ("version", piece.name), ("version", piece.name), ("break", piece.name), ("mend", ""), ("remove", rng.choice(piece.outputs)),
            ("edit", rng.choice(list(SOURCES))), ("date", rng.choice(list(SOURCES))), ("date", piece.outputs[-1]), ("mode", piece.outputs[0]),
        )))  # fmt: skip
    crash = _crash(rng) if crashes else None
    arguments: tuple[str, ...] = rng.choice(((), (), ("--rerun-triggers", "mtime"), ("--notemp",)))
    if crash is None:  # what a crash and a resume would run twice
        arguments += rng.choice(((), (), ("--forceall",), ("--forcerun", rng.choice(pieces).name), ("--until", rng.choice(pieces).name),
                                 ("--omit-from", rng.choice(pieces).name)))
    return Step(tuple(changes), arguments, crash, rng.random() < 0.5)


class DifferenceError(AssertionError):
    """Forge did something else than ``local``."""


def play(workflow: Workflow, place: Path) -> None:
    """Play the day with both executors below ``place``. Raise DifferenceError, which names seed, step and directory, when they differ."""
    directories = {executor: (place / executor).resolve() for executor in ("local", "forge")}
    before: list[str] = []
    failed = False
    for directory in directories.values():
        for name, content in {**SOURCES, "scripts/sums.py": SCRIPT}.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(content)
        before = ordinary.given_to(workflow.user, directory, groups=True)
    for number, step in enumerate(workflow.steps):
        for piece in workflow.pieces:
            mended = piece.broken and ("mend", "") in step.changes
            piece.broken = (piece.broken and not mended) or ("break", piece.name) in step.changes
            piece.version += mended or ("version", piece.name) in step.changes  # Forge keeps the version from before it broke
        for directory in directories.values():
            _change(directory, step.changes, workflow)
        # After a failure, Forge has outputs that local lacks; these two would tell them from each other.
        arguments = ("-j4", "-k", *(word for word in step.arguments if not failed or word not in ("--rerun-triggers", "mtime")))
        ancient = failed and any(piece.kind == "parameters" for piece in workflow.pieces)
        local = run(directories["local"], *arguments, executor="local", before=before)
        with_forge = _run_forge(directories["forge"], step, (*workflow.flags, *arguments), before)
        where = f"seed {workflow.seed}, step {number} {step}, {workflow.flags}, {workflow.user}, {place}"
        partial = failed and bool({"--until", "--omit-from"} & {*step.arguments})
        _compare(where, local, with_forge, jobs=step.crash is None and not ancient, files=not partial)
        failed = local.code != 0 or partial
    plans = [sorted(_jobs(run(directory, "-n", executor="local", before=before)).items()) for directory in directories.values()]
    if plans[0] != plans[1] and not failed:
        raise DifferenceError(f"seed {workflow.seed}, {place}: a dry run plans {plans[0]} after local, {plans[1]} after Forge")
    if left := residue(directories["forge"]):
        raise DifferenceError(f"seed {workflow.seed}, {place}: {left} is left")


def _change(directory: Path, changes: tuple[tuple[str, str], ...], workflow: Workflow) -> None:
    """Write the Snakefile, and change files that are there."""
    (directory / "Snakefile").write_text(workflow.text())
    for kind, name in changes:
        path = directory / name
        if kind not in ("version", "break", "mend") and path.is_file():
            if kind == "remove":
                path.unlink()
            elif kind == "edit":
                with path.open("a") as file:
                    file.write("more\n")
            elif kind == "date":
                os.utime(path)
            elif kind == "mode":
                path.chmod(path.stat().st_mode ^ 0o010)


def _run_forge(directory: Path, step: Step, arguments: tuple[str, ...], before: list[str]) -> Result:
    """Run one step with Forge; after its crash, resume or repeat the command."""
    if step.crash is None:
        return run(directory, *arguments, before=before)
    who, seconds = step.crash
    known = _runs(directory)
    with subprocess.Popen([*before, *command("forge", *arguments)], cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          stdin=subprocess.DEVNULL) as snakemake, ending(snakemake):  # fmt: skip
        with suppress(subprocess.TimeoutExpired):
            snakemake.wait(seconds)
        if who == "all":
            end_at_once(snakemake)
    if step.resumes and _runs(directory) != known:  # Forge had begun; else resume would repeat an earlier command
        done = forge(directory, "resume", before=before)
        return Result(done.returncode, done.stdout + done.stderr, directory)
    run(directory, "--unlock", executor="local", before=before)
    return run(directory, *arguments, "--rerun-incomplete", before=before)


def _runs(directory: Path) -> set[str]:
    return {path.parent.name for path in directory.glob(".snakemake/forge/runs/*/run.json")}


def _compare(where: str, local: Result, forge: Result, *, jobs: bool, files: bool) -> None:
    outputs = f"\n--- local\n{local.output[-6000:]}\n--- forge\n{forge.output[-9000:]}"
    if local.code != forge.code:
        raise DifferenceError(f"{where}: exit code {local.code} with local, {forge.code} with Forge{outputs}")
    if jobs and _jobs(local) != _jobs(forge):
        raise DifferenceError(f"{where}: jobs of local {_jobs(local)}, of Forge {_jobs(forge)}{outputs}")
    if local.code == 0 and files:  # a job that fails loses its outputs with local, and keeps the previous ones with Forge
        expected, found = tree(local.directory, DIFFERS), tree(forge.directory, DIFFERS)
        differing = [f"{name}: {expected.get(name)} with local, {found.get(name)} with Forge"
                     for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
        if differing:
            raise DifferenceError(f"{where}:\n" + "\n".join(differing[:20]) + outputs)


def _jobs(result: Result) -> Counter[str]:
    """The jobs that Snakemake started, or would start, by rule."""
    return Counter(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", result.output, re.MULTILINE))
