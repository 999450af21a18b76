"""Kill Snakemake in the middle of the demo, and resume it: ``make demo-crash``.

Usage: crash.py DIRECTORY BIN
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

HALF = 18  # of 40 jobs
SNAKEFILE = Path(__file__).resolve().parent / "Snakefile"


def main(directory: Path, programs: Path) -> int:
    """Start, kill, resume, compare."""
    workflow = ["--snakefile", SNAKEFILE, "--directory", directory]
    process = subprocess.Popen([programs / "snakemake", *workflow, "--executor", "forge", "-j2", "--quiet", "rules"])
    while process.poll() is None and len(succeeded(directory, programs)) < HALF:
        time.sleep(0.2)
    if process.poll() is not None:
        print(f"crash: Snakemake ended with {process.returncode} before it could be killed", file=sys.stderr)
        return 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = succeeded(directory, programs)
    print(f"\ncrash: Snakemake (pid {process.pid}) was killed with -9; {len(before)} jobs had succeeded\n", flush=True)
    done = subprocess.run([programs / "snakemake-forge", "resume", "--directory", directory], check=False)
    after = succeeded(directory, programs)
    twice = [job for job, count in after.items() if count > 1]
    print(f"\ncrash: resumed; {len(after)} jobs have succeeded, {len(twice)} of them more than once")
    return done.returncode or len(twice)


def succeeded(directory: Path, programs: Path) -> Counter[str]:
    """The number of successes of each job."""
    found = subprocess.run(
        [programs / "snakemake-forge", "jobs", "--json", "--directory", directory], capture_output=True, check=False
    )
    jobs = json.loads(found.stdout or b"[]") if found.returncode == 0 else []
    return Counter(f"{job['rule']} {job['wildcards']}" for job in jobs if job["outcome"] == "succeeded")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).absolute()))
