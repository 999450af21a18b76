"""Chooses the tests that run in the guest, runs them there, and reads their results.

Marks choose the tests, anywhere in tests/ outside tests/host: `v2` (as root) and `v2_user` (as an ordinary user with a delegated
cgroup) mark tests that need a host with cgroup v2 and systemd; a soak instead takes all tests marked `kernel` and `kernel_user`,
or `security`, except `outside`. Only files whose text has the mark are collected: importing all of them would take a
minute under emulation. guest_selfcheck.py is always among them. Programs that tests start there are forked: tests/warm.py.
"""

import os
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from tests.host import guest
from tests.host.guest_cache import GuestError

SELFCHECK = "guest_selfcheck"
TESTS = guest.CHECKOUT / "tests"
LONGEST = 4000  # characters of one failure's text
# PYTEST_TIMEOUT: seconds for one test. Everything takes about ten times as long as on the host.
COMMAND = """
install -d -o {user} /work/{user}
export PYTEST_TIMEOUT=1500 FORGE_TEST_PATIENCE=5 OPENBLAS_NUM_THREADS=1 HYPOTHESIS_STORAGE_DIRECTORY=/work/{user}/hypothesis
{prefix} "$FORGE_GUEST_PYTHON" -m pytest -v -m "({marker}) and not outside" -p no:cacheprovider \\
  --durations=0 \\
  --basetemp=/work/{user}/tmp --junitxml=/work/{user}/result.xml {files} > /host/{user}.log 2>&1
echo $? > /host/{user}.status
cp /work/{user}/result.xml /host/{user}.xml
"""


@dataclass(frozen=True)
class Phase:
    """One run of pytest in the guest."""

    user: str
    marker: str

    @property
    def files(self) -> list[Path]:
        """The test files that have the marker."""
        used = re.compile(rf"\bmark\.({self.marker.replace(' or ', '|')})\b")
        found = sorted(path for path in TESTS.rglob("test_*.py") if TESTS / "host" not in path.parents)
        return [path for path in found if used.search(path.read_text())]

    @property
    def command(self) -> str:
        """Shell commands that run the tests and leave /host/USER.{xml,log,status}."""
        files = [TESTS / "host" / f"{SELFCHECK}.py", *self.files]
        return COMMAND.format(
            user=self.user,
            marker=self.marker,
            prefix="as-tester" if self.user == "tester" else "",
            files=shlex.join(str(path) for path in files),
        )


SECONDS, SOAK_SECONDS = 3600, 14400
USERS = ("root", "tester")
SUITES = {"v2": ("v2", "v2_user"), "all": ("kernel", "kernel_user"), "security": ("security", "security")}
"""The marks of root's and of the ordinary user's tests, by the suites of test_guest.py."""


def phases(suites: set[str]) -> list[Phase]:
    """The phases of both users, for all suites."""
    marks = (sorted({SUITES[suite][number] for suite in suites}) for number in range(len(USERS)))
    return [Phase(user, " or ".join(chosen)) for user, chosen in zip(USERS, marks, strict=True)]


@dataclass(frozen=True)
class Case:
    """The outcome of one test in the guest: passed, failed or skipped, with the reason."""

    name: str
    outcome: str
    text: str = ""


@dataclass(frozen=True)
class Report:
    """The results of one phase."""

    phase: Phase
    status: str  # pytest's exit status
    cases: list[Case]
    log: str

    def count(self, outcome: str) -> int:
        """The number of tests with this outcome."""
        return sum(case.outcome == outcome for case in self.cases)

    @property
    def summary(self) -> str:
        """One line for the end of the test run."""
        counts = ", ".join(f"{self.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped"))
        return f"as {self.phase.user}: {counts}"

    @property
    def complaint(self) -> str:
        """The full reason why this phase failed; empty if it succeeded."""
        where = f"in the guest, as {self.phase.user}"
        failures: dict[str, list[Case]] = {}  # a broken fixture fails many tests in the same way: print it once
        for case in self.cases:
            if case.outcome == "failed":
                failures.setdefault(re.sub(r"0x[0-9a-f]+", "0x…", case.text), []).append(case)
        if failures:
            names = ("\n".join(f"{case.name} ({where})" for case in cases) for cases in failures.values())
            return "\n\n".join(f"{name}\n{text}" for name, text in zip(names, failures, strict=True))
        end = f"\n--- the last lines of pytest, {where}\n{guest.tail(self.log)}"
        # The self-check belongs to both phases, so neither is empty: pytest's status 5 (no tests) is wrong.
        if self.status != "0":
            return f"pytest {where}, ended with status {self.status or 'none'}{end}"
        passed = [case for case in self.cases if case.outcome == "passed"]
        if not passed:
            return f"no test was executed {where}{end}"
        if self.phase.files and all(SELFCHECK in case.name for case in passed):
            files = "\n".join(str(path) for path in self.phase.files)
            return f"no test marked {self.phase.marker} was executed {where}; such tests are in\n{files}{end}"
        return ""


def run(share: Path, suites: set[str]) -> list[Report]:
    """Boot the guest once and run both phases side by side on its two CPUs. Raise GuestError if that fails."""
    chosen = phases(suites)
    commands = "".join(f"(\n{phase.command}) &\n" for phase in chosen)
    script = f"cd {shlex.quote(str(guest.CHECKOUT))}\n{commands}wait\nexit 0\n"
    try:
        guest.boot(script, share, timeout=float(os.environ.get("FORGE_GUEST_TIMEOUT", SECONDS if suites == {"v2"} else SOAK_SECONDS)), memory="2560M")
    except GuestError as error:
        logs = [
            f"\n--- pytest as {log.stem}, last lines ({log})\n{guest.tail(log.read_text())}"
            for log in share.glob("*.log")
        ]
        raise GuestError(f"{error}{''.join(logs)}") from error
    return [report(phase, share) for phase in chosen]


def report(phase: Phase, share: Path) -> Report:
    """Read the results of a phase from the shared directory."""

    def read(kind: str) -> str:
        path = share / f"{phase.user}.{kind}"
        return path.read_text(errors="replace") if path.exists() else ""

    xml = read("xml")
    found = ET.fromstring(xml).iter("testcase") if xml else iter(())
    return Report(phase, read("status").strip(), [_case(element) for element in found], read("log"))


def _case(element: ET.Element) -> Case:
    """Read one <testcase>. A test with an error in its setup or teardown has failed."""
    name = f"{element.get('classname')}::{element.get('name')}"
    for kind, outcome in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        detail = element.find(kind)
        if detail is not None:
            text = (detail.text or "").strip() or detail.get("message", "")
            return Case(name, outcome, text[-LONGEST:])
    return Case(name, "passed")
