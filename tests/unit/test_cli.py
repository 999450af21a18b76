"""The command line as a user types it: answers, mistakes, exit codes, pipes, completion."""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.cli.commands import COMMANDS
from snakemake_executor_plugin_forge.cli.select import newest
from snakemake_executor_plugin_forge.cli.show import fitting
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order

from ..conftest import FORGE
from ..records import Made, write_run


def forge(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*FORGE, *words], cwd=cwd, capture_output=True, text=True, check=False, env=os.environ | (env or {}))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    write_run(directory, [Made("map", {"s": "old"})], "20260130-120000-1-aaaa")
    write_run(directory, [Made("map", {"s": "A"}), Made("call", {"s": "A"}, evidence={"oom_kills": 1}, stderr="boom: Error\n")])
    return directory


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str) -> None:
    done = forge(command, "--help")
    assert done.returncode == 0
    assert f"  snakemake-forge {command}" in done.stdout.partition("examples:")[2] or command == "completion"
    assert COMMANDS[command][1:] in done.stdout


def test_the_search_for_a_record_ends_at_a_catalog_and_where_everybody_may_write(tmp_path: Path) -> None:
    write_run(tmp_path / "shared", [Made("planted")])
    project = tmp_path / "shared" / "project"
    below = project / "results" / "deep"
    below.mkdir(parents=True)
    assert "planted" in forge("jobs", cwd=below).stdout
    (tmp_path / "shared").chmod(0o1777)
    done = forge("jobs", cwd=below)
    assert done.returncode == 2
    assert f"There is no record of Forge in {below}" in done.stderr
    write_run(project, [Made("own")])
    assert "own" in forge("jobs", cwd=below).stdout
    (below / "forge.yaml").write_text("version: 1\n")
    assert "There is no record of Forge in" in forge("jobs", cwd=below).stderr


@pytest.mark.parametrize(("words", "message"), [
    (["jbos"], "There is no command 'jbos'. Did you mean jobs?"),
    (["why", "cal"], "Did you mean call?"),
    (["why", "call", "x=1"], "Rule call has no wildcard 'x'. Known are s."),
    (["top", "--interval", "x"], "argument --interval: 'x' is not a number, from 0.1 to 3600"),
    (["advise", "--min-jobs", "0"], "argument --min-jobs: '0' is not a whole number, 1 or more"),
    (["jobs", "x=A"], "No rule on record has a wildcard 'x'. Known are s."),
    (["why", "call", "s"], "'s' is no wildcard; write it like s=s."),
    (["jobs", "s"], "'s' is no wildcard; write it like sample=A."),
    (["jobs", "call", "s=A"], "A rule is named with --rule: snakemake-forge jobs --rule call s=A"),
    (["why", "s=A"], "Name the rule before s=A. All jobs with it: snakemake-forge jobs s=A"),
    (["jobs", "--directory", "/nowhere"], "There is no directory /nowhere."),
    (["jobs", "--directory", "/"], "There is no record of Forge in /"),
    (["jobs", "--nonsense"], "unrecognized arguments: --nonsense; see: snakemake-forge jobs --help"),
    (["logs", "--follow"], "--follow needs the rule of a job"),
    (["jobs", "--run", "-3"], "--run -3: 2 runs are on record; -1 is the newest, -2 the oldest."),
    (["why", "--run", "2026"], "--run 2026: 2 runs begin like this, from 20260130-120000-1-aaaa to 20260131-120000-1-aaaa."),
    (["advise", "--run", "x"], "--run x: there is no such run. Known are 20260130-120000-1-aaaa, 20260131"),
    (["resume", "-d", "https://x/y"], "argument -d/--directory: 'https://x/y' is an address; name a file or directory of this host"),
    (["runtimes", "list", "-d", "https://x/y"], "argument -d/--directory: 'https://x/y' is an address"),
    (["runtimes", "build", "--config", "s3://x/forge.yaml"], "argument --config: 's3://x/forge.yaml' is an address"),
    (["runtimes", "list", "--config", "none.yaml"], "--config=none.yaml: there is no such file."),
    (["runtimes", "build", "--runtimes-dir", "https://x"], "argument --runtimes-dir: 'https://x' is an address"),
    (["runtimes", "list", "-r", "https://x"], "unrecognized arguments: -r"),
    (["init", "-s", "https://x/Snakefile"], "argument -s/--snakefile: 'https://x/Snakefile' is an address"),
    ([], "required: COMMAND"),
])
def test_mistakes_are_answered_without_a_traceback(workdir: Path, words: list[str], message: str) -> None:
    done = forge(*words, cwd=workdir)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_version() -> None:
    assert forge("--version").stdout == f"snakemake-forge {version('snakemake-executor-plugin-forge')}\n"


