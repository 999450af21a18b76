"""The tests marked `kernel` and `kernel_user`, in a Debian guest with systemd and pure cgroup v2.

A host that cannot have the guest fails these tests: containment that was not tried is not known to work.
FORGE_GUEST_TIMEOUT is the number of seconds that the guest may take (3600).
"""

import pytest

from tests.host import guest_tests

pytestmark = [pytest.mark.host, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("user", [phase.user for phase in guest_tests.PHASES])
def test_in_guest(user: str, guest_reports: dict[str, guest_tests.Report] | str) -> None:
    """Every chosen test passes in the guest, and some were run."""
    if isinstance(guest_reports, str):
        pytest.fail(guest_reports, pytrace=False)
    complaint = guest_reports[user].complaint
    if complaint:
        pytest.fail(complaint, pytrace=False)
