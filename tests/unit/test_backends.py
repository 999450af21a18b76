"""Parts of backends that need no cluster: the registry, the queue, what travels between hosts, what is concluded."""

from __future__ import annotations

import json
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge import fence
from snakemake_executor_plugin_forge.backends import handover, node, registry, slurm_job
from snakemake_executor_plugin_forge.backends.fake import FakeBackend, Scripted
from snakemake_executor_plugin_forge.backends.launcher import Command
from snakemake_executor_plugin_forge.backends.node_judge import TERMINATED, amend, needs_state, reconcile
from snakemake_executor_plugin_forge.backends.queued import QueuedBackend
from snakemake_executor_plugin_forge.backends.renderer import Renderer
from snakemake_executor_plugin_forge.backends.rooms import Cores
from snakemake_executor_plugin_forge.backends.services import Services
from snakemake_executor_plugin_forge.backends.slurm_copies import bury_copies
from snakemake_executor_plugin_forge.backends.slurm_ledger import Ledger
from snakemake_executor_plugin_forge.backends.slurm_states import SlurmState
from snakemake_executor_plugin_forge.backends.slurm_text import parse_squeue
from snakemake_executor_plugin_forge.errors import HostError, NurseryError, UsageError
from snakemake_executor_plugin_forge.model import Config, LaunchSpec, Limits, Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.sandbox.step_cgroup import Step
from snakemake_executor_plugin_forge.units import MEBIBYTE
from tests.unit.test_slurm_text import spec

VERDICT = Verdict(Outcome.FAILED, "exit code 3", 3, None, Usage(memory_peak_bytes=5, cpu_seconds=0.5), "2026-01-01T00:00:00+00:00",
                  1.5, ("a note",), "an error", "stderr", "/dir", "a remedy", evidence={"stage": "job", "exit_code": 3})


# -- registry


def test_own_backends_are_found_and_near_misses_named() -> None:
    assert registry.names()[:3] == ["local", "slurm", "fake"]
    services = Services("run", "/nowhere", Config(), lambda _payload, _scratch: pytest.fail("not called"), print)
    backend = registry.find("fake")(services)
    assert backend.name == "fake"
    backend.close()
    with pytest.raises(UsageError, match="Did you mean slurm"):
        registry.find("slrum")
    with pytest.raises(UsageError, match="There are local, slurm, fake"):
        registry.find("kubernetes")


def test_a_package_of_somebody_else_registers_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\ntheirs = theirs_backend:open_backend\nbroken = no_such_module:open_backend\n")
    (tmp_path / "theirs_backend.py").write_text("def open_backend(services):\n    return services.run_id\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    services = Services("run-7", "/nowhere", Config(), lambda _payload, _scratch: pytest.fail("not called"), print)
    assert {"theirs", "broken"} <= set(registry.names())
    assert registry.find("theirs")(services) == "run-7"  # type: ignore[comparison-overlap]
    with pytest.raises(UsageError, match="no_such_module"):
        registry.find("broken")


# -- the queue of local rules


@pytest.mark.parametrize("cores", [1, 3, 8])
def test_no_more_jobs_than_cores(cores: int) -> None:
    running, peak, lock, finished = 0, 0, threading.Lock(), threading.Semaphore(0)

    def script(job: LaunchSpec) -> Scripted:
        nonlocal running, peak
        with lock:
            if job.name not in seen:
                seen.add(job.name)
                running += min(job.limits.cpus, cores)
                peak = max(peak, running)
        return Scripted(0.02)

    def done(job: LaunchSpec, verdict: Verdict) -> None:
        nonlocal running
        assert verdict.ok
        finished.release()

    class Counting(FakeBackend):
        def submit(self, spec: LaunchSpec, payload: bytes, done: object, *, is_command: bool) -> None:
            def and_count(verdict: Verdict) -> None:
                nonlocal running
                with lock:
                    running -= min(spec.limits.cpus, cores)
                done(verdict)  # type: ignore[operator]

            super().submit(spec, payload, and_count, is_command=is_command)

    seen: set[str] = set()
    backend = QueuedBackend(Counting(script), Cores(cores))
    for number in range(20):
        job = replace(spec(Limits(None, 1 + number % 4, None, None)), name=f"job{number}")
        backend.submit(job, b"", lambda verdict, job=job: done(job, verdict), is_command=True)  # type: ignore[misc]
    for _ in range(20):
        assert finished.acquire(timeout=30)
    assert backend.wait_idle(10)
    backend.close()
    assert peak <= cores


def test_jobs_that_wait_for_cores_are_cancelled(tmp_path: Path) -> None:
    said: dict[str, Verdict] = {}
    backend = QueuedBackend(FakeBackend(lambda _: Scripted(1000)), Cores(1))
    for number in range(3):
        job = replace(spec(), name=f"job{number}", job_dir=f"{tmp_path}/job{number}", workdir=str(tmp_path))
        backend.submit(job, b"", lambda verdict, job=job: said.update({job.name: verdict}), is_command=True)  # type: ignore[misc]
    backend.cancel("job1", "the test says so")
    backend.cancel_all("Ctrl-C", grace=True)
    assert backend.wait_idle(30)
    backend.close()
    assert {name: verdict.outcome for name, verdict in said.items()} == dict.fromkeys(
        ["job0", "job1", "job2"], Outcome.CANCELLED)
    assert "the test says so, while it waited for a free core" in said["job1"].reason
    assert json.loads((tmp_path / "job2" / "verdict.json").read_text())["outcome"] == "cancelled"


@pytest.mark.timeout(60)
def test_a_ledger_that_is_closed_at_any_moment_ends_its_thread(tmp_path: Path) -> None:
    for _ in range(300):
        ledger = Ledger()
        thread = threading.Thread(target=ledger.listen, daemon=True)
        thread.start()
        ledger.close()
        thread.join(10)
        assert not thread.is_alive()


# -- what travels


def test_a_verdict_survives_the_way() -> None:
    assert handover.decode(json.loads(json.dumps(handover.encode(VERDICT)))) == VERDICT


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)),
       st.sampled_from(sorted(handover.encode(VERDICT))))
