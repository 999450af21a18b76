"""The command line as a user types it: answers, mistakes, exit codes, pipes, completion."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.cli.commands import COMMANDS

from ..records import Made, write_run

FORGE = [sys.executable, "-m", "snakemake_executor_plugin_forge.cli.main"]


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


@pytest.mark.parametrize(("words", "message"), [
    (["jbos"], "There is no command 'jbos'. Did you mean jobs?"),
    (["why", "cal"], "Did you mean call?"),
    (["why", "call", "x=1"], "Rule call has no wildcard 'x'; it has s."),
    (["why", "call", "s"], "'s' is no wildcard; write it like sample=A."),
    (["jobs", "--directory", "/"], "There is no record of Forge in /"),
    (["jobs", "--nonsense"], "unrecognized arguments"),
    (["why"], "required: RULE"),
    ([], "required: COMMAND"),
])
def test_mistakes_are_answered_without_a_traceback(workdir: Path, words: list[str], message: str) -> None:
    done = forge(*words, cwd=workdir)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


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


def test_why_is_five_lines(workdir: Path) -> None:
    done = forge("why", "call", "s=A", cwd=workdir)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["happened", "evidence", "stderr", "change", "files"]
    assert "boom: Error" in done.stdout
    parts = json.loads(forge("why", "call", "--json", cwd=workdir).stdout)
    assert parts["change"].startswith("in rule call:  resources: mem_mb=1024 ")
    assert forge("why", "call", "s=B", cwd=workdir).returncode == 1


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
    """What argcomplete's protocol gives for TAB at the end of ``line``: answers come on descriptor 8."""
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
    heavy = {"rich", "snakemake", "jinja2", "plotly", "prometheus_client", "rocrate", "argcomplete", "psutil"}
    assert not heavy & set(loaded)
    assert "snakemake_executor_plugin_forge.cli.doctor" not in loaded


@pytest.mark.parametrize(("words", "library", "extra"), [
    (["report"], "plotly", "report"),
    (["report"], "jinja2", "report"),
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
