"""Helpers that all tests share: they run the real ``snakemake`` and check that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from snakemake_executor_plugin_forge.kernel.process_tree import descendants
from tests import mutations, warm
from tests.slurm.cluster import Cluster, ClusterError

# Root gets other rungs of the ladder; the guest runs these.
collect_ignore = ["integration/test_ladder_user.py"] if os.geteuid() == 0 else []
if "FORGE_GUEST" not in os.environ:  # the guest has a disk that tests may change
    collect_ignore.append("integration/test_io_weight.py")


settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

FORGE = [sys.executable, "-m", "snakemake_executor_plugin_forge.cli.main"]
_ATTEMPTS = ".snakemake/forge/runs/*/*"  # a directory's time changes with each file added to it

# Everything may take this many times longer than on an idle machine: the guest sets it.
PATIENCE = int(os.environ.get("FORGE_TEST_PATIENCE", "1"))
DEADLINE = 300 * max(3, PATIENCE)  # seconds that only a hanging process takes, however busy the machine is


def pytest_configure() -> None:
    """Let signals interrupt tests and their children, also if a shell started pytest in the background."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    warm.install()


def pytest_report_header() -> str:
    """Show the seeds at the beginning: a soak takes hours."""
    return f"FORGE_FUZZ_SEED={mutations.SEED} FORGE_CRASH_SEED={os.environ.get('FORGE_CRASH_SEED', '(the one of each test)')}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Give each worker of xdist whole files, in our order; all tests on the Slurm cluster go to one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            name = nodeid.partition("::")[0]
            return "cluster" if name.startswith(("tests/slurm/", "tests/contract/")) else name

    config.option.loadscopereorder = False
    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect soaks unless ``-m`` asks for them, and tests that this host cannot run; pytest's last line counts them."""
    markers = {"soak"} - {config.option.markexpr}
    if shutil.which("apptainer") is None:
        markers.add("apptainer")
    without = [item for item in items if any(mark.name in markers for mark in item.iter_markers())]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Order: the longest files come first, so that workers end together; tests that need the guest's results come last."""
    if {"guest_reports", "upstream"} & set(getattr(item, "fixturenames", ())):
        return 3
    if item.get_closest_marker("host") is not None:
        return 0
    return 1 if item.get_closest_marker("busy") is not None else 2


@dataclass(frozen=True)
class Result:
    """A finished ``snakemake``."""

    code: int
    output: str
    directory: Path
    _known: dict[tuple[tuple[str, int], ...], list[dict[str, Any]]] = field(default_factory=dict, compare=False)

    def attempts(self, rule: str | None = None) -> list[dict[str, Any]]:
        """The records that ``snakemake-forge jobs --json`` prints, cached until they change.

        Each start of a command takes seconds in the guest.
        """
        state = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(self.directory.glob(_ATTEMPTS)))
        if state not in self._known:
            self._known.clear()
            self._known[state] = json.loads(forge(self.directory, "jobs", "--json").stdout)
            assert not [a["damaged"] for a in self._known[state] if a.get("damaged")], "Forge cannot read its own records"
        return [a for a in self._known[state] if rule is None or a["rule"] == rule]

    def attempt(self, rule: str) -> dict[str, Any]:
        """The only attempt of a rule."""
        (found,) = self.attempts(rule)
        return found

    def event_names(self, rule: str) -> list[str]:
        """The events of the rule's only attempt."""
        text = Path(self.attempt(rule)["directory"], "events.jsonl").read_text()
        return [json.loads(line)["event"] for line in text.splitlines()]

    def read(self, name: str) -> str:
        """The content of an output."""
        return (self.directory / name).read_text()


