"""Run Snakemake's own tests with both executors and compare.

The tests come from the source distribution of the Snakemake that is installed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
KNOWN = HERE / "known.toml"
PLUGIN_SUITE = HERE / "plugin_suite.py"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "forge-upstream"
GOOD = ("passed", "skipped")


@dataclass(frozen=True, slots=True)
class Result:
    """How one test ended with one executor; the last line of its record counts."""

    outcome: str  # passed, failed, skipped or died (pytest ended with it)
    seconds: float
    text: str


def main(arguments: Sequence[str] | None = None) -> int:
    """1 if a test fails with forge only and nobody has said why it should."""
    options = _parser().parse_args(arguments)
    executors = ["forge"] if options.only_forge else ["local", "forge"]
    source = _source(importlib.metadata.version("snakemake"))
    work = CACHE / "run"
    shutil.rmtree(work, ignore_errors=True)
    with ThreadPoolExecutor(len(executors) if options.parallel else 1) as pool:
        runs = {e: pool.submit(_run, e, source, work / e, options) for e in executors}
        results = {e: run.result() for e, run in runs.items()}
    for name, result in _plugin_suite(work, options.timeout).items():
        results["forge"][name] = result
    return _report(results, tomllib.loads(KNOWN.read_text(encoding="utf-8")), work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--only-forge", action="store_true", help="do not compare: every failure counts")
    parser.add_argument("--parallel", action="store_true", help="both executors at the same time")
    parser.add_argument("--timeout", type=int, default=180, help="seconds for one test (default: 180)")
    parser.add_argument("-k", dest="expression", default="", help="choose tests, as for pytest")
    parser.add_argument("files", nargs="*", default=["tests/tests.py"], help="default: tests/tests.py")
    return parser


def _source(version: str) -> Path:
    """Fetch and unpack the source distribution, once."""
    source = CACHE / f"snakemake-{version}"
    if not source.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", str(CACHE), f"snakemake=={version}"], check=True)
        with tarfile.open(CACHE / f"snakemake-{version}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return source


def _run(executor: str, source: Path, work: Path, options: argparse.Namespace) -> dict[str, Result]:
    """All tests, each begun once: pytest is started again behind a test that ended it."""
    work.mkdir(parents=True)
    shutil.copytree(source / "tests", work / "tests")  # some tests write into their own directory
    arguments = [*options.files, *(["-k", options.expression] if options.expression else [])]
    results: dict[str, Result] = {}
    while True:
        _pytest(executor, work, options.timeout, arguments)
        now = _read(work / "results.jsonl")
        if not any(now[test].outcome == "died" for test in now.keys() - results.keys()):
            return now
        results = now


def _pytest(executor: str, work: Path, timeout: int, arguments: list[str]) -> None:
    environment = os.environ | {
        "FORGE_UPSTREAM_EXECUTOR": executor,
        "FORGE_UPSTREAM_RESULTS": str(work / "results.jsonl"),
        "PYTHONPATH": str(HERE),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GIT_CEILING_DIRECTORIES": str(work.parent),
    }
    command = [sys.executable, "-m", "pytest", "-p", "use_executor", "-p", "no:cacheprovider"]
    command += ["-c", os.devnull, "--rootdir", str(work), "--timeout", str(timeout), *arguments]
    with (work / "pytest.log").open("ab") as log:
        subprocess.run(command, cwd=work, env=environment, stdout=log, stderr=log, check=False)


def _plugin_suite(work: Path, timeout: int) -> dict[str, Result]:
    """Run the tests that Snakemake has for executor plugins."""
    directory = work / "plugin"
    directory.mkdir(parents=True)
    shutil.copy(PLUGIN_SUITE, directory / "test_plugin_suite.py")
    _pytest("forge", directory, timeout, ["test_plugin_suite.py"])
    return _read(directory / "results.jsonl")


def _read(path: Path) -> dict[str, Result]:
    if not path.exists():
        raise SystemExit(f"pytest did not even start a test; see {path.with_name('pytest.log')}")
    results: dict[str, Result] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        old = results.get(record["test"])
        if old is None or old.outcome != "failed":
            results[record["test"]] = Result(record["outcome"], record["seconds"], record["text"])
    return results


def _report(results: dict[str, dict[str, Result]], known: dict[str, str], work: Path) -> int:
    forge, local = results["forge"], results.get("local", {})
    groups: dict[str, list[str]] = {}
    for test, result in forge.items():
        groups.setdefault(_group(result, local.get(test), test in known), []).append(test)
    print(f"{'outcome':<30}{'tests':>6}")
    for group, tests in sorted(groups.items()):
        print(f"{group:<30}{len(tests):>6}")
    for test in groups.get("known difference", []):
        print(f"\nknown: {test}\n    {known[test].strip()}")
    for test in sorted(t for t in known if forge.get(t, Result("", 0, "")).outcome == "passed"):
        print(f"\nlisted in known.toml, but passes: {test}")
    for test in groups.get("FAILED ONLY WITH FORGE", []):
        print(f"\nFAILED ONLY WITH FORGE: {test} ({forge[test].outcome})")
        reasons = [line for line in forge[test].text.splitlines() if line.startswith("E  ")]
        print("\n".join(f"    {line}" for line in reasons[:3]))
    print(f"\nSeconds in all: {dict(_seconds(results))}. Details: {work}/*/results.jsonl")
    return 1 if groups.get("FAILED ONLY WITH FORGE") else 0


def _group(forge: Result, local: Result | None, is_known: bool) -> str:
    if forge.outcome in GOOD:
        if local is not None and local.outcome not in GOOD:
            return "failed only with local"
        return f"{forge.outcome} with both" if local is not None else f"{forge.outcome} with forge"
    if local is not None and local.outcome not in GOOD:
        return "failed with both"
    return "known difference" if is_known else "FAILED ONLY WITH FORGE"


def _seconds(results: dict[str, dict[str, Result]]) -> Counter[str]:
    return Counter({e: round(sum(r.seconds for r in tests.values())) for e, tests in results.items()})


if __name__ == "__main__":
    sys.exit(main())
