"""Parts of backends that need no cluster: the registry, the job table, files between hosts, conclusions."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snakemake_executor_plugin_forge.backends import registry
from snakemake_executor_plugin_forge.backends.registry import Services
from snakemake_executor_plugin_forge.backends.slurm import client, exchange, execution, fence, node
from snakemake_executor_plugin_forge.backends.slurm import job as slurm_job
from snakemake_executor_plugin_forge.backends.slurm.job import Job, script
from snakemake_executor_plugin_forge.backends.slurm.job_table import JobTable
from snakemake_executor_plugin_forge.backends.slurm.parse import parse_squeue
from snakemake_executor_plugin_forge.backends.slurm.states import SlurmState
from snakemake_executor_plugin_forge.backends.slurm.verdicts import amend, needs_state, reconcile
from snakemake_executor_plugin_forge.kernel.process_tree import is_dead
from snakemake_executor_plugin_forge.sandbox.cgroups.slurm_step import StepCgroup
from snakemake_executor_plugin_forge.spec.errors import HostError, NurseryError, UsageError
from snakemake_executor_plugin_forge.spec.job import Config, Limits, Require
from snakemake_executor_plugin_forge.spec.slurm import SlurmSettings
from snakemake_executor_plugin_forge.spec.units import MEBIBYTE
from snakemake_executor_plugin_forge.spec.verdict import EndedBy, Order, Outcome, Usage, Verdict
from snakemake_executor_plugin_forge.workers.launcher import Command
from snakemake_executor_plugin_forge.workers.renderer import Renderer
from tests.conftest import DEADLINE, wait_until
from tests.contract import fake
from tests.unit.test_slurm_parse import spec

ORDER = Order(EndedBy.USER, "the test says so")
VERDICT = Verdict(Outcome.FAILED, "exit code 3", 3, None, Usage(memory_peak_bytes=5, cpu_seconds=0.5), "2026-01-01T00:00:00+00:00",
                  1.5, ("a note",), "an error", "stderr", "/dir", "a remedy", evidence={"stage": "job", "exit_code": 3})


# -- registry


def test_backends_are_found_and_near_misses_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry has Forge's own backends, and those that other packages register by entry points."""
    assert registry.names()[:2] == ["local", "slurm"]
    with pytest.raises(UsageError, match="Did you mean slurm"):
        registry.find("slrum")
    with pytest.raises(UsageError, match="Known are local, slurm"):
        registry.find("fake")
    monkeypatch.syspath_prepend(str(Path(fake.__file__).parent / "registered"))
    services = Services("run", "/nowhere", Config(), lambda _payload, _scratch: pytest.fail("not called"), print)
    assert {"fake", "broken"} <= set(registry.names())
    backend = registry.find("fake")(services)
    assert backend.name == "fake"
    backend.close()
    with pytest.raises(UsageError, match="no_such_module"):
        registry.find("broken")


def test_a_job_table_that_is_closed_at_any_moment_ends_its_thread() -> None:
    for _ in range(300):
        table = JobTable()
        thread = threading.Thread(target=table.listen, daemon=True)
        thread.start()
        table.close()
        thread.join(DEADLINE)
        assert not thread.is_alive()


# -- files between hosts


def test_results_are_taken_once_and_damaged_ones_are_none(tmp_path: Path) -> None:
    state = str(tmp_path)
    attempt = exchange.attempt_directory(state, "b1", 7, None)
    assert exchange.new_results(state) == []
    exchange.write_result(state, attempt, VERDICT)
    (name,) = exchange.new_results(state)
    assert name == exchange.result_name(attempt) == "b1.7.json"
    assert exchange.take_result(state, name) == VERDICT
    assert exchange.take_result(state, name) is None
    exchange.write_result(state, attempt, replace(VERDICT, undeclared_writes=("x" * 100,) * 60_000))
    assert (taken := exchange.take_result(state, name)) is not None
    assert (taken.outcome, len(taken.undeclared_writes)) == (VERDICT.outcome, 10)
    (tmp_path / "results" / "b1.8.json").write_text("{")
    assert exchange.take_result(state, "b1.8.json") is None
    assert exchange.new_results(state) == []


