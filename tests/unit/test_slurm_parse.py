"""Requests to Slurm and its answers: against captured output of 22.05 and the forms of other versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_forge.backends.slurm import mpi
from snakemake_executor_plugin_forge.backends.slurm.packing import PACK_SECONDS, packs, time_minutes
from snakemake_executor_plugin_forge.backends.slurm.parse import (
    is_full,
    is_outage,
    parse_config,
    parse_nodes,
    parse_sacct,
    parse_squeue,
    parse_submission,
    parse_usage,
    refusal,
)
from snakemake_executor_plugin_forge.backends.slurm.sbatch import (
    KNOWN_RESOURCES,
    REFUSED_RESOURCES,
    adapt,
    asks_for,
    check,
    check_in_run,
    shape,
)
from snakemake_executor_plugin_forge.backends.slurm.states import TABLE, SlurmState, parse_state
from snakemake_executor_plugin_forge.spec.errors import RequirementError, UsageError
from snakemake_executor_plugin_forge.spec.job import (
    Config,
    CpuMode,
    Isolation,
    KeepScratch,
    LaunchSpec,
    Limits,
    Network,
    Require,
)
from snakemake_executor_plugin_forge.spec.slurm import Partition, SlurmSettings, minutes_of, read_partitions
from snakemake_executor_plugin_forge.spec.units import MEBIBYTE
from snakemake_executor_plugin_forge.spec.verdict import Outcome, Usage

OUTPUT = Path(__file__).parent / "slurm_output"


def spec(limits: Limits | None = None, /, **resources: Any) -> LaunchSpec:
    return LaunchSpec(
        name="00001-map", rule="map", wildcards={}, attempt=1, command="true", by_hand="true", how="launcher",
        limits=limits or Limits(None, 1, None, None), cpu_mode=CpuMode.CAP, network=Network.ON, grace_seconds=10.0,
        keep_scratch=KeepScratch.NEVER, workdir="/work", job_dir="/work/run/00001-map", scratch_base="/tmp/forge-run",
        exposed=(), carried=(), environment={}, inputs=(), outputs=(),
        isolation=Isolation("cgroup-v1", "open", (), Network.ON), resources=resources)


# -- states


def test_the_table_has_every_state_and_a_verdict_for_every_end() -> None:
    assert set(TABLE) == set(SlurmState)
    for state, meaning in TABLE.items():
        assert meaning.outcome is not Outcome.SUCCEEDED, "only the job's own verdict says success"
        assert meaning.words
        assert bool(meaning.remedy) == (meaning.outcome is not None), state
        assert not (meaning.held and meaning.outcome)


# https://slurm.schedmd.com/job_state_codes.html of 25.05: base states, then flags
DOCUMENTED = ["PENDING", "RUNNING", "SUSPENDED", "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY", "COMPLETING", "CONFIGURING", "EXPEDITING", "LAUNCH_FAILED", "POWER_UP_NODE", "RECONFIG_FAIL", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD", "REVOKED", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "UPDATE_DB"]


def test_the_states_are_those_that_slurm_documents() -> None:
    assert sorted(DOCUMENTED) == sorted(SlurmState)


@pytest.mark.parametrize(("text", "state"), [
    ("CANCELLED by 1000", SlurmState.CANCELLED), ("CANCELLED+", SlurmState.CANCELLED),
    ("OUT_OF_ME+", SlurmState.OUT_OF_MEMORY), ("RE+", None), ("NEW_IN_2030", None), ("", None), ("pending", None)])
def test_states_as_commands_write_them(text: str, state: SlurmState | None) -> None:
    assert parse_state(text) is state


# -- answers


def test_squeue_with_a_separator_in_a_name() -> None:
    rows = {row.job_id: row for row in parse_squeue((OUTPUT / "squeue-22.05.txt").read_text())}
    assert {i: (r.name, r.state) for i, r in rows.items()} == {
        "5": ("good", SlurmState.COMPLETED), "6": ("killed", SlurmState.COMPLETING),
        "1": ("wrap", SlurmState.FAILED), "4": ("bad", SlurmState.FAILED), "3": ("oom", SlurmState.OUT_OF_MEMORY),
        "2_0": ("a|b c", SlurmState.RUNNING), "2_1": ("a|b c", SlurmState.RUNNING),
        "2_2": ("a|b c", SlurmState.PENDING), "2_3": ("a|b c", SlurmState.PENDING),
        "2_4": ("a|b c", SlurmState.PENDING), "8": ("held", SlurmState.PENDING), "7": ("to", SlurmState.RUNNING)}
    assert rows["8"].reason == "JobHeldUser"
    assert rows["2_3"].index == 3


def test_an_array_that_is_not_unfolded_is_the_same() -> None:
    folded = parse_squeue((OUTPUT / "squeue-folded-22.05.txt").read_text())
    whole = parse_squeue((OUTPUT / "squeue-22.05.txt").read_text())
    assert sorted(folded, key=lambda r: r.job_id) == sorted(whole, key=lambda r: r.job_id)


# sacct --parsable2, in the forms of 20.11 to 25.05; uid and host names are made up
SACCT = """\
12|12|COMPLETED|2026-11-23T04:06:30|n1|forge-a
13|13|CANCELLED by 1000|2026-11-23T04:06:30|None assigned|forge-b
15|14_0|OUT_OF_MEMORY|2026-11-23T04:06:30|n[1-2]|forge-c
14|14_[1-3%2]|PENDING|2026-11-23T04:06:30|None assigned|forge-c
16|16|NODE_FAIL|2026-11-23T04:06:30|n2|with|bars
slurm_load_jobs error: whatever
"""


def test_sacct() -> None:
    rows = parse_sacct(SACCT)
    assert [(r.job_id, r.index, r.state) for r in rows] == [
        ("12", 0, SlurmState.COMPLETED), ("13", 0, SlurmState.CANCELLED), ("14_0", 0, SlurmState.OUT_OF_MEMORY),
        ("14_1", 1, SlurmState.PENDING), ("14_2", 2, SlurmState.PENDING), ("14_3", 3, SlurmState.PENDING),
        ("16", 0, SlurmState.NODE_FAIL)]
    assert rows[-1].name == "with|bars"


# sacct --parsable2 --duplicates with SLURM_TIME_FORMAT=%s, by 22.05 with jobacct_gather/cgroup, shortened
USAGE = """\
1_0|2|1790000000|00:00.012|00:00.034|00:00.046|||
1_0.batch|2|1790000000|00:00.012|00:00.034|00:00.046|9012K|0.50M|1M
1_0|5|1790000100|00:01|00:02|00:03.500|||
1_0.batch|5|1790000100|00:01|00:02|00:03.500|1.50G|2.00M|0.25M
1_0.extern|5|1790000100|00:00|00:00|00:00|100K|0|0
2|93784|1790000000|1-02:03:04|00:00:01|1-02:03:05.500|||
3|0|0|00:00:00|00:00:00|00:00:00|||
4|7|Unknown||||nonsense|-1|
12|12|COMPLETED|2026-11-23T04:06:30|n1|forge-a
"""


def test_what_jobs_have_used() -> None:
    used = parse_usage(USAGE)
    assert set(used) == {"1_0", "2", "3", "4"}
    newest = used["1_0"].usage
    assert (newest.memory_peak_bytes, newest.cpu_seconds, newest.cpu_user_seconds) == (3 << 29, 3.5, 1.0)
    assert (newest.io_read_bytes, newest.io_write_bytes) == (2 << 20, 1 << 18)
    assert used["1_0"].started == "2026-09-21T14:15:00+00:00"
    assert used["2"].usage.cpu_seconds == 93785.5
    assert used["2"].seconds == 93784.0
    assert (used["3"].started, used["4"].started, used["4"].usage) == ("", "", Usage())


@given(st.text(alphabet="0123456789|_-[]%,:NA/\n RUNIGkow.KMT", max_size=200))
def test_no_answer_breaks_the_parsers(text: str) -> None:
    for used in parse_usage(text).values():
        assert used.seconds >= 0
        assert used.usage.cpu_seconds >= 0
        assert used.usage.memory_peak_bytes >= 0
    for row in [*parse_squeue(text), *parse_sacct(text)]:
        assert row.index >= 0


def test_the_configuration_of_22_05() -> None:
    facts = parse_config((OUTPUT / "config-22.05.txt").read_text())
    assert facts is not None
    assert (facts.version, facts.max_array, facts.accounting) == ("22.05.8", 1000, False)
    config = "SLURM_VERSION = 22.05.8\nMaxArraySize = 100001\nSchedulerParameters = defer,max_array_tasks=1000,bf_continue\n"
    assert (facts := parse_config(config)) is not None
    assert facts.max_array == 1000
    assert parse_config("slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)\n") is None


@pytest.mark.parametrize("version", ["20.11.6", "23.11.10", "24.05.4", "25.05.9", "25.11.4"])
def test_the_configuration_of_others(version: str) -> None:
    text = ("Configuration data as of 2026-04-27T10:07:02\nAccountingStorageType   = accounting_storage/slurmdbd\n"
            f"ClusterName             = c\nKillWait                = 30 sec\nMaxArraySize            = 4000001\n"
            f"SLURM_VERSION           = {version}\n\nCgroup Support Configuration:\nAllowedSwapSpace        = 0.0%\n"
            "\nSlurmctld(primary) at c is UP\n")
    facts = parse_config(text)
    assert facts is not None
    assert (facts.version, facts.max_array, facts.accounting) == (version, 4000000, True)


@pytest.mark.parametrize(("text", "number"), [
    ("12\n", "12"), ("12;lab\n", "12"), ("Welcome to the cluster!\n  12\n\n", "12"), ("", None),
    ("Submitted batch job twelve", None)])
def test_submissions(text: str, number: str | None) -> None:
    assert parse_submission(text) == number


def test_refusals_say_why_and_are_no_outages() -> None:
    texts = {name: (OUTPUT / f"sbatch-{name}-22.05.txt").read_text() for name in ("partition", "memory", "time")}
    assert not any(is_outage(text) for text in texts.values())
    assert refusal(texts["partition"]) == (
        "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified")
    assert "time limit is invalid" in refusal(texts["time"])
    assert refusal("\n") == "it gave no reason"
    assert is_outage("squeue: error: slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert is_outage("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")


# -- requests


def test_resources_become_arguments() -> None:
    job = spec(Limits(1000 * MEBIBYTE, 4, None, 90 * 60), slurm_partition="long", slurm_account="lab", qos="high",
               constraint="avx2&ssd", gpu=2, gpu_model="a100", slurm_extra="--nice=10 --reservation='my res'",
               mem_mb=1000, runtime=90, disk_mb=5, tmpdir="/tmp")
    assert shape(adapt(job)) == (
        "--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--mem=1000M", "--time=90", "--partition=long",
        "--account=lab", "--qos=high", "--constraint=avx2&ssd", "--gpus=a100:2", "--nice=10",
        "--reservation=my res")
    assert shape(adapt(spec())) == ("--nodes=1", "--ntasks=1", "--cpus-per-task=1"), "the rest is the cluster's default"
    for seconds, minutes in ((1.0, 1), (61.0, 2)):
        assert f"--time={minutes}" in shape(adapt(spec(Limits(None, 1, None, seconds))))


def test_cpus_and_memory_by_cpu_count_for_forge_as_well() -> None:
    job = adapt(spec(Limits(None, 1, None, None), cpus_per_task=3, mem_mb_per_cpu=500))
    assert (job.limits.cpus, job.limits.memory_bytes, job.backend) == (3, 1500 * MEBIBYTE, "slurm")
    assert job.environment == {"FORGE_CPUS": "3", "FORGE_MEMORY_BYTES": str(1500 * MEBIBYTE)}
    assert shape(job)[2:] == ("--cpus-per-task=3", "--mem-per-cpu=500M")


@pytest.mark.parametrize(("resources", "words"), [
    ({"slurm_partiton": "x"}, ["map", "slurm_partiton", "Did you mean slurm_partition?"]),
    ({"slurm_extra": "--job-name=x"}, ["map", "--job-name", "Forge itself"]),
    ({"slurm_extra": "-Jx"}, ["-Jx"]), ({"slurm_extra": "-o out"}, ["-o"]),
    ({"slurm_extra": "--comment='x"}, ["cannot be split"]),
    ({"mpi": "srun"}, ["mpi='srun'", "tasks_per_node"]), ({"nodes": 2}, ["nodes=2", "mpi"]), ({"cluster": "b"}, ["SLURM_CONF"]),
    ({"tasks": 4, "tasks_per_node": 2}, ["tasks=4", "tasks_per_node=2"]),
    ({"mpi": "srun", "tasks": 4, "forge_network": "off"}, ["forge_network"]),
    ({"cpus_per_task": "many"}, ["cpus_per_task='many'", "whole number"]), ({"gpu": -1}, ["gpu=-1"])])
def test_what_cannot_be_passed_on_is_refused_by_name(resources: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        check("map", resources)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_run_and_a_dry_run_know_the_network_of_the_run() -> None:
    job: dict[str, object] = {"mpi": "srun", "tasks": 4}
    check_in_run("map", job, Config())
    with pytest.raises(UsageError, match="--forge-network"):
        check_in_run("map", job, Config(network=Network.OFF))
    check_in_run("map", {**job, "forge_network": "on"}, Config(network=Network.OFF))


# Names that snakemake-executor-plugin-slurm 2.8 and its jobstep read from a job's resources: submit_string.py,
# partitions.py, __init__.py. Snakemake's own (mem_mb, runtime, threads, disk_mb, tmpdir) are not among them.
PLUGIN_NAMES = ["slurm_partition", "slurm_account", "slurm_extra", "slurm_cluster", "cluster", "clusters", "constraint", "qos", "mem_mb_per_cpu", "cpus_per_task", "cpus_per_gpu", "gpu", "gpu_model", "gres", "tasks", "tasks_per_gpu", "tasks_per_node", "nodes", "mpi"]


def test_no_name_of_the_slurm_plugin_is_ignored() -> None:
    """Each name is an argument of sbatch or refused; the table in the documentation has it."""
    table = (Path(__file__).parents[2] / "docs/reference/slurm.md").read_text()
    assert set(PLUGIN_NAMES) <= {*KNOWN_RESOURCES, *REFUSED_RESOURCES}
    gpu = {"gpu": 2}
    values: dict[str, object] = {"slurm_extra": "--nice=3", "gpu_model": "a100", "gres": "gpu:v100:3", "slurm_partition": "p", "slurm_account": "a",
                                 "constraint": "c", "qos": "q", "nodes": 2}
    for name in PLUGIN_NAMES:
        assert f"`{name}`" in table, name
        more = {name: values.get(name, 3)} | ({"mpi": "srun", "tasks": 3} if name in ("mpi", "nodes") else {}) | (gpu if "gpu" in name and name not in ("gpu", "gres") else {})
        if name in REFUSED_RESOURCES:
            with pytest.raises(UsageError, match=name):
                check("map", more)
        else:
            assert shape(adapt(spec(**more))) != shape(adapt(spec(**{key: more[key] for key in more if key != name}))), name


def test_mpi_asks_for_nodes_and_tasks() -> None:
    assert shape(adapt(spec(mpi="srun", tasks=8)))[0] == "--ntasks=8", "Slurm chooses how many nodes"
    assert shape(adapt(spec(mpi="srun", tasks_per_node=4, nodes=2)))[:2] == ("--nodes=2", "--ntasks-per-node=4")
    assert shape(adapt(spec(tasks_per_node=4)))[:2] == ("--nodes=1", "--ntasks-per-node=4")
    check("map", {"mpi": "srun", "tasks": 2}, require=Require.LIMITS)
    with pytest.raises(RequirementError, match="Slurm starts the ranks"):
        check("map", {"mpi": "srun", "tasks": 2}, require=Require.FULL)


def test_an_mpi_job_is_fitted_to_its_first_node(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text(f"ClusterName=x\nAuthInfo=socket={tmp_path}/munge/socket,cred_expire=6\n")
    (tmp_path / "munge").mkdir()
    job = adapt(spec(Limits(None, 2, None, None), mpi="srun", tasks=8, mem_mb_per_cpu=10))
    variables = {"SLURM_CPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "2", "SLURM_CONF": str(conf)}
    fitted = mpi.fitted(job, variables)
    assert (fitted.limits.cpus, fitted.limits.memory_bytes) == (8, 80 * MEBIBYTE)
    assert set(fitted.exposed) == {str(tmp_path), f"{tmp_path}/munge"}
    assert fitted.environment == {"FORGE_CPUS": "2", "FORGE_MEMORY_BYTES": str(20 * MEBIBYTE), "SLURM_KILL_BAD_EXIT": "1", "SRUN_CPUS_PER_TASK": "2"}
    assert mpi.fitted(job, variables | {"SLURM_KILL_BAD_EXIT": "0"}).environment.get("SLURM_KILL_BAD_EXIT") is None
    other = adapt(spec(tasks=2))
    assert mpi.fitted(other, variables) is other


@pytest.mark.parametrize(("resources", "cpus", "arguments"), [
    ({"cpus_per_task": -1}, 1, ["--ntasks=1"]), ({"cpus_per_task": 0}, 1, ["--ntasks=1", "--cpus-per-task=1"]),
    ({"cpus_per_gpu": 4, "gpu": 2}, 8, ["--ntasks=1", "--cpus-per-gpu=4", "--gpus=2"]),
    ({"cpus_per_gpu": -1, "gpu": 2}, 1, ["--ntasks=1", "--gpus=2"]),
    ({"cpus_per_gpu": 4, "gres": "gpu:v100:3"}, 12, ["--ntasks=1", "--cpus-per-gpu=4", "--gres=gpu:v100:3"]),
    ({"tasks_per_gpu": 2, "gpu": 1}, 1, ["--ntasks-per-gpu=2", "--cpus-per-task=1", "--gpus=1"])])
def test_cpus_and_tasks_of_gpus(resources: dict[str, object], cpus: int, arguments: list[str]) -> None:
    job = adapt(spec(**resources))
    assert job.limits.cpus == cpus
    assert list(shape(job)) == ["--nodes=1", *arguments]


# -- partitions


SINFO = """\
short|1:00:00|8|32000|(null)|avx2,ssd
short|1:00:00|16|64000|(null)|avx2
long|7-00:00:00|16|64000|(null)|(null)
long2|7-00:00:00|16|64000|(null)|(null)
big|infinite|64|1000000|gpu:a100:4,gpu:h100:2(S:0)|(null)
nonsense
"""


def test_partitions_of_the_cluster_are_limits_that_choose() -> None:
    found = parse_nodes(SINFO)
    assert found["short"] == {"available_constraints": ["avx2", "ssd"], "max_gpu": 0, "max_mem_mb": 64000, "max_runtime": 60.0, "max_threads": 16}
    assert found["big"] == {"available_gpu_models": ["a100", "h100"], "max_gpu": 6, "max_mem_mb": 1000000, "max_threads": 64}
    partitions = read_partitions({"partitions": found}, "--forge-slurm-partitions=p.yaml")

    def chosen(mem: int = 100, cpus: int = 1, minutes: int = 5, **resources: object) -> str | None:
        limits = Limits(mem * MEBIBYTE, cpus, None, minutes * 60.0)
        words = shape(adapt(spec(limits, **resources)), SlurmSettings(partitions=partitions))
        return next((word.partition("=")[2] for word in words if word.startswith("--partition")), None)

    assert chosen() == "short"
    assert chosen(minutes=61) == "long,long2", "Slurm decides a tie"
    assert chosen(mem=100_000) == chosen(cpus=17) == chosen(gpu=1) == chosen(gpu=1, gpu_model="h100") == "big"
    assert chosen(constraint="ssd&avx2") == "short"
    assert chosen(slurm_partition="mine") == "mine"
    for resources, words in ({"gpu": 7}, ["big: at most gpu=6"]), ({"gpu": 1, "gpu_model": "v100"}, ["gpu_model a100 or h100"]), ({"mem": 2_000_000}, ["mem_mb=2000000", "short: at most mem_mb=64000"]):
        with pytest.raises(UsageError) as caught:
            chosen(**resources)
        assert all(word in str(caught.value) for word in ("Rule map", "slurm_partition", *words)), str(caught.value)
    with pytest.raises(UsageError, match="fits into no partition"):
        check("map", {"mem_mb": 2_000_000, "_cores": 1}, SlurmSettings(partitions=partitions))


def test_mpi_jobs_get_a_partition_that_takes_them() -> None:
    limits = {"small": {"max_threads": 8, "supports_mpi": False}, "wide": {"max_threads": 16, "max_mpi_tasks": 8}, "wider": {"max_threads": 32}}
    partitions = read_partitions({"partitions": limits}, "p.yaml")

    def chosen(**resources: object) -> str:
        words = shape(adapt(spec(Limits(None, 1, None, None), **resources)), SlurmSettings(partitions=partitions))
        return next(word.partition("=")[2] for word in words if word.startswith("--partition"))

    assert (chosen(), chosen(tasks=20)) == ("small", "small")
    assert chosen(mpi="srun", tasks=8) == chosen(mpi="srun", tasks_per_node=4, nodes=2) == "wide"
    assert chosen(mpi="srun", tasks=9) == chosen(mpi="srun", tasks_per_node=4, nodes=3) == "wider"
    only = read_partitions({"partitions": {"small": limits["small"]}}, "p.yaml")
    with pytest.raises(UsageError, match="small: no mpi"):
        check("map", {"mpi": "srun", "tasks": 2}, SlurmSettings(partitions=only))


# Limits of the Slurm plugin's partition file: PartitionLimits in its partitions.py, and its names for the cluster.
PLUGIN_LIMITS = ["max_runtime", "max_mem_mb", "max_mem_mb_per_cpu", "max_cpus_per_task", "max_threads", "max_nodes", "max_tasks", "max_tasks_per_node", "max_gpu",
                 "available_gpu_models", "max_cpus_per_gpu", "supports_mpi", "max_mpi_tasks", "available_constraints", "slurm_cluster", "cluster", "clusters"]


@pytest.mark.parametrize("name", PLUGIN_LIMITS)
def test_no_limit_of_the_plugins_partition_file_is_ignored(name: str) -> None:
    value: object = {"supports_mpi": False, "available_gpu_models": ["a100"], "available_constraints": ["ssd"]}.get(name, 1)
    try:
        (found,) = read_partitions({"partitions": {"p": {name: value}}}, "p.yaml")
    except UsageError as error:
        assert f"partitions.p.{name}" in str(error)
    else:
        assert found != Partition("p")


@pytest.mark.parametrize(("data", "words"), [
    ({"partitions": {"a": {"supports_mpi": "no"}}}, "true or false"),
    (None, "'partitions'"), ({"partitions": {}}, "'partitions'"), ({"partitions": {"a b": {}}}, "no name of a partition"),
    ({"partitions": {"a": {"max_runtme": 3}}}, "Did you mean max_runtime?"), ({"partitions": {"a": {"max_mem_mb": -1}}}, "max_mem_mb=-1"),
    ({"partitions": {"a": {"max_runtime": "soon"}}}, "partitions.a.max_runtime=soon"), ({"partitions": {"a": 3}}, "partitions.a=3"),
    ({"partitions": {"a": {"available_constraints": [1]}}}, "must be a list")])
def test_what_is_wrong_in_a_file_of_partitions_is_named(data: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_partitions(data, "--forge-slurm-partitions=p.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("--forge-slurm-partitions=p.yaml")


@pytest.mark.parametrize(("text", "minutes"), [("90", 90), ("1:30", 1.5), ("2:00:00", 120), ("1-12", 2160), ("1-0:30", 1470), ("1-1:1:30", 1501.5), ("infinite", None)])
def test_time_limits_in_the_forms_of_slurm(text: str, minutes: float | None) -> None:
    assert minutes_of(text) == minutes


def test_a_full_queue_is_no_refusal() -> None:
    """Messages of slurmctld 22.05 and 24.05."""
    assert is_full("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    assert is_full("sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy")
    assert not any(is_full((OUTPUT / f"sbatch-{name}-22.05.txt").read_text()) for name in ("partition", "memory", "time"))
    assert is_full("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying"), "MaxJobCount"
    assert not is_full("sbatch: error: QOSMaxCpuPerJobLimit\nsbatch: error: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)")


# -- packs


@given(st.lists(st.none() | st.floats(0, 200), min_size=1, max_size=60), st.none() | st.integers(1, 20))
def test_every_job_is_in_exactly_one_pack(seconds: list[float | None], setting: int | None) -> None:
    found = packs(seconds, setting)
    assert sorted(n for pack in found for n in pack) == list(range(len(seconds)))
    assert all(pack and pack == sorted(pack) for pack in found)
    if setting is not None:
        assert max(map(len, found)) <= setting
        assert len(found) == -(-len(seconds) // setting)
    else:
        for pack in found:
            together = [seconds[n] for n in pack]
            assert len(pack) == 1 or (None not in together and sum(one or 0 for one in together) <= 2 * PACK_SECONDS)


def test_packs_by_time() -> None:
    assert [len(pack) for pack in packs([0.2] * 200, None)] == [25] * 8
    assert {len(pack) for pack in packs([0.2] * 20_000, None)} == {99, 100}, "half a minute each, at most"
    assert len(packs([0.2] * 4, None)) == 2
    assert len(packs([10.0] * 20, None)) == 20, "packs end no later than single jobs, if there are nodes"
    assert len(packs([60.0] * 20, None)) == 20, "packs end no later than single jobs"
    assert time_minutes(3600, [1.0] * 30) == 63
    assert time_minutes(300, [None] * 49) == 43, "their times are unknown; a partition refuses a limit that is too long"
    assert time_minutes(60, [None] * 3) == 4, "never more than the sum of their limits"


@pytest.mark.parametrize(("words", "asked"), [(["--time=5"], True), (["--time", "5"], True), (["-t5"], True), (["--time-min=5"], False), (["--exclude=n1"], False)])
def test_options_of_sbatch_are_recognised(words: list[str], asked: bool) -> None:
    assert asks_for(words, "-t", "--time") is asked
