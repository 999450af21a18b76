"""Tests of Forge in a Debian guest with systemd and pure cgroup v2: guest_tests.py says which.

These tests fail on a host that cannot run the guest: untested containment is not known to work.
FORGE_GUEST_TIMEOUT is the number of seconds that the guest may take (3600; for a soak 14,400).
"""

from pathlib import Path

import pytest

from tests.host import guest, guest_tests
from tests.host.guest_cache import GuestError

pytestmark = [pytest.mark.host, pytest.mark.timeout(15000)]


@pytest.mark.parametrize("suite", [pytest.param(suite, marks=[pytest.mark.soak] * (suite != "v2")) for suite in guest_tests.SUITES])
@pytest.mark.parametrize("user", guest_tests.USERS)
def test_in_guest(user: str, suite: str, guest_reports: dict[str, guest_tests.Report] | str) -> None:
    """Every chosen test passes in the guest, and there were some."""
    if isinstance(guest_reports, str):
        pytest.fail(guest_reports, pytrace=False)
    complaint = guest_reports[user].complaint
    if complaint:
        pytest.fail(complaint, pytrace=False)


# Only bfq: the cost model belongs to version 2.
WEIGHTS = """
cd "$FORGE_GUEST_CHECKOUT"
install -d /work/root
export PYTEST_TIMEOUT=600 FORGE_TEST_PATIENCE=3 HYPOTHESIS_STORAGE_DIRECTORY=/work/root/hypothesis
grep -q ' /sys/fs/cgroup/blkio cgroup ' /proc/mounts || exit 1
"$FORGE_GUEST_PYTHON" -m pytest -rP -m kernel -p no:cacheprovider --basetemp=/work/root/tmp -k "jobs and bfq" \
  tests/integration/test_io_weight.py
"""


@pytest.mark.soak
def test_weights_for_io_under_cgroup_v1(tmp_path: Path) -> None:
    """The test has its own guest: tests may not change this host's disks, whatever version its cgroups have."""
    try:
        done = guest.boot(WEIGHTS, tmp_path, kernel=guest.CGROUP_V1)
    except GuestError as error:
        pytest.fail(str(error), pytrace=False)
    assert done.status == 0, done.output
    assert "1 passed" in done.output
    print(done.output)
