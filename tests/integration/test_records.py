"""Jobs' writes to places that Forge reads, and damaged records: Forge notes each, and nothing else fails."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.cli.main import main
from snakemake_executor_plugin_forge.record.index import remove_index
from tests.conftest import DEADLINE, command, ending, forge, residue, run, wait_until, write_workflow
from tests.crash import processes
from tests.mutations import FEW_OR_MANY, SEED, damaged_once, with_wrong_values

pytestmark = [pytest.mark.slow, pytest.mark.security]

# The process of a ``run:`` job is a fork of Forge: it has the pipe to its supervisor for its result.
_IN_ITS_OWN_PROCESS = r"""
import os, stat, threading

CASES = {
    "deep": b"[" * 200000 + b"\n",
    "huge": b"x" * (40 << 20),
    "numbers": b'{"children": [NaN, Infinity, 1e999], "exit_code": ' + b"9" * 30 + b"}\n",
    "surrogate": b'{"error": "\\ud800"}\n',
    "kinds": b'{"signal": [], "summary": {}, "setup_error": [1]}\n',
    "binary": bytes(range(256)),
    "close": None,
    "reopen": None,
}
def pipes():
    for name in map(int, os.listdir("/proc/self/fd")):
        try:
            if name > 2 and stat.S_ISFIFO(os.fstat(name).st_mode):
                yield name
        except OSError:
            pass
rule all:
    input: expand("{case}.txt", case=CASES)
rule one:
    output: "{case}.txt"
    benchmark: "{case}.tsv"
    run:
        with open(output[0], "w") as file:
            file.write(wildcards.case)
        text = CASES[wildcards.case]
        if text is None:
            os.closerange(3, 4096)
            kept = [open("/dev/null") for _ in range(64 * (wildcards.case == "reopen"))]
            for file in kept:
                file.detach()
        else:
            for fd in list(pipes()):
                with os.fdopen(os.dup(fd), "wb") as pipe:
                    pipe.write(text)
rule fails:
    output: "never.txt"
    run:
        for fd in list(pipes()):
            os.write(fd, b'{"exit_code": 0}\n')
        os._exit(3)
