"""Crashes in a row: a small workflow starts, a fault kills a process, the run is resumed, the next fault kills, … until it ends.

After each crash the test notes which jobs had published their outputs; none of them may ever start again. At the end
the outputs must equal those of an undisturbed run, to the byte.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from snakemake_executor_plugin_forge.staging import journal

from . import killer
from .conftest import DEADLINE, FORGE, command, ending, residue, wait_until, write_workflow

PARTS = ("a", "b", "c", "d")

# Every job logs its start outside the working directory, and writes each output in two steps.
WORKFLOW = """
SIDE = config["side"]
def parts(wildcards):
    found = sorted(glob_wildcards(checkpoints.split.get().output[0] + "/{p}.txt").p)
    return expand("python/{p}.txt", p=found) + expand("single/{p}.txt", p=found)
rule all:
    input: "total.txt"
checkpoint split:
    output: directory("parts")
    shell: "echo split >> {SIDE}/log; mkdir {output}; for p in a b c d; do echo part $p > {output}/$p.txt; done"
rule pair:
    input: "parts/{p}.txt"
    output: "pair/{p}.x", "pair/{p}.y"
    shell: "echo pair {wildcards.p} >> {SIDE}/log; for o in {output}; do printf half > $o; cat {input} >> $o; done; "
        "mkdir -p begun-{wildcards.p}/deep; echo {wildcards.p} > begun-{wildcards.p}/deep/x"
rule python:
    input: "pair/{p}.x"
    output: "python/{p}.txt", "python/{p}.json"
    run:
        with open(f"{SIDE}/log", "a") as log:
            log.write(f"python {wildcards.p}\\n")
        text = open(input[0]).read()
        for name in output:
            with open(name, "w") as file:
                file.write("half")
                file.flush()
                file.write(f" of {text}")
rule single:
    input: "pair/{p}.y"
    output: "single/{p}.txt"
    shell: "echo single {wildcards.p} >> {SIDE}/log; printf half > {output}; tr a-z A-Z < {input} >> {output}; mkdir -p notes; "
        "echo {wildcards.p} > notes/{wildcards.p}.txt; ln -sf {wildcards.p}.txt notes/{wildcards.p}.link; "
        "mv -T begun-{wildcards.p} ended-{wildcards.p}"
rule total:
    input: parts
    output: "total.txt", "index.txt"
    shell: "echo total >> {SIDE}/log; cat {input} > {output[0]}; printf '%s\\n' {input} > {output[1]}"