def test_what_a_job_may_have_written_cannot_break_the_controller(value: object, key: str) -> None:
    try:
        verdict = handover.decode({**handover.encode(VERDICT), key: value})
    except (ValueError, TypeError, KeyError):
        return
    assert isinstance(verdict.outcome, Outcome)
    assert isinstance(verdict.reason + verdict.stderr_tail + verdict.directory, str)


def test_results_are_taken_once_and_damaged_ones_are_none(tmp_path: Path) -> None:
    state = str(tmp_path)
    attempt = handover.attempt_directory(state, "b1", 7)
    assert handover.new_results(state) == []
    handover.write_result(state, attempt, VERDICT)
    (name,) = handover.new_results(state)
    assert name == handover.result_name(attempt) == "b1.7.json"
    assert handover.take_result(state, name) == VERDICT
    assert handover.take_result(state, name) is None
    (tmp_path / "results" / "b1.8.json").write_text("{")
    assert handover.take_result(state, "b1.8.json") is None


def test_a_launch_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="file system that the nodes share"):
        handover.read_launch(str(tmp_path / "nowhere"))


def test_each_copy_has_a_record_and_a_scratch_of_its_own(tmp_path: Path) -> None:
    planned = replace(spec(), scratch_base=f"{tmp_path}/forge-run", exposed=(str(tmp_path), "/tmp/not-on-this-node"))
    first, second = (node.own_spec(planned, "run", fence.Claim("/r/slurm/b1/7", n, "")) for n in (1, 2))
    assert (first.job_dir, second.job_dir) == (planned.job_dir, f"{planned.job_dir}.copy2")
    assert first.scratch_base != second.scratch_base
    assert first.scratch_base.endswith("/forge-run@b1.7.1")
    assert first.exposed == (str(tmp_path),)
    assert second.environment["FORGE_JOB_DIR"] == second.job_dir


def test_a_scratch_that_this_node_does_not_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    there = node.own_spec(replace(spec(), scratch_base="/login-node-only/forge-run"), "run", fence.Claim("/r/slurm/b1/7", 1, ""))
    assert there.scratch_base.startswith(f"{tmp_path}/forge-run@")


