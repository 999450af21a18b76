"""Run Snakemake's own feature tests with Forge, and compare the results with those of Snakemake's local executor.

The tests come from the source distribution of the installed Snakemake. For each version of Snakemake, local.json lists the
tests that fail with ``local``, and those that never use a run's default executor. Both say nothing about Forge and are left
out. ``--afresh`` runs all tests with both executors, and rewrites that file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tests.packages import install

HERE = Path(__file__).resolve().parent
KNOWN, LOCAL = HERE / "known.toml", HERE / "local.json"
PLUGIN_SUITE = HERE / "plugin_suite.py"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "forge-upstream"
PACKAGES = {"rsync": "rsync", "dot": "graphviz", "stress-ng": "stress-ng", "Rscript": "r-base-core"}
"""Program that the tests call to the Debian package that has it."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one test."""

    outcome: str  # passed, failed or skipped
    text: str = ""
    takes: bool = True  # the executor that use_executor.py chooses


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 if a test fails with Forge only and known.toml does not say why it should."""
    options = _parser().parse_args(arguments)
    _install()
    version = importlib.metadata.version("snakemake")
    source = _source(version)
    shutil.rmtree(options.work, ignore_errors=True)
    recorded: dict[str, dict[str, list[str]]] = json.loads(LOCAL.read_text(encoding="utf-8"))
    about = recorded.get(version, {})
    if options.afresh:
        local = _run("local", source, options)
    elif not about:
        print(f"local.json does not know Snakemake {version}: `make upstream` runs the tests with the local executor too")
    known = tomllib.loads(KNOWN.read_text(encoding="utf-8"))
    forge = _run("forge", source, options, without=() if options.afresh else [*chain(*about.values())])
    if options.afresh:
        recorded[version] = about = {
            "failed": sorted(test for test, result in local.items() if result.outcome == "failed"),
            "elsewhere": sorted(test for test, result in forge.items() if result.outcome == "passed" and not result.takes),
        }
        if not options.expression:
            LOCAL.write_text(json.dumps(recorded, indent=1) + "\n", encoding="utf-8")
    forge |= _plugin_suite(options)
    expected = {*known, *about.get("failed", ())}
    lost = [test for test, result in forge.items() if result.outcome == "failed" and test not in expected]
    if alone := [test for test in lost if test.startswith("tests/")]:  # many tests measure time, and two run at once
        again = _run("forge", source, options, again=alone)
        print(*(f"failed once, passed alone: {test}" for test in alone if again[test].outcome != "failed"), sep="\n")
        forge |= again
        lost = [test for test in lost if forge[test].outcome == "failed"]
    _report(forge, known, about, lost)
    print(f"Details: {options.work}")
    return 1 if lost else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.upstream", description=__doc__)
    parser.add_argument("--afresh", action="store_true", help="with the local executor too; rewrites local.json")
    parser.add_argument("--workers", type=int, default=2, help="tests at the same time (default: 2)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one test (default: 600)")
    parser.add_argument("--work", type=Path, default=CACHE / "run", help="an empty directory for the tests")
    parser.add_argument("-k", dest="expression", default="", help="choose tests, as for pytest")
    return parser


def _install() -> None:
    """Install the programs that the tests call, where this is possible."""
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program) is None})
    if missing and (why := install(missing)):
        print(f"Some tests will fail: {' '.join(missing)} could not be installed: {why}")


def _source(version: str) -> Path:
    """Fetch and unpack the source distribution, once."""
    source = CACHE / f"snakemake-{version}"
    if not source.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*command, "--dest", str(CACHE), f"snakemake=={version}"], check=True)
        shutil.unpack_archive(CACHE / f"snakemake-{version}.tar.gz", CACHE)  # tarfile has filters since 3.11.4 only
    return source


def _run(
    executor: str, source: Path, options: argparse.Namespace, again: Sequence[str] = (), without: Sequence[str] = ()
) -> dict[str, Result]:
    """Run all tests except ``without``, or those of ``again`` once more."""
    work: Path = options.work / (f"{executor}-again" if again else executor)
    work.mkdir(parents=True)
    shutil.copytree(source / "tests", work / "tests")  # some tests write into their own directory
    chosen = list(again) or ["tests/tests.py", *(["-k", options.expression] if options.expression else [])]
    chosen += [word for test in without for word in ("--deselect", test)]
    return _pytest(executor, work, options.timeout, 1 if again else options.workers, chosen)


def _plugin_suite(options: argparse.Namespace) -> dict[str, Result]:
    """Run the tests that Snakemake has for executor plugins."""
    work: Path = options.work / "plugin"
    work.mkdir(parents=True)
    shutil.copy(PLUGIN_SUITE, work / "test_plugin_suite.py")
    return _pytest("forge", work, options.timeout, 1, ["test_plugin_suite.py"])


def _pytest(executor: str, work: Path, timeout: int, workers: int, arguments: list[str]) -> dict[str, Result]:
    environment = os.environ | {
        "FORGE_UPSTREAM_EXECUTOR": executor,
        "FORGE_UPSTREAM_RESULTS": str(work / "results.jsonl"),
        "PYTHONPATH": str(HERE),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "GIT_CEILING_DIRECTORIES": str(work.parent),
    }
    environment.pop("CI", None)  # with it Snakemake's tests that need the network do not skip themselves
    command = [sys.executable, "-m", "pytest", "-p", "use_executor", "-p", "no:cacheprovider", "-n", str(workers)]
    command += ["-c", os.devnull, "--rootdir", str(work), "--timeout", str(timeout), *arguments]
    with (work / "pytest.log").open("wb") as log:
        code = subprocess.run(command, cwd=work, env=environment, stdout=log, stderr=log, check=False).returncode
    if code not in (0, 1):
        end = "\n".join((work / "pytest.log").read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"pytest ended with status {code}; see {work}/pytest.log:\n{end}")
    results: dict[str, Result] = {}
    for line in (work / "results.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["test"] not in results or results[record["test"]].outcome != "failed":  # a failed test stays failed
            results[record["test"]] = Result(record["outcome"], record["text"], record["takes"])
    return results


def _report(forge: dict[str, Result], known: dict[str, str], about: dict[str, list[str]], lost: list[str]) -> None:
    failed = {test for test, result in forge.items() if result.outcome == "failed"}
    for test in sorted(failed & known.keys()):
        print(f"known difference: {test}\n    {known[test].strip()}")
    for test in sorted(test for test in known if test in forge and forge[test].outcome == "passed"):
        print(f"listed in known.toml, but passes: {test}")
    for test in sorted(lost):
        lines = forge[test].text.splitlines()
        reasons = [line for line in lines if line.lstrip().startswith("message: ")] or [line for line in lines if line.startswith("E  ")]
        print("\n    ".join([f"FAILED ONLY WITH FORGE: {test}", *reasons[:3]]))
    groups = {
        "passed": sum(result.outcome == "passed" for result in forge.values()),
        "skipped": sum(result.outcome == "skipped" for result in forge.values()),
        "failed with local too": len(failed & set(about.get("failed", ()))),
        "known differences": len(failed & known.keys()),
        "failed only with Forge": len(lost),
        "never take the executor": len(about.get("elsewhere", ())),
    }
    print("Snakemake's own tests: " + ", ".join(f"{count} {group}" for group, count in groups.items()))


if __name__ == "__main__":
    sys.exit(main())