def test_a_verdict_outlives_files_that_cannot_be_read_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of results, a result in it, and the claims of its attempt fail once each."""
    table, found, state = JobTable(), list[Verdict](), str(tmp_path)
    job = Job(spec(), b"", found.append, (), 0.0, attempt=exchange.attempt_directory(state, "b1", 7, None))
    exchange.write_result(state, job.attempt, VERDICT)
    failing = {name: [OSError(number, os.strerror(number))] for name, number in
               ((f"{state}/results", errno.ESTALE), (f"{state}/results/b1.7.json", errno.EMFILE), (f"{job.attempt}/claims", errno.EIO))}

    def once(name: str, call: Callable[..., Any]) -> None:
        def wrapped(path: Any, *rest: Any) -> Any:
            if failing.get(path):
                raise failing[path].pop()
            return call(path, *rest)
        monkeypatch.setattr(os, name, wrapped)

    once("listdir", os.listdir)
    once("open", os.open)
    table.add(job)
    table.was_sent(job)
    thread = threading.Thread(target=table.listen, daemon=True)
    thread.start()
    assert table.wait_idle(DEADLINE)
    table.close()
    thread.join(DEADLINE)
    assert found == [VERDICT]
    assert not any(failing.values())


def test_what_sbatch_is_told(tmp_path: Path) -> None:
    job = Job(spec(), b"", lambda _: None, (), 0.0, batch="b1")
    assert "--output=/50%%a/slurm/b1/%a/batch-%A_%a.out" in slurm_job.own_arguments("n", "/50%a/slurm", [job], SlurmSettings(), is_array=True)


def test_a_cluster_that_is_full_is_no_controller_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With MaxJobCount jobs in the queue, sbatch itself retries for longer than Forge waits for it."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(client, "_SECONDS", 0.5)
    for said, kind in (("Slurm temporarily unable to accept job, sleeping and retrying", client.Full), ("", client.Unanswered)):
        (tmp_path / "sbatch").write_text(f"#!/bin/sh\necho 'sbatch: error: {said}' >&2\nexec sleep 1000\n")
        (tmp_path / "sbatch").chmod(0o755)
        with pytest.raises(kind):
            client.SlurmClient().submit((), "")


def test_the_accounting_is_asked_for_whole_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 task ids are longer than one argument may be."""
    asked: list[str] = []

    def run(_: object, *command: str) -> subprocess.CompletedProcess[str]:
        asked.extend(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(client.SlurmClient, "_run", run)
    client.SlurmClient().used([f"{12345600 + n // 1000}_{n % 1000}" for n in range(10_000)])
    assert asked[-1] == "--jobs=" + ",".join(str(12345600 + n) for n in range(10))


def test_a_launch_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="file system that the nodes share"):
        exchange.read_launch(str(tmp_path / "nowhere"), "")


def test_a_launch_that_a_job_has_written_is_not_read(tmp_path: Path) -> None:
    """The launch is a pickle; its checksum stands in the batch script, which Slurm keeps."""
    launch = exchange.Launch(spec(), b"", "/tmp/x", Require.NONE, None, None, "/s")
    checksum = exchange.write_launch(f"{tmp_path}/b1/3", launch)
    for parts, said in (((None, None), f"3 {checksum}\n"), ((0, 1), f"3.0 0 3.1 {checksum}\n")):
        jobs = [Job(spec(), b"", lambda _: None, (), 0.0, attempt=exchange.attempt_directory(str(tmp_path), "b1", index, part),
                    batch="b1", index=index, part=part, checksum=known)
                for index, part, known in ((0 if parts[0] is None else 3, parts[0], "0"), (3, parts[1], checksum))]
        text = script(str(tmp_path), jobs)
        (tmp_path / "node").write_text(text[: text.index("exec ")] + 'echo "$@"')
        done = subprocess.run(["sh", tmp_path / "node"], env={"SLURM_ARRAY_TASK_ID": "3"}, capture_output=True, text=True, check=True)
        assert done.stdout == said
    assert exchange.read_launch(f"{tmp_path}/b1/3", checksum) == launch
    (tmp_path / "b1/3/launch").write_bytes(b"cos\nsystem\n(S'touch %s/ran'\ntR." % bytes(tmp_path))
    for known in (checksum, ""):
        with pytest.raises(HostError, match="not what Snakemake has submitted"):
            exchange.read_launch(f"{tmp_path}/b1/3", known)
    assert not (tmp_path / "ran").exists()