def test_jobs(workdir: Path) -> None:
    done = forge("jobs", cwd=workdir)
    lines = done.stdout.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["RULE", "WILDCARDS", "TRY", "OUTCOME"], ["map", "s=old", "1", "succeeded"],
        ["map", "s=A", "1", "succeeded"], ["call", "s=A", "1", "oom"]]
    assert [r["rule"] for r in json.loads(forge("jobs", "--json", cwd=workdir).stdout)] == ["map", "map", "call"]
    assert [r["wildcards"] for r in json.loads(forge("jobs", "--json", "--last", cwd=workdir).stdout)] == [{"s": "A"}] * 2
    none = forge("jobs", "--running", cwd=workdir)
    assert (none.returncode, none.stdout, none.stderr) == (1, "", "No attempts match.\n")
    assert json.loads(forge("jobs", "--running", "--json", cwd=workdir).stdout) == []


def test_a_run_is_named_by_its_name_its_beginning_or_its_number(workdir: Path) -> None:
    for words, rules in ((["--run", "-2"], ["map"]), (["--run", "20260131"], ["map", "call"]), (["--run=-1", "--rule", "map"], ["map"])):
        assert [r["rule"] for r in json.loads(forge("jobs", "--json", *words, cwd=workdir).stdout)] == rules
    assert "20260130-120000-1-aaaa/00001-map/stdout.log" in forge("logs", "map", "--run", "-2", cwd=workdir).stdout
    assert "s=old" in forge("why", "map", "--run", "-2", cwd=workdir).stdout
    assert [item["jobs"] for item in json.loads(forge("advise", "--run", "-2", "--json", cwd=workdir).stdout)] == [1]


def test_runs(workdir: Path, tmp_path: Path) -> None:
    done = forge("runs", cwd=workdir, env={"TZ": "UTC"}).stdout.splitlines()
    assert [line.split() for line in done] == [
        ["RUN", "START", "TIME", "OUTCOME", "JOBS", "COMMAND"],
        *([f"202601{day}-120000-1-aaaa", "2026-01-31", "12:00:00", "2.00", "s", outcome, *jobs.split(), "snakemake", "--executor", "forge"]
          for day, outcome, jobs in ((30, "succeeded", "1 succeeded"), (31, "failed", "1 oom, 1 succeeded")))]
    write_run(tmp_path, [Made("map", evidence={"exit_code": 1}), Made("map"), Made("call", ended=False)], over=False)
    (found,) = json.loads(forge("runs", "--json", cwd=tmp_path).stdout)
    assert (found["outcome"], found["jobs"]) == ("running", {"running": 1, "succeeded": 1})
    file = next(tmp_path.glob(".snakemake/forge/runs/*/run.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot_id": "another"}))
    assert json.loads(forge("runs", "--json", cwd=tmp_path).stdout)[0]["outcome"] == "interrupted"


def test_why_without_a_rule_explains_the_newest_failure(workdir: Path, tmp_path: Path) -> None:
    assert forge("why", cwd=workdir).stdout == forge("why", "call", cwd=workdir).stdout
    write_run(tmp_path, [Made("map")], "20260130-120000-1-aaaa")
    done = forge("why", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "No attempt on record has failed.\n")
    write_run(tmp_path, [Made("call", evidence={"exit_code": 3}), Made("map", evidence={"cancelled": Order(EndedBy.USER, "Ctrl-C")}), Made("map")])
    assert "call" in forge("why", cwd=tmp_path).stdout.splitlines()[0]
    write_run(tmp_path, [Made("map", evidence={"exit_code": 4}), Made("map", attempt=2)], "20260201-120000-1-aaaa")  # a retry succeeded
    assert "call" in forge("why", cwd=tmp_path).stdout.splitlines()[0]
    of_run = forge("why", "--run", "-1", cwd=tmp_path).stdout.splitlines()
    assert "map" in of_run[0]
    assert of_run[1].endswith("; the job has succeeded since")


def test_why_is_five_lines(workdir: Path) -> None:
    done = forge("why", "call", "s=A", cwd=workdir)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["happened", "evidence", "stderr", "change", "files"]
    assert "boom: Error" in done.stdout
    parts = json.loads(forge("why", "call", "--json", cwd=workdir).stdout)
    assert parts["change"].startswith("in rule call:  resources: mem_mb=1024 ")
    done = forge("why", "call", "s=B", cwd=workdir)
    assert (done.returncode, done.stderr) == (1, "No attempt of rule call has s=B. Known are A.\n")


def test_of_many_jobs_the_one_that_failed_is_meant(tmp_path: Path) -> None:
    failure = {"exit_code": 3}
    write_run(tmp_path, [Made("call", {"s": "A"}, evidence=failure, stderr="old\n")], "20260130-120000-1-aaaa")
    write_run(tmp_path, [Made("call", {"s": "A"}), Made("call", {"s": "B"}, evidence=failure, stderr="mine\n"), Made("call", {"s": "C"})])
    for words in (["why", "call"], ["why"]):
        assert "call s=B" in forge(*words, cwd=tmp_path).stdout.splitlines()[0]
    for words in (["logs"], ["logs", "call"]):
        assert forge(*words, "--stderr", cwd=tmp_path).stdout == "mine\n"
    assert "call s=C" in forge("why", "call", "s=C", cwd=tmp_path).stdout
    write_run(tmp_path, [Made("call", {"s": "B"})], "20260201-120000-1-aaaa")
    assert "call s=B: succeeded" in forge("why", "call", cwd=tmp_path).stdout.replace(" (Snakefile:1)", "")
    assert "call s=B" in forge("why", "call", "--run", "-2", cwd=tmp_path).stdout.splitlines()[0]


