"""Verdicts: every outcome that this version gives, and the order of causes."""

from __future__ import annotations

import errno
import signal
from dataclasses import replace

import pytest

from snakemake_executor_plugin_forge.spec.catalog import Allowance, Catalog, with_defaults
from snakemake_executor_plugin_forge.spec.job import Config, LaunchSpec
from snakemake_executor_plugin_forge.spec.outcome import judge, killed_for_memory
from snakemake_executor_plugin_forge.spec.plan import plan
from snakemake_executor_plugin_forge.spec.verdict import (
    EndedBy,
    Evidence,
    Excess,
    Oom,
    OomScope,
    Order,
    Outcome,
    Refusal,
    RefusalKind,
    Usage,
    Verdict,
)

from .test_plan import GIB, HOST, REQUEST, RUN

SPEC: LaunchSpec = plan(REQUEST, 1, "", "", Config(), HOST, RUN)


def judged(**evidence: object) -> Verdict:
    values: dict[str, object] = {"exit_code": 0, "signal": None, "error": None} | evidence
    return judge(Evidence(**values), SPEC, Usage(memory_peak_bytes=512 * 1024**2), "", 1.0)  # type: ignore[arg-type]


FULL = Refusal(RefusalKind.FULL, "/data", errno.ENOSPC)
QUOTA = Refusal(RefusalKind.FULL, "/data", errno.EDQUOT)
TABLE: list[tuple[dict[str, object], Outcome, str]] = [
    ({}, Outcome.SUCCEEDED, "succeeded"),
    ({"exit_code": 3}, Outcome.FAILED, "exit code 3"),
    ({"exit_code": None, "signal": 11}, Outcome.FAILED, "SIGSEGV"),
    ({"exit_code": 137}, Outcome.FAILED, "SIGKILL"),
    ({"exit_code": 127, "stderr_tail": "bash: line 1: foo: command not found"}, Outcome.FAILED, "command foo was not"),
    ({"exit_code": 1, "log_tail": "java.lang.OutOfMemoryError: Java heap space"}, Outcome.FAILED, "raise its -Xmx, and mem_mb of rule"),
    ({"oom_kills": 1, "log_tail": "bash: line 1:   7 Killed    sort -n big"}, Outcome.OOM, "in sort -n big"),
    ({"exit_code": 1, "summary": "KeyError: 'x'"}, Outcome.FAILED, "KeyError: 'x'"),
    ({"oom_kills": 1}, Outcome.OOM, "although the command exited with 0"),
    ({"exit_code": 137, "oom_kills": 2}, Outcome.OOM, "512.0 MiB of 512.0 MiB"),
    ({"oom_kills": 1, "oom": Oom(OomScope.JOB, "samtools")}, Outcome.OOM, "of 512.0 MiB, in samtools"),
    ({"oom_kills": 1, "stderr_tail": "bash: line 1:   7 Killed    sort -n big"}, Outcome.OOM, "in sort -n big"),
    ({"oom_kills": 1, "oom": Oom(OomScope.RUN)}, Outcome.OOM, "--forge-run-memory"),
    ({"oom_kills": 1, "oom": Oom(OomScope.OUTSIDE, None, "the host")}, Outcome.OOM, "the host ran out of it"),
    ({"timed_out": True, "exit_code": None, "signal": 9}, Outcome.TIMEOUT, "timed out after 3 min"),
    ({"timed_out": True, "oom_kills": 1}, Outcome.OOM, "out of memory"),
    ({"pids_hits": 4, "exit_code": 1}, Outcome.PIDS, "4 times"),
    ({"pids_hits": 4}, Outcome.SUCCEEDED, "succeeded"),
    ({"exit_code": 128 + signal.SIGXFSZ}, Outcome.DISK, "disk_mb"),
    ({"exit_code": 1, "full_file": "a.bam"}, Outcome.DISK, "a file (a.bam) grew beyond"),
    ({"full_file": "a.bam"}, Outcome.DISK, "a file (a.bam) grew beyond"),
    ({"excess": Excess(3 * 2**30, "/tmp/x", 2**30)}, Outcome.DISK, "took 3.0 GiB of 0 B (disk_mb), 1.0 GiB in /tmp/x"),
    ({"exit_code": 1, "refusals": (FULL,)}, Outcome.DISK, "exit code 1: the disk is full, there is no space left"),
    ({"refusals": (FULL,)}, Outcome.DISK, "on the file system /data; free space there"),
    ({"exit_code": 141, "refusals": (FULL,)}, Outcome.DISK, "the disk is full"),
    ({"exit_code": None, "signal": 11, "refusals": (FULL,)}, Outcome.FAILED, "killed by SIGSEGV"),
    ({"exit_code": None, "setup_error": "mkdir: no", "refusals": (FULL,)}, Outcome.DISK, "nothing of it was run: mkdir"),
    ({"supervisor_error": "not published", "refusals": (FULL,)}, Outcome.DISK, "not published: the disk is full"),
    ({"exit_code": 1, "refusals": (QUOTA,)}, Outcome.DISK, "there is no quota left on the file system /data"),
    ({"exit_code": 1, "refusals": (FULL,), "excess": Excess(9, "x", 9)}, Outcome.DISK, "its files took 9 B"),
    ({"cancelled": Order(EndedBy.USER, "Ctrl-C"), "oom_kills": 1}, Outcome.CANCELLED, "Ctrl-C"),
    ({"setup_error": "mount: no", "exit_code": None}, Outcome.FAILED, "mount: no"),
    ({"supervisor_error": "the supervisor failed", "exit_code": 0}, Outcome.FAILED, "the supervisor failed"),
    ({"supervisor_error": "the supervisor failed", "oom_kills": 1}, Outcome.FAILED, "the supervisor failed"),
    ({"exit_code": None}, Outcome.FAILED, "no result"),
]