"""


def test_what_a_job_writes_into_the_pipe_of_its_result_is_ignored_and_noted(workdir: Path) -> None:
    write_workflow(workdir, _IN_ITS_OWN_PROCESS)
    result = run(workdir, "-j4")
    assert result.code == 0, result.output
    for attempt in result.attempts("one"):
        case = attempt["wildcards"]["case"]
        assert attempt["outcome"] == "succeeded" and result.read(f"{case}.txt") == case
        noted = any("wrote to a pipe of Forge" in note for note in attempt["notes"])
        assert noted == (case not in ("close", "reopen")), attempt["notes"]
    result = run(workdir, "-j1", "never.txt")
    attempt = result.attempt("fails")
    assert (attempt["outcome"], attempt["exit_code"]) == ("failed", 3), attempt
    assert residue(workdir) == []


_COMMANDS = (
    ("jobs",), ("jobs", "--json"), ("jobs", "--failed"), ("jobs", "--timings"), ("runs",), ("why",), ("report", "r.html"), ("metrics",), ("advise",), ("audit",),
    ("provenance", "crate"), ("verify",), ("logs", "good"), ("gc", "--dry-run"), ("resume", "--dry-run"), ("top", "--once"),
)  # fmt: skip
_OUTCOMES = """
rule good: output: "{x}.txt" resources: runtime=10 shell: "echo {wildcards.x} > {output}"
rule bad: output: "bad.txt" log: "bad.log" resources: runtime=10 shell: "echo no > {log}; exit 3"
rule slow: output: "slow.txt" shell: "sleep 3600"
"""


@FEW_OR_MANY
def test_commands_take_any_record(
    workdir: Path, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands name the damage and do not break if records have wrong values or damaged bytes."""
    text = "\n".join(line.replace(" output:", "\n    output:").replace(" log:", "\n    log:").replace(" resources:", "\n    resources:")
                     .replace(" shell:", "\n    shell:") for line in _OUTCOMES.splitlines())  # fmt: skip
    (workdir / "w").mkdir()
    write_workflow(workdir / "w", text)
    assert run(workdir / "w", "-j4", "-k", "--forge-wall", "2s", "a.txt", "b.txt", "bad.txt", "slow.txt").code == 1
    assert not any("damaged" in record for record in json.loads(forge(workdir / "w", "jobs", "--json").stdout))
    state = workdir / "w/.snakemake/forge"
    entry = {"run": "r", "name": "n", "pid": 1, "start_time": 1, "boot_id": "", "host": "x", "cpus": 1, "memory_bytes": 1}
    (state / "adoptable").mkdir()
    (run_directory := next(iter((state / "runs").iterdir()))).joinpath("slurm").mkdir()
    (state / f"adoptable/{run_directory.name}.00001-good").write_text(json.dumps(entry | {"run": run_directory.name, "identity": {}}))
    files = [path for path in state.rglob("*.json*") if path.is_file()] + list((state / "adoptable").iterdir())
    whole = {path: path.read_bytes() for path in files}
    print(f"FORGE_FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    monkeypatch.chdir(workdir / "w")
    for number in range(max(3, count // 100)):
        for path, content in whole.items():
            match rng.randrange(4):
                case 0:
                    path.write_bytes(content)
                case 1:
                    path.write_bytes(damaged_once(rng, content))
                case _ if path.suffix == ".json":
                    path.write_text(json.dumps(with_wrong_values(rng, json.loads(content))))
        for words in _COMMANDS:
            remove_index(str(state))
            try:
                code = main([*words])
            except SystemExit as stop:  # raised by argparse
                code = int(stop.code or 0)
            assert code in (0, 1, 2, 3), (number, words)
    for path, content in whole.items():
        path.write_bytes(content)
    capsys.readouterr()


def test_damage_is_named_with_its_file(workdir: Path) -> None:
    """Commands name damaged files, and show other attempts unchanged."""
    write_workflow(workdir, 'rule all:\n    input: "a.txt", "b.txt", "c.txt"\nrule one:\n    output: "{x}.txt"\n    shell: "echo > {output}"\n')
    assert run(workdir, "-j3").code == 0
    paths = {attempt["wildcards"]["x"]: Path(attempt["directory"], "verdict.json") for attempt in run(workdir, "-n").attempts("one")}
    forge(workdir, "gc", "--dry-run")
    remove_index(str(workdir / ".snakemake/forge"))
    record = json.loads(paths["a"].read_text())
    paths["a"].write_text(json.dumps(record | {"exit_code": 10**30, "seconds": -5, "usage": "x"}))
    paths["b"].write_bytes(paths["b"].read_bytes()[:100])
    found = {attempt["wildcards"].get("x"): attempt for attempt in json.loads(forge(workdir, "jobs", "--json").stdout)}
    assert found["c"]["outcome"] == "succeeded" and found["c"]["notes"] == []
    assert found["a"]["damaged"] == ["exit_code", "seconds", "usage"] and str(paths["a"]) in found["a"]["notes"][-1]
    assert found["b"]["outcome"] == "lost" and str(paths["b"]) in found["b"]["reason"]
    assert str(paths["b"]) in forge(workdir, "jobs").stdout and str(paths["a"]) in forge(workdir, "jobs").stdout


_TWO = r"""
SIDE = config["side"]
rule gate:
    output: "{x}.txt", "{x}.also"
    shell: "touch {SIDE}/{wildcards.x}-$FORGE_RUN_MARK; until [ -e {SIDE}/go-$FORGE_RUN_MARK ]; do sleep 0.05; done; "
        "echo $FORGE_RUN_MARK | tee {output} >> progress.txt"
"""


def test_two_snakemakes_in_one_directory(workdir: Path) -> None:
    """With ``--nolock``, neither run loses outputs or leaves partial ones; resume and gc do nothing; the second run warns."""
    side, work = workdir / "side", workdir / "w"
    side.mkdir()
    write_workflow(work, "envvars: 'FORGE_RUN_MARK'\n" + _TWO)
    (work / "forge.yaml").write_text(
        f"version: 1\ndefaults: {{runtime: side}}\nruntimes:\n  side: {{host: true, paths: {{write: ['{side}']}}}}\n"
    )

    def start(mark: str, *targets: str) -> subprocess.Popen[str]:
        words = command("forge", "-j4", "--nolock", "-k", *targets, "--config", f"side={side}")
        return subprocess.Popen(words, cwd=work, env=os.environ | {"FORGE_RUN_MARK": mark}, text=True, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def layers() -> set[str]:
        return set(os.listdir(work / ".snakemake/forge/staging"))

    first = start("one", "a.txt", "same.txt")
    with ending(first):
        wait_until(lambda: {"a-one", "same-one"} <= set(os.listdir(side)), first)
        second = start("two", "b.txt", "same.txt")
        with ending(second):
            wait_until(lambda: {"b-two", "same-two"} <= set(os.listdir(side)), second)
            before = layers()
            refused = forge(work, "resume")
            assert refused.returncode != 0 and str(first.pid) in refused.stderr and "Nothing was changed" in refused.stderr
            forge(work, "gc", "--leftovers-after", "1s", "--kept-after", "1s", check=True)
            assert layers() == before and first.poll() is None and second.poll() is None
            (side / "go-one").touch()
            said_first = first.communicate(timeout=DEADLINE)[0]
            (side / "go-two").touch()
            said_second = second.communicate(timeout=DEADLINE)[0]
    assert first.returncode == 0 and "another Snakemake" not in said_first, said_first
    assert second.returncode == 1 and f"another Snakemake (pid {first.pid}) is at work" in said_second, said_second
    assert "same.txt was changed by somebody else" in said_second
    for name, mark in (("a", "one"), ("same", "one"), ("b", "two")):
        assert {(work / f"{name}.{end}").read_text() for end in ("txt", "also")} == {f"{mark}\n"}
    assert sorted((work / "progress.txt").read_text().split()) == ["one", "one", "two"]
    assert residue(work) == []


_STORM = """
N = range(12)
rule all:
    input: expand("b/{i}.txt", i=N), expand("r/{i}.txt", i=range(3))
rule a:
    output: "a/{i}.txt", "a/{i}.also"
    retries: 20
    shell: "for o in {output}; do echo {wildcards.i} > $o; done; echo > $TMPDIR/x; sleep 0.1"
rule b:
    input: "a/{i}.txt"
    output: "b/{i}.txt"
    retries: 20
    shell: "cat {input} {input} > {output}; echo > $TMPDIR/y"
rule r:
    output: "r/{i}.txt"
    retries: 20
    run:
        with open(output[0], "w") as file:
            file.write(wildcards.i)
"""
_VICTIMS = ("forge-super", "forge-launcher", "forge-nursery", "forge-template")


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.soak)], ids=["few", "many"])
def test_whoever_is_killed_at_random_the_outputs_are_whole_and_nothing_stays(workdir: Path, rounds: int) -> None:
    """Without ``resume``, a run clears up after its own killed processes, and the next run after a killed Snakemake."""
    print(f"FORGE_FUZZ_SEED={SEED}")
    rng = random.Random(SEED)
    for number in range(rounds):
        _storm(workdir / str(number) / "w", rng, kills_snakemake=number % 2 == 1)


def _storm(work: Path, rng: random.Random, *, kills_snakemake: bool) -> None:
    write_workflow(work, _STORM)
    process = subprocess.Popen(command("forge", "-j4"), cwd=work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with ending(process):
        wait_until(lambda: any((work / "a").glob("*")), process)
        for _ in range(rng.randint(1, 6)):
            time.sleep(rng.uniform(0.0, 0.3))
            names = _VICTIMS if rng.random() < 0.2 else _VICTIMS[:1]
            victims = [pid for pid, name in processes(work) if name in names]
            with suppress(ProcessLookupError):
                os.kill(rng.choice(victims or [process.pid]), signal.SIGKILL if victims else 0)
        if kills_snakemake:
            process.kill()
        code = process.wait(DEADLINE)
    wait_until(lambda: not processes(work))
    if not kills_snakemake:
        assert residue(work) == [], f"exit code {code}"
    again = run(work, "-j4", "--nolock", "--rerun-incomplete")
    if "Nothing to be done" in again.output:  # the run had ended before, so no executor was started
        assert forge(work, "resume").returncode == 0
    assert again.code == 0 and residue(work) == [], again.output
    for i in range(12):
        assert again.read(f"b/{i}.txt") == f"{i}\n{i}\n" and again.read(f"a/{i}.also") == f"{i}\n"
    assert [again.read(f"r/{i}.txt") for i in range(3)] == ["0", "1", "2"]