def test_the_scratch_is_put_into_the_command(tmp_path: Path) -> None:
    command = Command("/bin/sh", ("/bin/sh", "-c", f'echo "$TMPDIR" /here/x > {tmp_path}/out'), str(tmp_path),
                      {"TMPDIR": "/here"}, ())
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        result = node.execute(node.with_scratch(pickle.dumps(command), "/here"), {"TMPDIR": "/there"}, "/idle")
        os.write(write_end, json.dumps(result["exit_code"]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read_end, 10) == b"0"
    os.close(read_end)
    os.close(write_end)
    assert (tmp_path / "out").read_text() == "/there /there/x\n"


# -- what is concluded


def step(kills: int) -> Step:
    return Step("/sys/fs/cgroup/memory/slurm", "/sys/fs/cgroup/memory", 1, kills, 90 * MEBIBYTE, 100 * MEBIBYTE)


def test_a_kill_by_slurms_own_limit_is_out_of_memory() -> None:
    verdict = amend(VERDICT, spec(), step(1), 10)
    assert verdict.outcome is Outcome.OOM
    assert verdict.reason == "out of memory: the Slurm job reached its memory limit of 100.0 MiB; raise the rule's mem_mb"
    assert verdict.evidence["limit_bytes"] == 100 * MEBIBYTE
    assert amend(VERDICT, spec(), step(0), 10) is VERDICT
    assert amend(VERDICT, spec(), None, 10) is VERDICT
    setup = replace(VERDICT, evidence={"stage": "setup"})
    assert amend(setup, spec(), step(1), 10) is setup


def test_what_slurm_ended_near_its_time_limit_timed_out() -> None:
    ended = replace(VERDICT, outcome=Outcome.CANCELLED, reason=f"cancelled after 60 s: {TERMINATED}")
    limited = spec(Limits(None, 1, None, 60.0))
    assert amend(ended, limited, None, 59).outcome is Outcome.TIMEOUT
    assert amend(ended, limited, None, 20) is ended
    assert needs_state(ended)
    assert not needs_state(amend(ended, limited, None, 59))


@pytest.mark.parametrize(("state", "outcome"), [
    (SlurmState.PREEMPTED, Outcome.CANCELLED), (SlurmState.TIMEOUT, Outcome.TIMEOUT),
    (SlurmState.OUT_OF_MEMORY, Outcome.OOM), (SlurmState.CANCELLED, Outcome.CANCELLED),
    (SlurmState.COMPLETED, Outcome.CANCELLED), (SlurmState.RUNNING, Outcome.CANCELLED), (None, Outcome.CANCELLED)])
def test_slurm_knows_why_it_ended_a_job(state: SlurmState | None, outcome: Outcome) -> None:
    ended = replace(VERDICT, outcome=Outcome.CANCELLED, reason=f"cancelled after 1 s: {TERMINATED}")
    assert reconcile(ended, state).outcome is outcome
    assert reconcile(VERDICT, state) is VERDICT


@pytest.mark.parametrize("state", list(SlurmState))
def test_a_job_without_a_result_is_never_a_success(tmp_path: Path, state: SlurmState) -> None:
    attempt = tmp_path / "slurm" / "b1" / "0"
    attempt.mkdir(parents=True)
    (attempt / "batch-1.out").write_text("first\nlast words\n")
    planned = replace(spec(), job_dir=f"{tmp_path}/00001-map", workdir=str(tmp_path))
    job = slurm_job.Job(planned, b"", lambda _: None, (), 0.0, attempt=str(attempt), batch="b1", slurm_id="1")
    (row,) = parse_squeue(f"1|1|N/A|{state}|None|2026-01-01T00:00:00|n1|forge-x.b1")
    verdict = slurm_job.verdict_without_result(job, row)
    assert not verdict.ok
    assert "last words" in verdict.reason
    assert json.loads((tmp_path / "00001-map" / "verdict.json").read_text())["outcome"] == verdict.outcome


def test_superseded_copies_get_a_verdict(tmp_path: Path) -> None:
    attempt = str(tmp_path / "slurm" / "b1" / "0")
    assert fence.claim(attempt, "first")
    assert fence.claim(attempt, "second")
    planned = replace(spec(), job_dir=f"{tmp_path}/00001-map", workdir=str(tmp_path))
    for name in ("00001-map", "00001-map.copy2"):
        (tmp_path / name).mkdir()
    bury_copies(planned, attempt, replace(VERDICT, directory=f"{tmp_path}/00001-map.copy2"))
    assert json.loads((tmp_path / "00001-map" / "verdict.json").read_text())["outcome"] == "lost"
    assert not (tmp_path / "00001-map.copy2" / "verdict.json").exists()


# -- the process that renders


def test_commands_are_rendered_in_a_process_of_their_own() -> None:
    def render(call: bytes, scratch: str) -> Command | None:
        return Command("/bin/sh", (call.decode(), scratch, str(os.getpid())), "/", {}, ()) if call != b"no" else None

    renderer = Renderer(lambda: None, render)
    inner = Command("/bin/bash", ("inner",), "/", {}, ())
    try:
        command, how = renderer.command(pickle.dumps((b"yes", inner)), "/scratch")
        assert command.arguments[:2] == ("yes", "/scratch")
        assert int(command.arguments[2]) != os.getpid()
        assert how == "launcher"
        for call in (b"no", None):
            command, how = renderer.command(pickle.dumps((call, inner)), "/scratch")
            assert command == inner
            assert how.startswith("inner snakemake")
    finally:
        renderer.close()


def test_a_dead_renderer_is_an_error_and_no_hang() -> None:
    def render(call: bytes, scratch: str) -> Command | None:
        os._exit(1)

    renderer = Renderer(lambda: None, render)
    with pytest.raises(NurseryError, match="was killed"):
        renderer.command(pickle.dumps((b"yes", Command("/bin/sh", (), "/", {}, ()))), "/scratch")
    renderer.close()
