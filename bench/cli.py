"""Command line: choose cases and executors, run the rounds, report."""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.activation import Activation
from bench.auditing import Auditing
from bench.crowd import Crowd
from bench.finished import Finished, ManyFiles
from bench.machine import OtherLoad, machine
from bench.memory import Memory
from bench.peers import Peers
from bench.process import BenchError, become_subreaper
from bench.reading import Reading
from bench.recording import Recording
from bench.report import show
from bench.results import TARGETS, Results
from bench.scheduling import Scheduling
from bench.settings import EXECUTORS, FULL, QUICK, Executor, Settings
from bench.startup import Startup
from bench.timed import Case, Heavy, LargeDag, Trivial
from bench.verification import Verification
from bench.workspace import Workspace

RESULTS = Path(__file__).parent / "results" / "latest.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 after a failed run, and with --strict after a missed target."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settings = Settings(QUICK if options.quick else FULL, options.cores, options.rounds, options.timeout)
    results = Results()
    others = OtherLoad()
    notes: dict[str, str] = {}
    error = None
    try:
        executors = _executors(options.executors)
        cases = _cases(settings, options.only)
        become_subreaper()
        with tempfile.TemporaryDirectory(prefix="forge-bench-") as root:
            _measure(cases, executors, Workspace(Path(root), settings, notes), results)
    except BenchError as failure:
        error = str(failure)
    about = {**machine(), "other_load_cores": round(others.cores(), 2)}
    run: dict[str, object] = {"machine": about, "settings": asdict(settings), "error": error, "notes": notes}
    _write_json(options.json, run, results)
    show(results, settings.sizes)
    for what, why in notes.items():
        print(f"{what}: not measured, because {why}")
    print(f"Other processes kept {about['other_load_cores']} of {about['cores']} cores busy meanwhile.")
    print(f"{options.json}: all samples" + (" (--quick: sizes too small for a verdict)" * options.quick))
    if error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return int(options.strict and any(target.met(results) is False for target in TARGETS))


def _parser() -> argparse.ArgumentParser:
    names = [case.name for case in _cases(Settings(FULL), None)]
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Benchmark of Snakemake executors: local, cluster-generic and forge.",
    )
    add = parser.add_argument
    add("--rounds", type=_positive, default=3, metavar="N", help="rounds of all cases and executors (3)")
    add("--only", nargs="+", choices=names, metavar="CASE", help=f"cases to run, of: {', '.join(names)}")
    add("--executors", type=_names, help=f"comma-separated (all installed of {','.join(EXECUTORS)})")
    add("-j", dest="cores", type=_positive, default=2, metavar="N", help="jobs at once (2)")
    add("--json", type=Path, default=RESULTS, metavar="PATH", help="where all samples go (%(default)s)")
    add("--quick", action="store_true", help="small sizes, to try the benchmark itself")
    add("--strict", action="store_true", help="end with 1 if a measured target is not met")
    add("--timeout", type=float, default=1800.0, metavar="S", help="limit for one Snakemake run (1800)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in EXECUTORS:
            raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(EXECUTORS)}")
    return names


def _executors(names: list[str] | None) -> list[Executor]:
    """Return the executors asked for, or all installed ones; a missing one is an error only if asked for."""
    missing = [name for name, executor in EXECUTORS.items() if not executor.available()]
    for name in missing:
        if names and name in names:
            raise BenchError(f"{EXECUTORS[name].plugin} cannot be imported by {sys.executable}")
        if not names:
            print(f"bench: {name} is not installed here and left out", file=sys.stderr)
    return [EXECUTORS[name] for name in names or EXECUTORS if name not in missing]


def _cases(settings: Settings, only: list[str] | None) -> list[Case]:
    """All cases, or those named, at the sizes of this call."""
    sizes = settings.sizes
    cases: list[Case] = [
        Trivial("shell", sizes.shell),
        Trivial("run", sizes.run),
        Trivial("script", sizes.script),
        Heavy(),
        Activation(sizes.activation),
        Auditing(),
        LargeDag(sizes.dag, sizes.dag_run),
        Memory(sizes.sleepers, sizes.sleep_seconds),
        Reading(sizes.attempts),
        Recording(),
        Verification(),
        Peers(sizes.sandboxes),
        Crowd(sizes.crowd, sizes.crowd_seconds),
        Finished(sizes.finished),
        ManyFiles(sizes.file_jobs, sizes.files),
        Scheduling(sizes.schedule, sizes.schedule_greedy, sizes.schedule_ilp),
        Startup(-(-sizes.start_pairs // settings.rounds)),
    ]
    return [case for case in cases if only is None or case.name in only]


def _measure(cases: list[Case], executors: list[Executor], workspace: Workspace, results: Results) -> None:
    """Run all rounds; executors alternate within each case, in an order that turns with every round."""
    for executor in executors:
        # Not measured: this run fills the page cache and writes bytecode for later runs.
        workspace.snakemake(executor, workspace.directory("shell"), jobs=1, steps=2)
    rounds = workspace.settings.rounds
    for number in range(rounds):
        turn = number % len(executors)
        order = executors[turn:] + executors[:turn]
        for case in cases:
            for executor in order:
                if executor.takes_part_in(case.name):
                    metrics = case.measure(executor, workspace)
                    results.add(case.name, executor.name, metrics)
                    _progress(f"round {number + 1}/{rounds}", case.name, executor.name, results)


def _progress(label: str, case: str, executor: str, results: Results) -> None:
    for metric, unit in (("wall_s", "s"), ("shell_wall_s", "s"), ("per_job_mb", "MB a job"), ("show_start_ms", "ms")):
        values = results.values(case, executor, metric)
        if values:
            print(f"{label} {case} {executor}: {values[-1]:.2f} {unit}", file=sys.stderr, flush=True)


def _write_json(path: Path, about: dict[str, object], results: Results) -> None:
    """Write samples, medians, ratios and verdicts."""
    targets = [
        {
            "name": target.name,
            "unit": target.unit,
            "limit": target.limit,
            "at_least": target.at_least,
            "value": target.value(results),
            "met": target.met(results),
        }
        for target in TARGETS
    ]
    record = {
        **about,
        "medians": results.medians(),
        "ratios_to_local": results.ratios(),
        "growth_in_dag": {name: results.growth(name) for name in results.samples.get("dag", {})},
        "targets": targets,
        "samples": results.samples,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
