"""The guest as a pytest fixture: booted once per session, before the first test, and asked after the last one.

Emulation takes longer than anything else in these tests; tests/conftest.py puts them into an order that suits it.
"""

import os
import threading
from pathlib import Path

import pytest

from tests.conftest import wants_guest
from tests.host import guest, guest_tests
from tests.host.guest_cache import GuestError


class Guest(threading.Thread):
    """One run of the guest, beside the other tests. A daemon: a session that is broken off does not wait for it."""

    def __init__(self, share: Path) -> None:
        super().__init__(name="guest", daemon=True)
        self._share = share
        self.reports: list[guest_tests.Report] = []
        self.problem: Exception | None = None

    def run(self) -> None:
        """Boot it and read what it says."""
        try:
            self.reports = guest_tests.run(self._share, timeout=float(os.environ.get("FORGE_GUEST_TIMEOUT", "3600")))
        except Exception as error:
            self.problem = error


GUEST = pytest.StashKey[Guest]()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Boot the guest if a chosen test wants it. Built now, alone: it is made from files that no test may touch then."""
    if session.config.option.collectonly or not any(map(wants_guest, session.items)):
        return
    made = Guest(session.config._tmp_path_factory.mktemp("guest"))  # type: ignore[attr-defined]  # as pytest itself
    session.config.stash[GUEST] = made
    try:
        guest.prepare()
    except GuestError as error:
        made.problem = error
    else:
        made.start()


@pytest.fixture(scope="session")
def guest_reports(request: pytest.FixtureRequest) -> dict[str, guest_tests.Report] | str:
    """Give the results of the tests in the guest by user, or say why there are none."""
    made = request.config.stash[GUEST]
    if made.is_alive():
        made.join()
    if isinstance(made.problem, GuestError):
        return str(made.problem)
    if made.problem is not None:
        raise made.problem
    return {report.phase.user: report for report in made.reports}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests ran in the guest, and which were skipped there and why."""
    made = config.stash.get(GUEST, None)
    for report in made.reports if made is not None else ():
        terminalreporter.write_line(f"guest, {report.summary}")
        for case in report.cases:
            if case.outcome == "skipped":
                terminalreporter.write_line(f"guest, as {report.phase.user}, skipped {case.name}: {case.text}")
