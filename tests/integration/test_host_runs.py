"""Two Snakemakes with their own budgets on one host: ``top --all`` and ``doctor`` show both, and the kernel enforces the budgets."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from snakemake_executor_plugin_forge.cli.host_runs import HEADER, NONE
from snakemake_executor_plugin_forge.record.identity import user_name

from .. import ordinary
from ..conftest import DEADLINE, Result, command, ending, forge, residue, wait_until, write_workflow

MIB = 2**20
HOLD = 100  # MiB that the job of the calm run holds
WORKFLOW = """
rule all:
    input: "used"
rule use:
    output: "used"
    resources: forge_files="open"  # which sees files that appear
    shell:
        '''python3 -c 'import os, sys, time
held = b"x" * ({config[hold]} << 20)
open("held", "w").close()
while not os.path.exists("go"): time.sleep(0.05)
more = b"y" * ({config[more]} << 20)
open(sys.argv[1], "w").close()' {output}'''
"""


def _runs(*directories: Path) -> list[dict[str, Any]]:
    """The runs of these directories in ``doctor --json``, in that order; the host may have other runs, too."""
    found = json.loads(forge(directories[0], "doctor", "--json").stdout)["runs"]
    by_directory = {run["directory"]: run for run in found}
    return [by_directory[str(directory)] for directory in directories if str(directory) in by_directory]


def _rows(directory: Path) -> dict[str, str]:
    header, *rows = forge(directory, "top", "--all", check=True).stdout.splitlines()
    assert header.split()[-1] == HEADER[-1] == "DIRECTORY"
    return {row.split()[-1]: row for row in rows}


def test_one_exceeds_its_budget_and_the_other_is_untouched(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    options = {
        small: ("--forge-run-memory", "300MiB", "--forge-run-pids", "200", "--forge-nice", "10", "--config", "hold=10", "more=350"),
        large: ("--forge-run-memory", "1GiB", "--forge-run-pids", "400", "--config", f"hold={HOLD}", "more=350"),
    }
    with ExitStack() as stack:
        process = {}
        for directory, words in options.items():
            write_workflow(directory, WORKFLOW)
            log = stack.enter_context((directory / "log").open("wb"))
            process[directory] = subprocess.Popen(command("forge", "-j1", *words), cwd=directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            stack.enter_context(ending(process[directory]))
        for directory in options:
            wait_until((directory / "held").exists, process[directory])

        one, other = _runs(small, large)
        assert (one["memory_limit_bytes"], other["memory_limit_bytes"]) == (300 * MIB, 1024 * MIB)
        assert (one["processes_limit"], other["processes_limit"]) == (200, 400)
        assert one["memory_bytes"] < 300 * MIB and HOLD * MIB <= other["memory_bytes"] < 1024 * MIB
        assert one["cpu_weight"] < other["cpu_weight"] and min(one["processes"], other["processes"]) >= 1
        assert (one["pid"], one["user"]) == (process[small].pid, user_name()) and one["jobs"] == {"running": 1, "done": 0, "failed": 0, "pending": 1}
        rows = _rows(tmp_path)
        assert "of 300.0 MiB" in rows[str(small)] and "of 200" in rows[str(small)] and "1 running, 0 of 2 done" in rows[str(small)]
        assert "of 1.0 GiB" in rows[str(large)] and "of 400" in rows[str(large)]
        assert str(large) in forge(tmp_path, "doctor").stdout

        if os.geteuid() == 0:  # root sees all runs; other users see only their own
            seen = forge(Path("/"), "top", "--all", before=ordinary.prefix())
            assert (seen.returncode, seen.stdout, seen.stderr.strip()) == (1, "", NONE)

        (small / "go").touch()
        assert process[small].wait(DEADLINE) != 0
        (still,) = _runs(small, large)
        assert still["directory"] == str(large) and still["memory_peak_bytes"] < 1024 * MIB and still["jobs"]["running"] == 1
        (large / "go").touch()
        assert process[large].wait(DEADLINE) == 0
    killed, lived = (Result(0, "", directory).attempt("use") for directory in (small, large))
    assert (killed["outcome"], killed["evidence"]["scope"]) == ("oom", "run"), killed
    assert lived["outcome"] == "succeeded" and lived["usage"]["memory_peak_bytes"] > (HOLD + 350) * MIB
    assert str(small) not in forge(tmp_path, "top", "--all").stdout
    assert residue(small) == residue(large) == []
