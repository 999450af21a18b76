"""The promises of every backend, tested with each of them: local, behind a queue, adopting, slurm, fake.

docs/explanation/backends.md describes them. The author of a new backend adds it to BACKENDS.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from snakemake_executor_plugin_forge.backends.local import backend as backend_module
from snakemake_executor_plugin_forge.backends.local.admission import QueuedBackend, by_cores
from snakemake_executor_plugin_forge.backends.local.adoption import AdoptingBackend
from snakemake_executor_plugin_forge.backends.local.backend import LocalBackend
from snakemake_executor_plugin_forge.backends.registry import Services
from snakemake_executor_plugin_forge.backends.slurm.backend import SlurmBackend
from snakemake_executor_plugin_forge.kernel.process_tree import children, command_name
from snakemake_executor_plugin_forge.spec.backend import Backend
from snakemake_executor_plugin_forge.spec.errors import NurseryError
from snakemake_executor_plugin_forge.spec.job import Config, JobRequest, LaunchSpec, RunContext
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order, Outcome, Verdict
from snakemake_executor_plugin_forge.workers import launcher
from snakemake_executor_plugin_forge.workers.launcher import Command
from snakemake_executor_plugin_forge.workers.nursery import NurserySetup
from tests.conftest import DEADLINE, wait_until, written
from tests.contract.fake import FakeBackend, Scripted
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slow

BACKENDS = ["local", "queued", "adopting", pytest.param("slurm", marks=pytest.mark.host), "fake"]
ORDER = Order(EndedBy.USER, "the test says so")
RUN = "20260101-000000-1-cafe"


@dataclass
class Stage:
    """One backend in its own directory, and its verdicts and notices."""

    backend: Backend
    place: Path
    count: int = 0
    said: dict[str, list[Verdict]] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    notices: list[str] = field(default_factory=list)

    def start(self, command: str, rule: str = "job", **resources: object) -> str:
        """Submit a shell command."""
        self.count += 1
        run = RunContext(RUN, str(self.place), f"{self.place}/.snakemake/forge", (str(self.place),))
        request = JobRequest(rule, {}, 1, 1, {"tmpdir": "/tmp", **resources}, command)
        spec = replace(plan(request, self.count, command, "launcher", Config(), self.backend.host, run),
                       resources=resources)
        shell = Command("/bin/bash", ("/bin/bash", "-c", command), str(self.place), {}, ())

        def done(verdict: Verdict) -> None:
            self.threads.add(threading.get_ident())
            self.said.setdefault(spec.name, []).append(verdict)
            assert rule != "bug", "a bug of Forge"

        self.backend.submit(spec, pickle.dumps(shell), done, is_command=True)
        return spec.name

    def verdict(self, name: str) -> Verdict:
        """Wait for the job's only verdict."""
        wait_until(lambda: name in self.said)
        (verdict,) = self.said[name]
        return verdict


def _script(spec: LaunchSpec) -> Scripted:
    """The effect of these tests' commands, for the backend that runs nothing."""
    command = spec.command or ""
    if "exit 3" in command:
        return Scripted(0.05, Outcome.FAILED, "exited with 3", 3)
    return Scripted(1000 if "sleep 1000" in command else 0.05)


def _nothing() -> None:
    """Do nothing: there is no Snakemake to disconnect from."""


def _command(payload: bytes, scratch: str) -> Command:
    del scratch
    command: Command = pickle.loads(payload)
    return command


def _setup(place: Path, prepare: Callable[[], None] = _nothing) -> NurserySetup:
    return NurserySetup(RUN, str(place), "90%", None, (), (), prepare, launcher.execute, _command)


@pytest.fixture(params=BACKENDS)
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    place = tmp_path.resolve()
    run_dir = place / ".snakemake/forge/runs" / RUN
    run_dir.mkdir(parents=True)
    notices: list[str] = []
    backend: Backend
    match request.param:
        case "local" | "queued" | "adopting":
            backend = LocalBackend(_setup(place), notices.append)
            if request.param == "queued":
                backend = QueuedBackend(backend, by_cores(2))
            elif request.param == "adopting":
                backend = AdoptingBackend(backend, [], RUN, notices.append, lambda _: None)
        case "slurm":
            cluster: Cluster = request.getfixturevalue("cluster")
            for name, value in cluster.environment.items():
                monkeypatch.setenv(name, value)
            services = Services(RUN, str(run_dir), Config(backend="slurm"),
                                lambda payload, scratch: (_command(payload, scratch), "launcher"), notices.append)
            backend = SlurmBackend(services)
        case _:
            backend = FakeBackend(_script)
    made = Stage(backend, place, notices=notices)
    try:
        yield made
    finally:
        backend.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("forge-")], "close() leaves no thread"


def runs_things(stage: Stage) -> bool:
    return stage.backend.name != "fake"


def test_a_job_that_succeeds_and_one_that_fails(stage: Stage) -> None:
    name = stage.start('echo "$TMPDIR" "$FORGE_CPUS" > out; test -w "$TMPDIR"')
    verdict = stage.verdict(name)
    assert verdict.outcome is Outcome.SUCCEEDED, verdict
    assert verdict.exit_code == 0
    if runs_things(stage):
        assert (stage.place / "out").read_text().endswith(" 1\n")
        assert verdict.directory
        assert os.path.exists(f"{verdict.directory}/verdict.json")
    verdict = stage.verdict(stage.start("echo oh no >&2; exit 3"))
    assert (verdict.outcome, verdict.exit_code) == (Outcome.FAILED, 3)
    if runs_things(stage):
        assert "oh no" in verdict.stderr_tail