def test_each_copy_has_a_record_and_a_scratch_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    planned = replace(spec(), scratch_base=f"{tmp_path}/forge-run", exposed=(str(tmp_path), "/tmp/not-on-this-node"))
    first, second = (node.own_spec(planned, "run", fence.CopyClaim("/r/slurm/b1/7", n, "")) for n in (1, 2))
    assert (first.job_dir, second.job_dir) == (planned.job_dir, f"{planned.job_dir}.copy2")
    assert first.scratch_base != second.scratch_base
    assert first.scratch_base.endswith("/forge-run@b1.7.1")
    assert first.exposed == (str(tmp_path),)
    after = node.own_spec(planned, "run", fence.CopyClaim("/r/slurm/b1/8", 1, ""), first.scratch_base)
    assert after.scratch_base == first.scratch_base, "one process runs both"
    assert (first.layer_base, after.layer_base) == ("forge-run@b1.7.1", "forge-run@b1.8.1")
    assert second.environment["FORGE_JOB_DIR"] == second.job_dir
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = replace(planned, scratch_base="/login-node-only/forge-run")
    assert node.own_spec(elsewhere, "run", fence.CopyClaim("/r/slurm/b1/7", 1, "")).scratch_base.startswith(f"{tmp_path}/forge-run@")


def test_the_scratch_is_put_into_the_command(tmp_path: Path) -> None:
    command = Command("/bin/sh", ("/bin/sh", "-c", f'echo "$TMPDIR" /here/x > {tmp_path}/out'), str(tmp_path),
                      {"TMPDIR": "/here"}, ())
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        result = execution.execute(execution.with_scratch(pickle.dumps(command), "/here"), {"TMPDIR": "/there"}, "/idle")
        os.write(write_end, json.dumps(result["exit_code"]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read_end, 10) == b"0"
    os.close(read_end)
    os.close(write_end)
    assert (tmp_path / "out").read_text() == "/there /there/x\n"


# -- conclusions


@pytest.mark.parametrize(("kills", "stage", "is_oom"), [(1, "job", True), (0, "job", False), (1, "setup", False)])
def test_a_kill_by_slurms_own_limit_is_out_of_memory(kills: int, stage: str, is_oom: bool) -> None:
    step = StepCgroup("/sys/fs/cgroup/memory/slurm", "/sys/fs/cgroup/memory", 1, kills, 90 * MEBIBYTE, 100 * MEBIBYTE)
    failed = replace(VERDICT, evidence={"stage": stage})
    verdict = amend(failed, spec(), step, 10)
    assert verdict.evidence.get("limit_bytes") == (100 * MEBIBYTE if is_oom else None)
    assert verdict.outcome is Outcome.OOM if is_oom else verdict is failed
    assert amend(failed, spec(), None, 10) is failed


@pytest.mark.parametrize(("state", "outcome"), [
    (SlurmState.PREEMPTED, Outcome.CANCELLED), (SlurmState.TIMEOUT, Outcome.TIMEOUT),
    (SlurmState.OUT_OF_MEMORY, Outcome.OOM), (SlurmState.CANCELLED, Outcome.CANCELLED),
    (SlurmState.COMPLETED, Outcome.CANCELLED), (SlurmState.RUNNING, Outcome.CANCELLED), (None, Outcome.CANCELLED)])
def test_slurm_knows_why_it_ended_a_job(state: SlurmState | None, outcome: Outcome) -> None:
    ended = replace(VERDICT, outcome=Outcome.CANCELLED, ended_by=EndedBy.SLURM)
    assert reconcile(ended, state).outcome is outcome
    assert reconcile(VERDICT, state) is VERDICT
    limited = spec(Limits(None, 1, None, 60.0))
    assert amend(ended, limited, None, 59).outcome is Outcome.TIMEOUT, "it was near its time limit"
    assert amend(ended, limited, None, 20) is ended
    assert needs_state(ended)
    assert not needs_state(amend(ended, limited, None, 59))


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
    job.cancelled = Order(EndedBy.USER, "the test says so")
    ended = slurm_job.verdict_without_result(job, row)
    # Whatever state Slurm gives it, even COMPLETED: Forge ordered its end, and it has ended.
    assert ended.outcome is (Outcome.CANCELLED if verdict.outcome is Outcome.LOST else verdict.outcome)


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


def test_a_renderer_ends_with_its_snakemake_though_a_forked_process_holds_the_channel() -> None:
    code = (
        "import os, signal\nfrom snakemake_executor_plugin_forge.workers.renderer import Renderer\n"
        "renderer = Renderer(lambda: None, lambda *_: None)\nheld = os.fork()\n"
        "if held: print(renderer._pid, held, flush=True)\nsignal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        renderer, held = map(int, process.stdout.readline().split())
        process.kill()
        try:
            wait_until(lambda: is_dead(renderer))
            assert not is_dead(held)
        finally:
            os.kill(held, signal.SIGKILL)
