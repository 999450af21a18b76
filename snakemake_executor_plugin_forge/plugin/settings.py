"""The command line: ``--forge-…`` flags, also as ``SNAKEMAKE_FORGE_…`` and in profiles. plugin/config.py reads them.

Snakemake imports this module at every start, so that it imports nothing else of Forge. No ``from __future__ import
annotations`` and no ``X | None``: Snakemake reads the annotations at run time and knows only ``Optional[...]``. ``%``
in a help text breaks ``--help`` (snakemake-interface-common 1.23).
"""
# ruff: noqa: RUF009 - these calls return fields

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase


def _flag(default: object, text: str, **more: object) -> Any:
    if default is not None and default is not False and "Default:" not in text:
        text += " Default: " + str(default).replace("%", " percent") + "."
    return field(default=default, metadata={"help": text, "env_var": True, "required": False, **more})


def _text(default: Optional[str], metavar: str, text: str) -> Any:
    return _flag(default, text, metavar=metavar)


def _choice(values: str, text: str) -> Any:
    """A flag with a few values, of which the first is the default."""
    choices = values.split()
    return _flag(choices[0], text, choices=choices, metavar="{" + ",".join(choices) + "}")


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]
    """The flags. Every flag has a default, so that ``--executor forge`` alone is enough."""

    config: Optional[Path] = _text(
        None, "FILE", "The catalog of runtimes. Default: forge.yaml in the working directory, if it exists."
    )
    runtimes_dir: Optional[Path] = _text(
        None,
        "DIR",
        "Where Forge builds the environments of the catalog, for all working directories together. "
        "Default: forge/runtimes in XDG_CACHE_HOME, which is ~/.cache.",
    )
    require: str = _choice(
        "none limits full",
        "Refuse to start if this host enforces less: 'limits' asks for memory, CPU and process limits that the kernel "
        "enforces, 'full' for namespaces and staged outputs as well.",
    )
    cpu: str = _choice(
        "cap share off",
        "What a rule's threads mean: a hard cap on its CPU time, a share of the machine relative to the other jobs, "
        "or no limit.",
    )
    default_resources: str = _choice(
        "limit schedule",
        "Whether values of --default-resources limit the jobs on this host, as a rule's own do, or only count for "
        "Snakemake's scheduler.",
    )
    nice: str = _text(
        "0",
        "N",
        "Nice value of the jobs and of the whole run, from 0 to 19: a higher value lowers their priority while others "
        "want the CPUs as well. A rule overrides it with the resource forge_nice.",
    )
    io_weight: str = _text(
        "100",
        "N",
        "Weight of the jobs while others want the same disk, from 1 to 10000, where the kernel divides I/O by weight "
        "(snakemake-forge doctor). A rule overrides it with the resource forge_io_weight.",
    )
    network: str = _choice(
        "on off",
        "Network of the jobs: the host's, or only a loopback of the job's own. "
        "A rule overrides it with the resource forge_network.",
    )
    files: str = _choice(
        "guard strict open",
        "What a job may change: with 'guard' only its outputs, which appear after success, and new files in the "
        "working directory; 'strict' also hides everything but its inputs; 'open' protects nothing. "
        "A rule overrides it with the resource forge_files.",
    )
    undeclared: str = _choice(
        "keep discard fail allow",
        "What Forge does with changes in the working directory that a rule does not declare: 'keep' carries them out, "
        "but fails the job if it has changed files that no job of the workflow has made; 'allow' carries these out, "
        "too; 'discard' drops all; 'fail' fails the job for any. A rule overrides it with the resource "
        "forge_undeclared.",
    )
    nested: str = _choice(
        "off on",
        "Whether jobs may start containers and sandboxes of their own (apptainer, bwrap): 'on' leaves out the "
        "mechanisms that forbid it. A rule overrides it with the resource forge_nested.",
    )
    audit: bool = _flag(
        False,
        "Note every file of the working directory that a job opens without declaring it as input "
        "(needs root, for fanotify); snakemake-forge audit lists them.",
    )
    keep_scratch: str = _choice("never failed always", "Which jobs' temporary directories stay after the job.")
    scratch_dir: Optional[Path] = _text(
        None,
        "DIR",
        "Directory below which Forge makes the jobs' private temporary directories. "
        "Default: the job's tmpdir resource, which is the system's temporary directory.",
    )
    memory: str = _text(
        "none",
        "SIZE",
        "Memory limit of a job whose rule has no mem_mb, for example 4GiB. none: only the limit of the run holds.",
    )
    pids: str = _text("4096", "N", "How many processes and threads one job may have, or none for no limit.")
    wall: str = _text("none", "TIME", "Wall time limit of a job whose rule has no runtime, for example 30m or 24h.")
    grace: str = _text("10s", "TIME", "Time between TERM and KILL when Forge ends a job.")
    run_memory: str = _text(
        "90%",
        "SIZE",
        "Memory that all jobs of the run may use together: a size, or a percentage of what "
        "the host (or the cgroup that Snakemake runs in) has. Default: 90 percent.",
    )
    run_pids: str = _text(
        "16384", "N", "How many processes and threads all jobs of the run may have together, or none for no limit."
    )
    metrics_file: Optional[Path] = _text(
        None,
        "PATH",
        "File in which Forge keeps metrics of this run up to date, in Prometheus' text format; or a directory, in "
        "which each run has a file of its own, for example /var/lib/prometheus/node-exporter.",
    )
    stream_cap: str = _text(
        "100MiB",
        "SIZE",
        "How much of a job's stdout, and of its stderr, stays on record: the beginning and the end of a longer one. "
        "At least 64KiB, or none for all of it.",
    )
    gpus: str = _text(
        "auto",
        "NODES",
        "GPUs for jobs whose rule has the resource gpu: auto (those found in /dev), none, or device "
        "nodes separated by commas, for example /dev/nvidia0,/dev/nvidia1.",
    )
    oom_retries: str = _text(
        "0",
        "N",
        "How many times Forge runs a job again with more memory that was killed at its own memory limit, within one "
        "try of Snakemake. Other failures follow Snakemake's retries.",
    )
    oom_factor: str = _text("2", "FACTOR", "Factor above 1 by which each of these retries multiplies the memory limit.")
    oom_max: str = _text(
        "none",
        "SIZE",
        "The highest memory limit of these retries, for example 64GiB. "
        "Default: the memory of all jobs of the run together.",
    )
    checksums: str = _choice(
        "auto off full",
        "Checksums of outputs on record: 'auto' reads whole files where that costs next to nothing beside the job, and "
        "samples of all others; 'off' reads nothing; 'full' reads everything. A rule overrides it with the resource "
        "forge_checksums.",
    )
    check_formats: str = _choice(
        "warn fail off",
        "Whether a truncated output (BAM, CRAM, BCF, gzip, HDF5) only warns or makes its job fail, or Forge does not "
        "check. A rule overrides it with the resource forge_check_formats.",
    )
    run_blocks: str = _choice(
        "auto fork new",
        "How run: blocks start: as a fork of the process that has read the Snakefile (fast), each in a Snakemake of "
        "its own that reads it again (new), or as a fork unless Forge finds that this makes a difference (auto). "
        "A rule overrides it with the resource forge_run_blocks.",
    )
    on_disconnect: str = _choice(
        "kill finish",
        "What happens to the jobs on this host when Snakemake is killed or loses its terminal (SIGHUP): with 'finish' "
        "jobs whose outputs are staged continue, and the next run adopts them. Ctrl-C and SIGTERM end all jobs in "
        "any case.",
    )
    backend: str = _text(
        "local",
        "NAME",
        "Where jobs run: local (this host), slurm (batch jobs of the cluster that SLURM_CONF names; -j is then the "
        "number of the cluster's cores that jobs may use, and rules in localrules stay on this host), or a backend "
        "that another package registers.",
    )
    slurm_pack: str = _text(
        "auto",
        "auto|N|off",
        "How many short jobs of one shape a Slurm job works through, one after the other, each in its own sandbox: "
        "auto takes as many as last half a minute together, by what records say of the rule; off submits each alone.",
    )
    slurm_account: str = _text(
        "",
        "NAME",
        "Account of the Slurm jobs whose rule has no slurm_account: a name, or auto for the one that you used last. "
        "Default: the cluster's default account.",
    )
    slurm_qos: str = _text(
        "", "NAME", "QOS of the Slurm jobs whose rule has no resource qos. Default: the cluster's default."
    )
    slurm_reservation: str = _text("", "NAME", "Reservation that the Slurm jobs use. Default: none.")
    slurm_requeue: str = _text(
        "on", "on|off", "Whether Slurm runs a job again by itself, after its node died or a preemption."
    )
    slurm_exclude: str = _text(
        "auto",
        "NODES",
        "Nodes that get no jobs, as sbatch takes them; auto: those on which a job of this run was lost for the node's "
        "sake; none.",
    )
    slurm_job_prefix: str = _text(
        "", "TEXT", "Beginning of the names of the Slurm jobs: letters, digits, '_' and '-'. Default: none."
    )
    slurm_partitions: Optional[Path] = _text(
        None,
        "FILE",
        "YAML file of partitions and their limits (write one with: snakemake-forge slurm partitions). Jobs whose rule "
        "has no slurm_partition get the tightest one that they fit into. Default: none.",
    )