def test_follow_means_the_job_that_runs(tmp_path: Path) -> None:
    write_run(tmp_path, [Made("call", {"s": "A"}, evidence={"exit_code": 3})], "20260130-120000-1-aaaa")
    write_run(tmp_path, [Made("call", {"s": "B"}, ended=False)], over=False)
    options = argparse.Namespace(directory=str(tmp_path), rule="call", wildcards=[], name=None)
    assert newest(options)["wildcards"] == {"s": "A"}
    assert newest(options, running=True)["wildcards"] == {"s": "B"}


def test_a_record_is_found_from_a_directory_below_it(workdir: Path) -> None:
    below = workdir / "results" / "deep"
    below.mkdir(parents=True)
    assert forge("jobs", cwd=below).stdout == forge("jobs", cwd=workdir).stdout
    assert forge("jobs", "--directory", str(below), cwd=workdir).returncode == 2  # a directory that the user names is not searched upwards


def test_a_narrow_terminal_shows_what_matters_most() -> None:
    header, rows = ("RULE", "TRY", "MEMORY", "REASON"), [("call", "1", "100.0 MiB of 200.0 MiB", "a sentence " * 9)]
    shown = {width: fitting(header, rows, width, ("TRY", "MEMORY")) for width in (80, 65, 40, 10)}
    assert shown == {80: [0, 1, 2, 3], 65: [0, 2, 3], 40: [0, 3], 10: [0, 3]}


def test_a_reader_that_goes_away_is_no_error(workdir: Path) -> None:
    done = subprocess.run(["bash", "-o", "pipefail", "-c", f"{' '.join(FORGE)} jobs --json | true"], cwd=workdir,
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_colours_on_a_terminal_only(workdir: Path) -> None:
    ours, its = pty.openpty()
    subprocess.run([*FORGE, "jobs"], cwd=workdir, stdout=its, env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "150"}, check=True)
    os.close(its)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # EIO: the other side is closed
            break
        shown += chunk
    os.close(ours)
    assert b"\x1b[31m" in shown  # red: the oom
    assert "\x1b" not in forge("jobs", cwd=workdir).stdout


def _complete(workdir: Path, line: str) -> set[str]:
    """Return argcomplete's answers to TAB at the end of ``line``; they come on descriptor 8."""
    read, write = os.pipe()
    code = f"exec 8>&{write} 9>/dev/null; exec {' '.join(FORGE)}"
    subprocess.run(["bash", "-c", code], cwd=workdir, pass_fds=[write], check=True, env=os.environ | {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_LINE": line, "COMP_POINT": str(len(line))})
    os.close(write)
    with os.fdopen(read) as file:
        return {word.strip() for word in file.read().splitlines()}


def test_completion_of_commands_rules_and_wildcards(workdir: Path) -> None:
    assert _complete(workdir, "snakemake-forge j") == {"jobs"}
    assert _complete(workdir, "snakemake-forge why ") >= {"map", "call"}
    assert _complete(workdir, "snakemake-forge why map s=o") == {"s=old"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    done = forge("completion", shell)
    assert done.returncode == 0
    assert "_ARGCOMPLETE" in done.stdout
    if shell == "bash":
        assert subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=False).returncode == 0


def test_a_command_loads_only_what_it_needs() -> None:
    code = ("import sys; from snakemake_executor_plugin_forge.cli.main import main\n"
            "try: main(['jobs', '--help'])\n"
            "except SystemExit: pass\n"
            "print('\\nLOADED', *sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.partition("LOADED")[2].split()
    heavy = {"rich", "snakemake", "jinja2", "prometheus_client", "rocrate", "argcomplete", "psutil"}
    assert not heavy & set(loaded)
    assert "snakemake_executor_plugin_forge.cli.doctor" not in loaded


@pytest.mark.parametrize(("words", "library", "extra"), [
    (["metrics"], "prometheus_client", "metrics"),
    (["provenance", "crate"], "rocrate", "provenance"),
])
def test_a_library_that_is_not_installed_is_named_with_the_command_that_installs_it(
    tmp_path: Path, words: list[str], library: str, extra: str
) -> None:
    write_run(tmp_path, [Made()])
    (tmp_path / "Snakefile").write_text("")
    run_json = next(tmp_path.glob(".snakemake/forge/runs/*/run.json"))
    facts = {"snakefile": str(tmp_path / "Snakefile"), "sources": [], "configfiles": [], "config": {}}
    run_json.write_text(json.dumps(json.loads(run_json.read_text()) | {"workflow": facts, "user": "x"}))
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {library!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from snakemake_executor_plugin_forge.cli.main import main\n"
        f"sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, (f"snakemake-forge: This needs {library}, which is not installed: "
                                              f"python -m pip install 'snakemake-executor-plugin-forge[{extra}]'\n"))
