"""The guest and Snakemake's own feature tests run beside the other tests, each in a thread of pytest's.

Both begin before the first test, in the first of xdist's workers; the last tests ask for their results (tests/conftest.py
orders them), perhaps in another worker, so files in the session's common directory carry them: docs/decisions/0023.
"""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.host import guest, guest_tests
from tests.host.guest_cache import GuestError, which

UPSTREAM = guest.CHECKOUT / "build" / "upstream-venv"


def _begin(work: Callable[..., None], *arguments: object) -> None:
    """Start a daemon thread: an interrupted session does not wait for it, and what it has started ends with this process."""
    threading.Thread(target=work, args=arguments, name=work.__name__, daemon=True).start()


def _run_guest(share: Path, suites: set[str]) -> None:
    result: list[guest_tests.Report] | Exception
    try:
        result = guest_tests.run(share / "guest", suites)
    except Exception as error:
        result = error
    _give(share, "guest", result)


def _run_upstream(share: Path) -> None:
    done = _end_of(["make", "upstream-setup", f"PYTHON={sys.executable}"])
    if done.returncode == 0:
        done = _end_of([str(UPSTREAM / "bin/python"), "-m", "tests.upstream", "--work", str(share / "upstream")])
    _give(share, "upstream", done)


def _end_of(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that ends when the calling thread does."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [which("setpriv") or "setpriv", "--pdeathsig", "TERM", *command], cwd=guest.CHECKOUT, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def _share(config: pytest.Config) -> Path:
    """The directory that all workers of this session and their parent process share."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # as pytest itself
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "host"


def _give(share: Path, name: str, result: object) -> None:
    (share / f"{name}.new").write_bytes(pickle.dumps(result))
    (share / f"{name}.new").rename(share / f"{name}.pickle")


def _result(share: Path, name: str, *, wait: bool) -> Any:
    """The thread's result of that name; None if there is none yet and ``wait`` is false."""
    path = share / f"{name}.pickle"
    while wait and not path.exists():
        time.sleep(0.5)
    return pickle.loads(path.read_bytes()) if path.exists() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the threads for the chosen tests."""
    asking = [item for item in session.items if {"guest_reports", "upstream"} & set(getattr(item, "fixturenames", ()))]
    if session.config.option.collectonly or not asking or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return
    wanted = {name for item in asking for name in getattr(item, "fixturenames", ())}
    suites = {str(item.callspec.params["suite"]) for item in asking if isinstance(item, pytest.Function) and hasattr(item, "callspec")}
    share = _share(session.config)
    (share / "guest").mkdir(parents=True)
    if "guest_reports" in wanted:
        _begin(_run_guest, share, suites)
    if "upstream" in wanted:
        _begin(_run_upstream, share)


@pytest.fixture(scope="session")
def guest_reports(request: pytest.FixtureRequest) -> dict[str, guest_tests.Report] | str:
    """The results of the tests in the guest by user, or the reason why there are none."""
    found: list[guest_tests.Report] | Exception = _result(_share(request.config), "guest", wait=True)
    if isinstance(found, GuestError):
        return str(found)
    if isinstance(found, Exception):
        raise found
    return {report.phase.user: report for report in found}


@pytest.fixture(scope="session")
def upstream(request: pytest.FixtureRequest) -> subprocess.CompletedProcess[str]:
    """The exit code and output of Snakemake's own tests."""
    done: subprocess.CompletedProcess[str] = _result(_share(request.config), "upstream", wait=True)
    return done


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests ran in the guest, which were skipped there and why, and how Snakemake's own tests went."""
    share = _share(config)
    reports = _result(share, "guest", wait=False)
    for report in reports if isinstance(reports, list) else ():
        terminalreporter.write_line(f"guest, {report.summary}")
        for case in report.cases:
            if case.outcome == "skipped":
                terminalreporter.write_line(f"guest, as {report.phase.user}, skipped {case.name}: {case.text}")
    done = _result(share, "upstream", wait=False)
    if done is not None:
        terminalreporter.write_line(done.stdout.rstrip())
