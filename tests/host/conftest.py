"""The guest as a pytest fixture, booted once per session."""

import os

import pytest

from tests.host import guest_tests
from tests.host.guest_cache import GuestError

REPORTS = pytest.StashKey[list[guest_tests.Report]]()


@pytest.fixture(scope="session")
def guest_reports(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, guest_tests.Report] | str:
    """Give the results of the tests in the guest by user, or say why there are none."""
    try:
        reports = guest_tests.run(
            tmp_path_factory.mktemp("guest"), timeout=float(os.environ.get("FORGE_GUEST_TIMEOUT", "3600"))
        )
    except GuestError as error:
        return str(error)
    request.config.stash[REPORTS] = reports
    return {report.phase.user: report for report in reports}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests ran in the guest, and which were skipped there and why."""
    for report in config.stash.get(REPORTS, []):
        terminalreporter.write_line(f"guest, {report.summary}")
        for case in report.cases:
            if case.outcome == "skipped":
                terminalreporter.write_line(f"guest, as {report.phase.user}, skipped {case.name}: {case.text}")
