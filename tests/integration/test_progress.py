"""``--logger forge`` in a terminal and in a file, and ``top``: a run with retries, a checkpoint, a pipe and a final failure."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from ..conftest import command, ending, forge, run, wait_until, write_workflow
from ..unit.test_progress import BAR

pytestmark = pytest.mark.slow

COLUMNS = 70
WORKFLOW = """
rule all:
    input: "b.txt", "counted.txt", "again.txt"
checkpoint split:
    output: directory("parts")
    shell: "mkdir {output}; touch {output}/1 {output}/2 {output}/3"
rule part:
    input: "parts/{n}"
    output: "done.{n}"
    resources: forge_files="open"  # which sees files that appear
    shell: "until [ -e go ]; do sleep 0.05; done; touch {output}"
rule counted:
    input: lambda wildcards: expand("done.{n}", n=glob_wildcards(checkpoints.split.get().output[0] + "/{n,[0-9]}").n)
    output: "counted.txt"
    params: pause=config.get("pause", 3)
    shell: "sleep {params.pause}; touch {output}"
rule a:
    output: pipe("a.txt")
    shell: "echo through > {output}"
rule b:
    input: "a.txt"
    output: "b.txt"
    shell: "cat {input} > {output}"
rule again:
    output: "again.txt"
    retries: 1
    resources: mem_mb=lambda wildcards, attempt: 100 * attempt
    shell: "echo 'a sample that nobody can read, whatever one does, and at great length, too' >&2; [ {resources.mem_mb} = 200 ] && [ -e go ] && touch {output}"
"""


class _Terminal:
    """Snakemake in a terminal, and its whole output."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        ours, its = pty.openpty()
        termios.tcsetwinsize(its, (20, COLUMNS))
        self.process = subprocess.Popen(command("forge", "--logger", "forge", *arguments), cwd=directory, stdin=its, stdout=its, stderr=its,
                                        env=os.environ | {"TERM": "xterm-256color", "NO_COLOR": "1"})
        os.close(its)
        os.set_blocking(ours, False)
        self._controller, self._data = ours, b""

    def read(self) -> str:
        with suppress(OSError):
            while more := os.read(self._controller, 1 << 16):
                self._data += more
        return self._data.decode(errors="replace").replace("\r\n", "\n")

    def bars(self) -> list[str]:
        found = re.findall("\x1b7\x1b\\[20;1H\x1b\\[2K(.*?)\x1b8", self.read())
        return [re.sub(r"\x1b\[[\d;]*m", "", bar) for bar in found if "/" in bar]

    def end(self) -> str:
        """Wait for Snakemake's end; return the text without the bar."""
        wait_until(lambda: (self.read(), self.process.poll())[1] is not None)
        text = self.read()
        os.close(self._controller)
        assert text.count("\x1b[1;19r") == 1 == text.count("\x1b[r"), "the whole terminal scrolls again"
        return BAR.sub("", text)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("progress").resolve()
    write_workflow(directory, WORKFLOW)
    return directory


def test_a_terminal_has_a_bar_and_all_messages_whole(workdir: Path) -> None:
    terminal = _Terminal(workdir, "-j4", "-k", "--show-failed-logs")
    with ending(terminal.process):
        wait_until(lambda: any("3 part" in bar for bar in terminal.bars()), terminal.process)
        # Done: split, a and b. Failed twice: again. Left: counted, all, and the checkpoint's 3 part jobs.
        wait_until(lambda: "3/9" in terminal.bars()[-1] and "1 failed" in terminal.bars()[-1], terminal.process)
        first, *more = forge(workdir, "top").stdout.splitlines()
        assert first.startswith("3 running, 3 of 9 done, 1 failed, 2 pending, ETA ?; "), first
        assert sum(line.startswith("part ") for line in more) == 3
        (workdir / "go").touch()
        text = terminal.end()
    assert terminal.process.returncode == 1
    assert all(len(bar) == COLUMNS for bar in terminal.bars())
    said = "a sample that nobody can read, whatever one does, and at great length, too"
    assert text.count(f"\n{said}\n") >= 2, "the job's own output, which no log handler sees"
    assert text.count("Error in rule again:") == 2 and f"\n          {said}\n" in text
    assert "Trying to restart job" in text and "Forge: 1 job(s) failed." in text and f"\nstderr    {said}\n" in text
    assert re.search(r"8 of 9 jobs|7 of 9 jobs", text) and not re.search(r"Finished jobid|of 9 steps|Execute \d+ jobs|Select jobs", text)


def test_a_later_run_knows_how_long_its_jobs_take(workdir: Path) -> None:
    """The bar shows an ETA; Ctrl-C restores the terminal."""
    (workdir / "go").unlink()
    terminal = _Terminal(workdir, "-j4", "-F", "counted.txt", "--quiet", "rules")
    with ending(terminal.process):
        wait_until(lambda: any("3 part" in bar for bar in terminal.bars()), terminal.process)
        terminal.process.send_signal(signal.SIGINT)
        text = terminal.end()
    assert any(re.search(r"ETA (> )?\d", bar) for bar in terminal.bars()), terminal.bars()
    assert text.count("cancelled after") == 3 and "snakemake-forge resume" in text
    assert re.search(r"\] 1 of 5 jobs \(20%\) done in \d", text)


@pytest.mark.parametrize("executor", ["forge", "local"])
def test_a_file_gets_a_line_now_and_then(workdir: Path, executor: str) -> None:
    (workdir / "go").touch()
    done = run(workdir, "-j2", "-F", "-k", "--logger", "forge", "--logger-forge-interval", "1", "--config", "pause=0", executor=executor,
               env={"PYTHONIOENCODING": "ascii"})
    assert done.code == 0, done.output
    lines = re.findall(r"^\[.*\] (\d+) of (\d+) jobs \((\d+)%\) done(?:, | in )", done.output, re.MULTILINE)
    assert lines[-1] == ("9", "9", "100") and "\x1b" not in done.output
    assert [int(total) for _, total, _ in lines] == sorted(int(total) for _, total, _ in lines)
    assert "Finished jobid" in done.output and "of 9 steps" not in done.output
    log = max((workdir / ".snakemake/log").iterdir(), key=lambda path: path.stat().st_mtime).read_text()
    assert "9 of 9 steps (100%) done" in log


def test_a_dry_run_and_a_quiet_one_show_no_progress_and_the_plan_is_on_record(workdir: Path) -> None:
    dry = run(workdir, "-n", "-F", "counted.txt", "--logger", "forge")
    assert dry.code == 0 and "This was a dry-run" in dry.output and "%) done" not in dry.output and "\x1b" not in dry.output
    quiet = run(workdir, "-j2", "-F", "b.txt", "--quiet", "all", "--logger", "forge")
    assert quiet.code == 0 and quiet.output == ""
    newest = max((workdir / ".snakemake/forge/runs").iterdir())
    record = json.loads((newest / "run.json").read_text())
    one = {"jobs": 1, "threads": 1, "taken_over": 0}
    assert record["plan"] == {"a": {**one, "after": []}, "b": {**one, "after": ["a"]}} and record["cores"] == 2