"""

OUTPUTS: dict[str, tuple[str, ...]] = {
    "split": ("parts",),
    **{f"pair {p}": (f"pair/{p}.x", f"pair/{p}.y") for p in PARTS},
    **{f"python {p}": (f"python/{p}.txt", f"python/{p}.json") for p in PARTS},
    **{f"single {p}": (f"single/{p}.txt",) for p in PARTS},
    "total": ("total.txt", "index.txt"),
}
"""Job, by the line that it logs, to its outputs."""

STEPS = (
    "created", "prepared", "started", "described", "exited", "all dead", "looked through", "synced", "journal",
    "renamed", "all renamed", "published", "ended", "verdict", "written", "reported", "cleared up",
)  # fmt: skip
"""The steps of a supervisor in order: see ``reached`` in supervisor/, staging/ and record/."""


@dataclass(frozen=True)
class Scenario:
    """Crashes one after the other, one for each start; ``time:…`` is a crash at a random time."""

    faults: tuple[str, ...]
    rule: str  # a job of this rule must still be unpublished; "": any


def finishing_scenarios(rng: random.Random, at_random_times: int) -> list[Scenario]:
    """The scenarios of ``--forge-on-disconnect finish``, shuffled."""
    steps = ("announced", "started", "described", "exited", "looked through", "renamed", "verdict", "reported")
    found: list[tuple[str, ...]] = [
        (f"{who}:{step}:{rule}",)
        for step in steps
        for rule, who in (("pair", "snakemake"), ("pair", "nursery"), ("pair", "launcher"), ("pair", "all"),
                          ("python", "snakemake"), ("python", "nursery"), ("single", "supervisor"))
        if (step, rule) != ("renamed", "single")
    ]  # fmt: skip
    # The supervisor is killed after Snakemake; the adopting run is killed as well.
    alone = ("alone", "exited", "looked through", "synced", "staged", "ended", "verdict", "written", "cleared up")
    found += [(f"snakemake:started:pair,supervisor:{step}:pair",) for step in alone]
    adopting = ("adopting", "journal", "renamed", "all renamed", "adopted", "adoption noted", "adoption cleared")
    found += [("snakemake:started:pair", f"self:{step}") for step in adopting]
    made = [Scenario(faults, faults[0].split(",")[0].split(":")[2]) for faults in found]
    made += [
        Scenario((f"time:{rng.choice(('snakemake', 'all'))}:{rng.uniform(0.2, 2.0):.3f}",), "")
        for _ in range(at_random_times)
    ]
    rng.shuffle(made)
    return made


def scenarios(rng: random.Random, at_random_times: int) -> list[Scenario]:
    """The whole matrix, shuffled."""
    everybody = ("snakemake", "nursery", "launcher", "supervisor", "all")
    found: list[tuple[str, ...]] = [(f"{who}:{step}:pair",) for step in STEPS for who in everybody]
    # A job with Python in it descends from the nursery; there may be no launcher.
    found += [(f"{who}:{step}:python",) for step in STEPS for who in everybody if who != "launcher"]
    found += [(f"{who}:{step}:single",) for step in STEPS if step != "journal" for who in ("supervisor", "all")]
    # Forge merges undeclared files, and notes those it cannot mark; tests/property/test_publish.py has "renewed".
    found += [(f"{who}:{step}:single",) for step in ("merging", "noted") for who in ("supervisor", "all")]
    found += [(f"{who}:{step}:split",) for step in ("described", "renamed", "written") for who in ("snakemake", "all")]
    # Steps of Snakemake's own process, and of the nursery before there are jobs.
    found += [(f"{who}:{step}:pair",) for step in ("submitted", "arrived", "told") for who in ("snakemake", "all")]
    found += [(f"{who}:{step}",) for step in ("recovered", "run written", "probing", "probed") for who in ("snakemake", "all")]
    found += [("nursery:probed",), ("nursery:probing",), ("nursery:run written",), ("snakemake:closing",), ("snakemake:closed",)]
    # Recovery is killed as well; so is the supervisor that clears up after another one.
    found += [
        ("all:journal:pair", f"self:{step}")
        for step in ("followed", "all followed", "layer removed", "journals followed", "locks removed", "before the command")
    ]
    found += [(f"supervisor:{step}:pair,{who}:followed",) for step in ("journal",) for who in ("supervisor", "all")]
    made = [Scenario(faults, [*faults[0].split(",")[0].split(":"), ""][2]) for faults in found]
    made += [
        Scenario((f"time:{rng.choice(everybody)}:{rng.uniform(0.2, 2.0):.3f}",), "") for _ in range(at_random_times)
    ]
    rng.shuffle(made)
    return made


def sample(everything: list[Scenario], at_random_times: int) -> list[Scenario]:
    """The first scenario for each named step, also of recovery and adoption, and a few at random times."""
    found: list[Scenario] = []
    seen: set[str] = set()
    for scenario in everything:
        faults = [one for fault in scenario.faults for one in fault.split(",") if not one.startswith("time:")]
        steps = {one if one.startswith("self:") else one.split(":")[1] for one in faults}
        if not steps:
            at_random_times -= 1
        if steps - seen or (not steps and at_random_times >= 0):
            found.append(scenario)
        seen |= steps
    return found


@dataclass
class Lane:
    """A sequence of working directories that plays all scenarios given to it."""

    root: Path
    reference: dict[str, bytes]
    scenarios: list[Scenario]
    rng: random.Random
    detachable: bool = False  # --forge-on-disconnect finish
    rounds: int = 0
    starts: int = 0
    episodes: int = 0
    done: Counter[str] = field(default_factory=Counter)  # jobs that must not start again, and their number of starts
    going_on: Counter[str] = field(default_factory=Counter)  # the same for jobs that ran when only Snakemake was killed
    before: Counter[str] = field(default_factory=Counter)  # starts of jobs before the present start
    workdir: Path = Path()
    failures: list[str] = field(default_factory=list)

    def play(self) -> None:
        """Play all scenarios. A scenario that fails is added to ``failures``, and the next one gets a fresh directory."""
        self.begin()
        for scenario in self.scenarios:
            try:
                if scenario.rule and not self.left(scenario.rule):
                    self.finish()
                    self.begin()
                self.try_scenario(scenario)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                self.failures.append(f"{' then '.join(scenario.faults)}, {self.workdir}: {error}")
                self.begin()
        self.finish()

    def try_scenario(self, scenario: Scenario) -> None:
        """Play the crashes in order; in a fresh directory if the first did not happen in a used one."""
        for fault in scenario.faults:
            fresh = not self.recorded()
            if fault.startswith(("self:", "time:")) and fresh:
                assert self.crash("snakemake:described:split")
            if not self.crash(fault):
                if self.detachable and fault.startswith("self:"):
                    return  # the job ended before Snakemake died: it has published, and no run adopts it
                assert not fresh and fault is scenario.faults[0], f"{fault} never happened: {self.tail()}"
                self.finish()
                self.begin()
                if fault.startswith("time:"):
                    return  # the run ended before
                assert self.crash(fault), f"{fault} never happened, in a fresh directory: {self.tail()}"

    # -- steps -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Prepare a fresh directory."""
        self.episodes += 1
        self.workdir = self.root / f"{self.episodes}" / "work"
        prepare(self.workdir)
        self.done = Counter()
        self.going_on = Counter()

    def crash(self, fault: str) -> bool:
        """Start or resume with that fault; return whether it happened."""
        before = len(self.fired())
        self.before = self.counts()
        process = self.start(fault)
        with ending(process):
            if fault.startswith("time:"):
                happened = self.kill_at_random_time(process, fault)
                process.wait(DEADLINE)
            else:
                process.wait(DEADLINE)
                happened = len(self.fired()) > before
        if happened:
            self.rounds += 1
            self.note(fault)
        return happened

    def start(self, fault: str | None) -> subprocess.Popen[bytes]:
        """Start Snakemake in a fresh directory, else ``snakemake-forge resume``."""
        self.starts += 1
        words = [*FORGE, "resume"] if self.recorded() else self.first_command()
        environment = dict(os.environ)
        if fault is not None and not fault.startswith("time:"):
            environment |= killer.environment(fault, self.side / "fired")
        with (self.side / "output").open("ab") as output:
            output.write(f"\n===== {fault}\n".encode())
            output.flush()
            return subprocess.Popen(
                words, cwd=self.workdir, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def first_command(self) -> list[str]:
        """The command in a fresh directory; resume repeats it."""
        flags = ("--forge-on-disconnect", "finish") if self.detachable else ()
        return command("forge", "-j3", *flags, "--config", f"side={self.side}")

    def kill_at_random_time(self, process: subprocess.Popen[bytes], fault: str) -> bool:
        """Kill after the delay; return whether the run was alive."""
        _, who, delay = fault.split(":")
        with suppress(subprocess.TimeoutExpired):
            process.wait(float(delay))
            return False
        names = killer.NAMES
        ours = [(pid, comm) for pid, comm in processes(self.workdir) if comm in names.values()]
        chosen = [pid for pid, comm in ours if who == "all" or comm == names.get(who)]
        if who in ("snakemake", "all") or not chosen:
            chosen.insert(0, process.pid)
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return True

    def note(self, fault: str) -> None:
        """Check the state after a crash, and note which jobs must not start again."""
        # Otherwise resume itself waits for dying processes. With several faults, settle: one may still have to kill.
        if self.rng.random() < 0.5 or "," in fault:
            self.settle(fault)
        published = set(self.published())
        starts = self.counts()
        for job in published:
            assert starts[job] == self.done.get(job, starts[job]), f"{job} was run again although it had been published"
            self.done[job] = starts[job]
        self.check_going_on(starts)
        if not self.detachable or not fault.startswith("snakemake:") or "," in fault:
            self.going_on = Counter()
        else:
            self.going_on |= Counter({job: count for job, count in starts.items() if count > self.before[job]})
        gone = set(self.done) - published
        assert not gone, f"{fault}: the outputs of {gone} were published, and are not there any more: {self.tail()}"

    def check_going_on(self, starts: Counter[str]) -> None:
        """Jobs that ran when only Snakemake was killed are never started again."""
        for job, count in self.going_on.items():
            assert starts[job] == count, f"{job} continued without Snakemake, and was started again: {self.tail()}"

    def settle(self, fault: str) -> None:
        """Wait until no process is left; check: no half-written file, no half-published job, no verdict of success without outputs."""
        wait_until(lambda: not processes(self.workdir))
        for name, content in files(self.workdir).items():
            last = name.replace("begun-", "ended-")  # another job renames its directory
            assert self.reference.get(last) == content, f"{fault}: {name} has {content!r}: {self.tail()}"
        journalled = self.journalled()
        for job, outputs in OUTPUTS.items():
            present = [(self.workdir / name).exists() for name in outputs]
            assert all(present) or not any(present) or set(outputs) <= journalled, f"{fault}: half of {job} is there"
        published = set(self.published())
        for verdict in self.workdir.glob(".snakemake/forge/runs/*/*/verdict.json"):
            record = json.loads(verdict.read_text())
            job = " ".join([record["rule"], *record["wildcards"].values()])
            assert record["outcome"] != "succeeded" or job in published, f"{fault}: {job} succeeded without outputs"

    def finish(self) -> None:
        """Resume without a crash; the result is that of an undisturbed run."""
        process = self.start(None)
        assert process.wait(DEADLINE) == 0, self.tail()
        assert files(self.workdir) == self.reference, self.tail()
        starts = self.counts()
        for job, count in self.done.items():
            assert starts[job] == count, f"{job} was run again although it had been published: {self.tail()}"
        self.check_going_on(starts)
        assert set(starts) == set(OUTPUTS), starts
        assert (left := residue(self.workdir)) == [], f"{left} is left: {self.tail()}"
        assert not list(self.workdir.glob(".snakemake/locks/*"))
        assert not list(self.workdir.glob(".snakemake/incomplete/*"))

    # -- looking -----------------------------------------------------------------------------------------------------

    @property
    def side(self) -> Path:
        """A directory outside the working directory."""
        return self.workdir.parent / "side"

    def recorded(self) -> bool:
        """Whether a run is on record, so that it can be resumed."""
        return any(self.workdir.glob(".snakemake/forge/runs/*/run.json"))

    def left(self, rule: str) -> bool:
        """Whether a job of that rule has not published yet."""
        published = set(self.published())
        return any(job.split()[0] == rule and job not in published for job in OUTPUTS)

    def journalled(self) -> set[str]:
        """Outputs that a journal names: recovery renames them into place."""
        found = set()
        staging = self.workdir / ".snakemake" / "forge" / "staging"
        names: list[str] = []
        with suppress(FileNotFoundError):
            names = os.listdir(staging)
        for name in names:
            with suppress(OSError):  # recovery has completed it meanwhile
                moves = getattr(journal.read(str(staging / name)), "moves", ())
                found |= {os.path.relpath(move.place, self.workdir) for move in moves}
        return found

    def staged(self) -> set[str]:
        """Jobs that succeeded without Snakemake and wait for a run to adopt them."""
        found = set()
        for verdict in self.workdir.glob(".snakemake/forge/runs/*/*/verdict.json"):
            record = json.loads(verdict.read_text())
            if record.get("staged"):
                found.add(" ".join([record["rule"], *record["wildcards"].values()]))
        return found

    def published(self) -> Iterator[str]:
        """Jobs whose outputs are in place, or certain to come."""
        staged = self.staged()
        journalled = self.journalled()
        for job, outputs in OUTPUTS.items():
            if job in staged or all(name in journalled or (self.workdir / name).exists() for name in outputs):
                yield job

    def counts(self) -> Counter[str]:
        """The number of starts of each job."""
        log = self.side / "log"
        return Counter(log.read_text().splitlines() if log.exists() else [])

    def fired(self) -> list[str]:
        """The crashes so far."""
        log = self.side / "fired"
        return log.read_text().splitlines() if log.exists() else []

    def tail(self) -> str:
        """The end of the output of all starts."""
        return (self.side / "output").read_text(errors="replace")[-6000:]


def prepare(workdir: Path) -> None:
    """Write the workflow; make a directory outside for its jobs."""
    write_workflow(workdir, WORKFLOW)
    side = workdir.parent / "side"
    side.mkdir()
    (workdir / "forge.yaml").write_text(
        "version: 1\ndefaults: {runtime: counted}\n"
        f"runtimes:\n  counted: {{host: true, paths: {{write: ['{side}']}}}}\n"
    )


def files(workdir: Path) -> dict[str, bytes]:
    """The files that the workflow has made, without Snakemake's and Forge's own, which come and go meanwhile."""
    found = {}
    for parent, directories, names in os.walk(workdir):
        if Path(parent) == workdir:
            directories[:] = [name for name in directories if name != ".snakemake"]
        own = {"Snakefile", "forge.yaml"} if Path(parent) == workdir else {".snakemake_timestamp"}
        for path in (Path(parent, name) for name in names if name not in own):
            if path.is_file():
                found[str(path.relative_to(workdir))] = path.read_bytes()
    return found


def processes(workdir: Path) -> list[tuple[int, str]]:
    """Pid and name of each living process in that directory."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with suppress(OSError):
                if os.readlink(process / "cwd") == str(workdir):
                    state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                    if state not in "ZX":
                        found.append((int(process.name), (process / "comm").read_text().strip()))
    return found
