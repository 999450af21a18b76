#!/usr/bin/env python3
"""Four analyses and a hostile one on one host, beside a PostgreSQL server that nobody can hurt: `make demo-lab`.

    lab.py DIRECTORY BIN [--size small|demo]

Everything happens in DIRECTORY. At the end lab.py prints, from the records: the experience of the database's client, whether all
outputs have the same bytes as alone, the verdicts of the hostile jobs, the usage of each runtime, and leftovers. The exit code is 1
if any of this is not as promised.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from database import Client, Server, installed

WORKFLOWS = Path(__file__).resolve().parent.parent
RUNTIMES = {  # the named runtime of each workflow; budgets are those of its whole run
    "variants": {"host": True, "memory": "300MiB"},
    "pangenome": {"host": True, "env": {"LC_ALL": "C.UTF-8"}},
    "expression": {"venv": str(WORKFLOWS / "expression" / "requirements.txt")},
    "singlecell": {"venv": str(WORKFLOWS / "singlecell" / "requirements.txt")},
    "hostile": {"host": True, "files": "guard"},
}
BUDGETS = {"variants": 2, "pangenome": 3, "expression": 4, "singlecell": 4, "hostile": 1}  # GiB
PIDS = {"hostile": 64}
FOUR = ("variants", "pangenome", "expression", "singlecell")
EXPECTED = {
    "fork_bomb": "pids",
    "memory_hog": "oom",
    "wipe": "failed",
    "full_disk": "disk",
    "kill_all": "failed",
    "socket": "failed",
}
DEADLINE, WIDTH = 1800, 150


class Lab:
    """The directory with its catalogs, and the programs."""

    def __init__(self, directory: Path, programs: Path, size: str) -> None:
        self.directory, self.programs, self.size = directory, programs, size
        self.database = directory / "database"

    def prepare(self) -> None:
        """Write a catalog for each workflow, and build the runtimes."""
        for name, runtime in RUNTIMES.items():
            catalog = {
                "version": 1,
                "defaults": {"wall": "30m", "pids": 512},
                "runtimes": {name: runtime | {"network": "off", "pids": PIDS.get(name, 256)}},
                "rules": {"*": name},
                "protect": [str(self.database)],
                "provenance": str(self.directory / "provenance"),
            }
            (self.directory / f"{name}.yaml").write_text(json.dumps(catalog, indent=1))  # JSON is YAML
            build = [
                self.programs / "snakemake-forge",
                "runtimes",
                "build",
                "--config",
                self.directory / f"{name}.yaml",
            ]
            subprocess.run([*build, "--runtimes-dir", self.store], check=True, stdout=subprocess.DEVNULL)

    @property
    def store(self) -> Path:
        """The directory that keeps environments from one demonstration to the next."""
        return self.directory.parent / "lab-runtimes"

    def start(self, name: str, phase: str, *words: str) -> subprocess.Popen:
        """Start a Snakemake of its own in a directory of its own."""
        work = self.directory / phase / name
        work.mkdir(parents=True)
        snakefile = WORKFLOWS / "lab" / "hostile.smk" if name == "hostile" else WORKFLOWS / name / "Snakefile"
        config = [] if name in {"variants", "hostile"} else ["--config", f"size={self.size}"]
        command = [
            self.programs / "snakemake",
            "--snakefile",
            snakefile,
            "--directory",
            work,
            "--executor",
            "forge",
            "-j2",
        ]
        command += [
            "--scheduler",
            "greedy",
            "--forge-config",
            self.directory / f"{name}.yaml",
            "--forge-runtimes-dir",
            self.store,
        ]
        command += ["--forge-run-memory", f"{BUDGETS[name]}GiB", *config, *words]
        with (work / "snakemake.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def attempts(self, name: str, phase: str) -> list[dict]:
        """The records of a run."""
        words = [self.programs / "snakemake-forge", "jobs", "--json", "--directory", self.directory / phase / name]
        return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)

    def digest(self, name: str, phase: str) -> dict[str, str]:
        """The checksum of each output."""
        results = self.directory / phase / name / "results"
        files = (path for path in sorted(results.rglob("*")) if path.is_file() and path.name != ".snakemake_timestamp")
        return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def finish(name: str, process: subprocess.Popen, log: Path) -> None:
    """Wait for a workflow that must succeed."""
    if process.wait(DEADLINE) != 0:
        raise SystemExit(f"lab: {name} ended with {process.returncode}; the end of {log}:\n{log.read_text()[-3000:]}")


def run_all(lab: Lab, client: Client) -> None:
    """Run each alone; then all four at once, with the hostile one beside them."""
    for name in FOUR:
        print(f"lab: {name} alone …", flush=True)
        finish(name, lab.start(name, "alone"), lab.directory / "alone" / name / "snakemake.log")
    print("lab: all four at once …", flush=True)
    client.phase = "four"
    four = {name: lab.start(name, "together") for name in FOUR}
    while any(
        not list((lab.directory / "together" / name).glob(".snakemake/forge/runs/*/*/verdict.json")) for name in FOUR
    ):
        time.sleep(0.2)  # until each has finished a job
    print("lab: … and the hostile one beside them …", flush=True)
    client.phase = "hostile"
    neighbours = " ".join(str(lab.directory / "together" / name / "results") for name in FOUR)
    words = [f"neighbours='{neighbours}'", f"database={lab.database}", f"port={Server.port}"]
    hostile = lab.start("hostile", "together", "--keep-going", "--config", *words)
    hostile.wait(DEADLINE)
    client.phase = "four"
    for name, process in four.items():
        finish(name, process, lab.directory / "together" / name / "snakemake.log")


def busiest(attempts: list[dict]) -> int:
    """The sum of the memory peaks of jobs that ran at the same time, at the worst moment."""
    changes = []
    for attempt in attempts:
        start = datetime.fromisoformat(attempt["started"]).timestamp()
        peak = attempt["usage"]["memory_peak_bytes"] or 0
        changes += [(start, peak), (start + attempt["seconds"], -peak)]
    now = worst = 0
    for _, change in sorted(changes):
        now += change
        worst = max(worst, now)
    return worst


def leftovers(lab: Lab) -> list[str]:
    """Processes, control groups, temporary directories and staged files of these runs."""
    runs = [path.name for path in lab.directory.glob("*/*/.snakemake/forge/runs/*") if path.is_dir()]
    names = {f"forge-{run}" for run in runs}
    left = [f"/tmp/{name}" for name in names if Path("/tmp", name).exists()]
    left += [f"{parent}/{name}" for parent, found, _ in os.walk("/sys/fs/cgroup") for name in names & set(found)]
    left += [str(path) for path in lab.directory.glob("*/*/.snakemake/forge/staging/*")]
    left += [str(path) for path in lab.directory.glob("*/*/**/.forge-staging")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            where = os.readlink(process / "cwd")
        except OSError:
            continue  # it has ended
        if Path(where).is_relative_to(lab.directory) and not Path(where).is_relative_to(lab.database):
            left.append(f"process {process.name} in {where}")
    return left


def report(lab: Lab, client: Client) -> list[str]:
    """Print a summary of the records; return all that is not as promised."""
    wrong = []
    print("\nDatabase: one row written and read every 100 ms")
    for phase, title in (
        ("alone", "one workflow at a time"),
        ("four", "four at once"),
        ("hostile", "four and the hostile one"),
    ):
        seconds, failed = client.seconds[phase], client.failed[phase]
        latencies = sorted(seconds) or [float("nan")]
        print(f"  {title:26}{len(seconds):6} queries, {len(failed)} failed, median {1000 * latencies[len(latencies) // 2]:.1f} ms, "
              f"worst {1000 * latencies[-1]:.0f} ms")  # fmt: skip
        wrong += [f"a query failed ({title}): {why}" for why in failed[:3]]
        wrong += [] if seconds else [f"no query was made: {title}"]
    rows = client.count()
    print(f"  rows in the table: {rows}")
    if rows != sum(map(len, client.seconds.values())):
        wrong.append("not every row that was acknowledged is in the table")

    print("\nOutputs beside those of the same workflow alone")
    for name in FOUR:
        alone, together = lab.digest(name, "alone"), lab.digest(name, "together")
        differ = sorted(path for path in alone.keys() | together.keys() if alone.get(path) != together.get(path))
        print(f"  {name:12}{len(alone):4} files, {len(differ)} differ")
        wrong += [f"{name}: {path} has other bytes than alone" for path in differ] + (
            [] if alone else [f"{name}: no outputs"]
        )
        checked = subprocess.run([sys.executable, WORKFLOWS / name / "check.py", lab.directory / "together" / name / "results"],
                                 check=False, text=True, capture_output=True)  # fmt: skip
        print(f"  {'':12}{(checked.stdout or checked.stderr).strip()}")
        wrong += [] if checked.returncode == 0 else [f"{name}: the check of its results failed"]

    print("\nHostile jobs")
    verdicts = {attempt["rule"]: attempt for attempt in lab.attempts("hostile", "together")}
    for rule, expected in EXPECTED.items():
        outcome = verdicts[rule]["outcome"] if rule in verdicts else "did not run"
        reason = verdicts.get(rule, {}).get("reason", "").replace(f"{lab.directory}/", "")
        print(f"  {rule:12}{outcome:10}{reason[:WIDTH]}{'…' if len(reason) > WIDTH else ''}")
        wrong += [] if outcome == expected else [f"{rule}: {outcome}, expected {expected}"]

    print("\nRuntimes: the most that jobs used at the same time, and the budget of the run")
    used = defaultdict(list)
    for name in (*FOUR, "hostile"):
        for attempt in lab.attempts(name, "together"):
            used[attempt["runtime"]].append(attempt)
    for runtime, attempts in used.items():
        memory, budget = busiest(attempts), BUDGETS[runtime] << 30
        cpu = sum(attempt["usage"]["cpu_seconds"] or 0 for attempt in attempts)
        pids = max(attempt["usage"]["pids_peak"] or 0 for attempt in attempts)
        print(f"  {runtime:12}{len(attempts):4} jobs, memory {memory / (1 << 20):6.0f} of {budget >> 20} MiB, "
              f"{cpu:6.1f} s of CPU, at most {pids} of {attempts[0]['limits']['pids']} processes in a job")  # fmt: skip
        wrong += [] if memory <= budget else [f"{runtime}: more memory than its budget"]

    left = leftovers(lab)
    crates = len(list((lab.directory / "provenance").iterdir()))
    print(f"\nProvenance store: {crates} crates. Left on the host: {', '.join(left) or 'nothing'}")
    return wrong + [f"left behind: {thing}" for thing in left]


def main() -> int:
    """Set up, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=lambda text: Path(text).resolve())
    parser.add_argument("programs", type=lambda text: Path(text).absolute())
    parser.add_argument("--size", choices=("small", "demo"), default="small")
    words = parser.parse_args()
    if missing := [
        *installed(),
        *(name for name in ("prodigal", "mmseqs", "mafft", "fasttree") if not shutil.which(name)),
    ]:
        print(
            f"lab: {', '.join(missing)} not found: apt-get install postgresql prodigal mmseqs2 mafft fasttree kleborate-examples"
        )
        return 1
    lab = Lab(words.directory, words.programs, words.size)
    shutil.rmtree(lab.directory, ignore_errors=True)
    lab.directory.mkdir(parents=True)
    lab.prepare()
    began = time.monotonic()
    with Server(lab.database) as server, Client(server) as client:
        run_all(lab, client)
        client.stop()
        wrong = report(lab, client)
    print(f"\nlab: {time.monotonic() - began:.0f} s after set-up, records in {lab.directory}/*/*/.snakemake/forge")
    for problem in wrong:
        print(f"lab: {problem}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
