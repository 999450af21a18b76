"""Background of the other tests, in a thread of pytest: the guest, and then Snakemake's own feature tests.

The thread begins before the first test, in the first of xdist's workers. The last tests need its results (tests/conftest.py
orders them), perhaps in another worker: files in the workers' shared directory carry them. Guest and feature tests each keep
a core busy for minutes, while the first tests mostly wait for a cluster: docs/decisions/0023.
"""

import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.host import guest, guest_tests
from tests.host.guest_cache import GuestError, which

UPSTREAM = guest.CHECKOUT / "build" / "upstream-venv"


class Background(threading.Thread):
    """A daemon thread: an aborted session does not wait for it, and its child processes end with this process."""

    def __init__(self, share: Path, wanted: set[str], suites: set[str]) -> None:
        super().__init__(name="background", daemon=True)
        self._share, self._wanted, self._suites = share, wanted, suites

    def run(self) -> None:
        """Make the environment of Snakemake's tests beside the guest, which has one core and a half."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        setup = None
        if "upstream" in self._wanted:
            setup = self._start(["make", "upstream-setup", f"PYTHON={sys.executable}"], environment)
        if "guest_reports" in self._wanted:
            _give(self._share, "guest", self._in_guest())
        if setup is not None:
            said, _ = setup.communicate()
            if setup.returncode == 0:
                command = [str(UPSTREAM / "bin/python"), "-m", "tests.upstream", "--work", str(self._share / "upstream")]
                setup = self._start(command, environment)
                said, _ = setup.communicate()
            _give(self._share, "upstream", subprocess.CompletedProcess(setup.args, setup.returncode, said))

    def _in_guest(self) -> list[guest_tests.Report] | Exception:
        try:
            return guest_tests.run(self._share / "guest", self._suites)
        except Exception as error:
            return error

    def _start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [which("setpriv") or "setpriv", "--pdeathsig", "TERM", *command], cwd=guest.CHECKOUT, env=environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
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
    """Start the thread for the chosen tests. The guest is built here, alone: no worker begins before the first has collected."""
    asking = [item for item in session.items if {"guest_reports", "upstream"} & set(getattr(item, "fixturenames", ()))]
    if session.config.option.collectonly or not asking or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return
    wanted = {name for item in asking for name in getattr(item, "fixturenames", ())}
    suites = {str(item.callspec.params["suite"]) for item in asking if isinstance(item, pytest.Function) and hasattr(item, "callspec")}
    share = _share(session.config)
    (share / "guest").mkdir(parents=True)
    try:
        if "guest_reports" in wanted:
            guest.prepare()
    except GuestError as error:
        _give(share, "guest", error)
        wanted.remove("guest_reports")
    Background(share, wanted, suites).start()


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