def forge(
    directory: Path,
    *words: str,
    check: bool = False,
    env: dict[str, str] | None = None,
    before: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``snakemake-forge WORDS`` in that directory to its end."""
    return subprocess.run([*before, *FORGE, *words], cwd=directory, capture_output=True, stdin=subprocess.DEVNULL, text=True,
                          errors="surrogateescape", check=check, timeout=DEADLINE, env=os.environ | (env or {}))


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Poll until the condition holds. It fails the test after DEADLINE, or at once if ``process`` ends before."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        assert process is None or process.poll() is None, "the process ended before"
        time.sleep(0.02)


@contextmanager
def ending(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Kill the process at the end of the block, whatever happens in it."""
    with process:
        try:
            yield
        finally:
            process.kill()


def end_at_once(process: subprocess.Popen[Any]) -> None:
    """Kill Snakemake and all of Forge; SIGSTOP first, so that none sees another one end and clears up."""
    pids = [process.pid, *descendants(process.pid)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    process.wait()


def in_a_terminal(words: list[str], directory: Path) -> tuple[int, str]:
    """Run a command in a new session with a terminal, as a user's window does; return its exit code and its output."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(directory)
        os.execv(words[0], words)
    seen = b""
    try:
        while chunk := os.read(terminal, 65536):
            seen += chunk
    except OSError:  # EIO: no process has it open any more
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode(errors="replace")


def command(executor: str, *arguments: str) -> list[str]:
    """The command line of Snakemake with this interpreter."""
    return [sys.executable, "-m", "snakemake", "--executor", executor, "--scheduler", "greedy", *arguments]


def write_workflow(directory: Path, text: str) -> None:
    """Write a Snakefile into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "Snakefile").write_text(textwrap.dedent(text))


def run(
    directory: Path,
    *arguments: str,
    executor: str = "forge",
    env: dict[str, str] | None = None,
    before: Sequence[str] = (),
) -> Result:
    """Run the workflow in ``directory`` to its end.

    The local executor, the reference, runs again if Snakemake's scheduler leaves jobs unstarted (its issue 823, a race).

    Args:
        before: words before the command: see :func:`.ordinary.prefix`.

    """
    done = subprocess.run(
        [*before, *command(executor, *(arguments or ("-j4",)))],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        check=False,
        timeout=DEADLINE,
        env=os.environ | (env or {}),
    )
    if executor == "local" and done.returncode and "snakemake/issues/823" in done.stdout:
        again = [argument for argument in arguments if argument != "--forceall"]
        return run(directory, *again, executor=executor, env=env, before=before)
    return Result(done.returncode, done.stdout, directory)


def residue(directory: Path) -> list[str]:
    """The leftovers of runs in ``directory``: processes, cgroups, scratch and staging directories."""
    runs = directory / ".snakemake" / "forge" / "runs"
    names = [f"forge-{run.name}" for run in runs.iterdir()] if runs.is_dir() else []
    left = [f"scratch /tmp/{name}" for name in names if Path("/tmp", name).exists()]
    with suppress(FileNotFoundError):
        left += [f"staging {name}" for name in os.listdir(directory / ".snakemake" / "forge" / "staging")]
    for parent, directories, _ in os.walk(directory.parent):
        if parent == str(directory.parent):  # directories of other tests end with a number
            directories[:] = [name for name in directories if name == directory.name or not name[-1].isdigit()]
        left += [f"staging {parent}" for name in directories if name == ".forge-staging"]
    for parent, directories, _ in os.walk("/sys/fs/cgroup"):
        left += [f"cgroup {parent}/{name}" for name in names if name in directories]
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            with suppress(OSError):  # the process has just ended
                if os.readlink(process / "cwd") == str(directory):
                    left.append(f"process {process.name} {(process / 'cmdline').read_bytes()!r}")
    return left


def in_layer(directory: Path, name: str) -> bool:
    """Whether a job's layer has that file, which is not published yet."""
    with suppress(FileNotFoundError):  # a directory was removed during the search
        return any(directory.glob(f".snakemake/forge/staging/*/upper/{name}"))
    return False


def written(directory: Path, name: str) -> bool:
    """Whether a job has written that file, in place or in its layer."""
    return (directory / name).exists() or in_layer(directory, name)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster of two nodes with cgroups, started once. The test fails if it cannot start."""
    made = Cluster()
    try:
        made.start()
    except ClusterError as error:
        made.stop()
        pytest.fail(str(error), pytrace=False)
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A working directory, checked at the end for residue."""
    return tmp_path.resolve()