def test_every_job_has_one_verdict_in_a_thread_of_the_backends_own(stage: Stage) -> None:
    names = [stage.start("exit 3" if number % 3 == 0 else "true") for number in range(10)]
    outcomes = [stage.verdict(name).outcome for name in names]
    assert outcomes == [Outcome.FAILED if number % 3 == 0 else Outcome.SUCCEEDED for number in range(10)]
    assert stage.backend.wait_idle(DEADLINE)
    assert all(len(said) == 1 for said in stage.said.values())
    assert threading.get_ident() not in stage.threads


def test_one_job_is_cancelled_and_the_others_go_on(stage: Stage) -> None:
    ended, other = stage.start("touch begun; sleep 1000"), stage.start("sleep 1; true")
    if runs_things(stage):
        wait_until(lambda: written(stage.place, "begun"))
    stage.backend.cancel(ended, ORDER)
    verdict = stage.verdict(ended)
    assert verdict.outcome is Outcome.CANCELLED
    assert ORDER.words in verdict.reason
    assert stage.verdict(other).outcome is Outcome.SUCCEEDED
    left = stage.start("touch left; sleep 1000")
    if runs_things(stage):
        wait_until(lambda: written(stage.place, "left"))
    stage.backend.cancel_all(replace(ORDER, grace=False))
    assert stage.verdict(left).outcome is Outcome.CANCELLED


def test_all_are_cancelled_whatever_they_are_doing(stage: Stage) -> None:
    names = [stage.start("trap '' TERM; sleep 1000", rule=f"job{number}") for number in range(4)]
    stage.backend.cancel_all(ORDER)
    assert stage.backend.wait_idle(DEADLINE)
    verdicts = [stage.verdict(name) for name in names]
    assert {verdict.outcome for verdict in verdicts} == {Outcome.CANCELLED}
    assert all(ORDER.words in verdict.reason for verdict in verdicts)


def test_cancelling_what_is_not_there_is_no_error(stage: Stage) -> None:
    name = stage.start("true")
    stage.verdict(name)
    assert stage.backend.wait_idle(DEADLINE)
    stage.backend.cancel(name, ORDER)
    stage.backend.cancel("never-heard-of", ORDER)
    stage.backend.cancel_all(replace(ORDER, grace=False))
    assert stage.verdict(stage.start("true")).outcome is Outcome.SUCCEEDED


def test_idle(stage: Stage) -> None:
    """Submitting and cancelling return at once; the backend becomes idle later."""
    assert stage.backend.wait_idle(0)
    begin = time.monotonic()
    name = stage.start("sleep 1000")
    assert not stage.backend.wait_idle(0.1)
    stage.backend.cancel(name, ORDER)
    assert time.monotonic() - begin < 500  # the job takes 1000
    assert stage.backend.wait_idle(DEADLINE)
    assert name in stage.said, "done is called before the backend is idle"


@pytest.mark.parametrize("stage", ["local"], indirect=True)
def test_after_a_bug_in_its_thread_every_job_has_a_verdict(stage: Stage) -> None:
    """The nursery and all jobs end, and no caller waits forever."""
    name = stage.start("sleep 1000")
    stage.verdict(stage.start("true", rule="bug"))
    assert "a thread of Forge failed: AssertionError" in stage.verdict(name).reason
    assert stage.verdict(stage.start("true")).outcome is Outcome.LOST
    assert stage.backend.wait_idle(DEADLINE)


@pytest.mark.parametrize("stage", ["local"], indirect=True)
def test_nobody_waits_for_a_job_whose_submission_ctrl_c_has_cut_short(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(LocalBackend, "_put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage.start("true")
    assert stage.backend.wait_idle(DEADLINE)


def test_a_nursery_that_hangs_is_named_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if a thread of the backend waits to send to it."""
    monkeypatch.setattr(backend_module, "_ORPHAN_SECONDS", 1.0)
    notices: list[str] = []
    backend = LocalBackend(_setup(tmp_path.resolve()), notices.append)
    (nursery,) = (pid for pid in children(os.getpid()) if command_name(pid) == "forge-nursery")
    os.kill(nursery, signal.SIGSTOP)
    try:
        backend.cancel_all(replace(ORDER, words="x" * (1 << 20)))
        backend.close()
    finally:
        os.kill(nursery, signal.SIGCONT)
    (notice,) = notices
    assert f"{nursery} (forge-nursery, state T)" in notice
    os.waitpid(nursery, 0)


def test_a_nursery_that_does_not_start_leaves_the_program_as_it_was(tmp_path: Path) -> None:
    """In a process of its own: threads of pytest start and end others meanwhile."""
    script = f"from {__name__} import refuse_nursery; refuse_nursery({str(tmp_path.resolve())!r})"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], timeout=DEADLINE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def refuse_nursery(place: str) -> None:
    """Start a nursery that dies, and compare this process with what it was before."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})

    def state() -> list[object]:
        return [signal.pthread_sigmask(signal.SIG_BLOCK, ()), gc.get_freeze_count(), sorted(children(os.getpid())), sorted(os.listdir("/proc/self/fd"))]

    before = state()
    with pytest.raises(NurseryError, match="died while it probed"):
        LocalBackend(_setup(Path(place), lambda: os._exit(3)), print)
    assert state() == before