def test_a_soft_limit_is_called_that() -> None:
    soft = replace(SPEC, isolation=replace(SPEC.isolation, limits="soft"))
    usage = Usage(memory_peak_bytes=600 * 1024**2)
    reason = judge(Evidence(None, 9, None, oom_kills=1), soft, usage, "", 1.0).reason
    assert "more than 512.0 MiB when Forge looked, 600.0 MiB" in reason and "polled" in reason
    unlimited = replace(soft, limits=replace(soft.limits, memory_bytes=None))
    assert "--forge-run-memory" in judge(Evidence(None, 9, None, oom_kills=1), unlimited, usage, "", 1.0).reason


def test_a_limit_that_the_rule_does_not_set_names_what_sets_it() -> None:
    config = with_defaults(Config(wall_seconds=90, memory_bytes=GIB), Catalog(allowance=Allowance(disk_bytes=GIB)))
    spec = plan(replace(REQUEST, resources={"mem_mb": 512}), 1, "", "", config, HOST, RUN)
    late = judge(Evidence(None, 9, None, timed_out=True), spec, Usage(), "", 90.0)
    assert late.reason == ("timed out after 1 min 30 s (from --forge-wall); raise --forge-wall, "
                           "or give rule call a runtime of its own")  # fmt: skip
    assert late.evidence["limit_from"] == "--forge-wall"
    full = judge(Evidence(1, None, None, full_file="a"), spec, Usage(), "", 1.0)
    assert "of disk_mb (from disk under defaults: of forge.yaml); raise disk under defaults: of forge.yaml" in full.reason
    own = judge(Evidence(1, None, None, oom_kills=1, oom=Oom(OomScope.JOB)), spec, Usage(), "", 1.0)
    assert "raise the rule's mem_mb" in own.reason and "limit_from" not in own.evidence


@pytest.mark.parametrize(("evidence", "outcome", "words"), TABLE)
def test_table(evidence: dict[str, object], outcome: Outcome, words: str) -> None:
    verdict = judged(**evidence)
    assert verdict.outcome is outcome
    assert words in verdict.reason


def test_the_table_is_complete() -> None:
    given_elsewhere = {Outcome.LOST, Outcome.VIOLATION}  # lost: supervisor.lost; violation: no file policy yet
    assert {outcome for _, outcome, _ in TABLE} | given_elsewhere == set(Outcome)


def test_only_success_is_believed() -> None:
    assert {o for e, o, _ in TABLE if judged(**e).ok} == {Outcome.SUCCEEDED}


def test_whatever_is_no_success_has_evidence_and_a_remedy() -> None:
    for evidence, outcome, _ in TABLE:
        verdict = judged(**evidence)
        assert outcome is Outcome.SUCCEEDED or (verdict.remedy and verdict.evidence), evidence


RUN_NAME, JOB_NAME = "forge-20261123-013217-6676-4841", "00041-a"


@pytest.mark.parametrize(("limit", "scope", "where"), [
    (f"oom_memcg=/user.slice/{RUN_NAME}/{JOB_NAME}", OomScope.JOB, None),
    (f"oom_memcg=/user.slice/{RUN_NAME}/{JOB_NAME}/inner", OomScope.JOB, None),
    (f"oom_memcg=/user.slice/{RUN_NAME}", OomScope.RUN, None),
    ("oom_memcg=/user.slice", OomScope.OUTSIDE, "the cgroup /user.slice"),
    ("global_oom", OomScope.OUTSIDE, "the host"),
])
def test_the_kernels_log_says_whose_limit_it_was(limit: str, scope: OomScope, where: str | None) -> None:
    log = (
        "<6>[1.0] oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/else,"
        "task_memcg=/else/00041-a,task=other,pid=7,uid=0\n"
        f"<6>[2.0] oom-kill:constraint=X,nodemask=(null),cpuset=/,mems_allowed=0,{limit},"
        f"task_memcg=/user.slice/{RUN_NAME}/{JOB_NAME},task=a, b,pid=8348,uid=0\n"
    )
    assert killed_for_memory(log, RUN_NAME, JOB_NAME) == Oom(scope, "a, b", where)
    assert killed_for_memory(log, RUN_NAME, "00042-b") is None
