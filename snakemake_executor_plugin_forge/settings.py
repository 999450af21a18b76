"""The command line: ``--forge-…`` flags, also as ``SNAKEMAKE_FORGE_…`` and in profiles. config.py reads them.

Imported at every start of Snakemake, so it imports nothing of Forge's own. No ``from __future__ import annotations``
and no ``X | None``: Snakemake reads the annotations at run time and knows ``Optional[...]`` only. ``%`` in a help text
breaks ``--help`` (snakemake-interface-common 1.23).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from snakemake_interface_executor_plugins.settings import ExecutorSettingsBase


def _choice(values: list[str], text: str) -> dict[str, object]:
    return {
        "help": text,
        "env_var": True,
        "required": False,
        "choices": values,
        "metavar": "{" + ",".join(values) + "}",
    }


def _text(text: str, metavar: str) -> dict[str, object]:
    return {"help": text, "env_var": True, "required": False, "metavar": metavar}


@dataclass
class ExecutorSettings(ExecutorSettingsBase):  # type: ignore[misc]
    """The flags. Every one has a default, so that ``--executor forge`` alone is enough."""

    config: Optional[Path] = field(
        default=None,
        metadata=_text(
            "The catalog of runtimes. Default: forge.yaml in the working directory, if it is there.", "FILE"
        ),
    )
    runtimes_dir: Optional[Path] = field(
        default=None,
        metadata=_text(
            "Where environments of the catalog are built, for all working directories together. "
            "Default: forge/runtimes in XDG_CACHE_HOME, which is ~/.cache.",
            "DIR",
        ),
    )
    require: str = field(
        default="none",
        metadata=_choice(
            ["none", "limits", "full"],
            "Refuse to start if this host enforces less: 'limits' asks for "
            "kernel-enforced memory, CPU and process limits, 'full' for namespaces as well.",
        ),
    )
    cpu: str = field(
        default="cap",
        metadata=_choice(
            ["cap", "share", "off"],
            "What a rule's threads mean: a hard cap on its CPU time, a share of "
            "the machine relative to the other jobs, or no limit.",
        ),
    )
    nice: str = field(
        default="0",
        metadata=_text(
            "Nice value of the jobs, from 0 to 19: how far they, and with them all of the run, stand back when others "
            "want the CPUs as well. A rule overrides it with the resource forge_nice.",
            "N",
        ),
    )
    io_weight: str = field(
        default="100",
        metadata=_text(
            "Weight of the jobs when others want the same disk, from 1 to 10000, where the kernel divides I/O by "
            "weight (snakemake-forge doctor). A rule overrides it with the resource forge_io_weight.",
            "N",
        ),
    )
    network: str = field(
        default="on",
        metadata=_choice(
            ["on", "off"],
            "Network of the jobs: the host's, or only a loopback of the job's own. "
            "A rule overrides it with the resource forge_network.",
        ),
    )
    files: str = field(
        default="guard",
        metadata=_choice(
            ["guard", "strict", "open"],
            "What a job may change: with 'guard' only its outputs, which appear after success, and new files in the "
            "working directory; 'strict' shows it nothing but its inputs as well; 'open' protects nothing. "
            "A rule overrides it with the resource forge_files.",
        ),
    )
    undeclared: str = field(
        default="keep",
        metadata=_choice(
            ["keep", "discard", "fail"],
            "What becomes of new files in the working directory that a rule does not declare: they are kept and "
            "reported, dropped, or the job fails. A rule overrides it with the resource forge_undeclared.",
        ),
    )
    nested: str = field(
        default="off",
        metadata=_choice(
            ["off", "on"],
            "Whether jobs may start containers and sandboxes of their own (apptainer, bwrap): leaves out what "
            "forbids that. A rule sets it for itself with the resource forge_nested.",
        ),
    )
    audit: bool = field(
        default=False,
        metadata={
            "help": "Note every file of the working directory that a job opens without declaring it as input "
            "(needs root, for fanotify); snakemake-forge audit lists them.",
            "env_var": True,
            "required": False,
        },
    )
    keep_scratch: str = field(
        default="never",
        metadata=_choice(["never", "failed", "always"], "Whose temporary directories are kept after the job."),
    )
    scratch_dir: Optional[Path] = field(
        default=None,
        metadata=_text(
            "Directory below which the jobs' private temporary directories are made. "
            "Default: the job's tmpdir resource, which is the system's temporary directory.",
            "DIR",
        ),
    )
    memory: str = field(
        default="none",
        metadata=_text(
            "Memory limit of a job whose rule has no mem_mb, for example 4GiB. none: only the limit of the run holds.",
            "SIZE",
        ),
    )
    pids: str = field(
        default="4096",
        metadata=_text("How many processes and threads one job may have, or none.", "N"),
    )
    wall: str = field(
        default="none",
        metadata=_text("Wall time limit of a job whose rule has no runtime, for example 30m or 24h.", "TIME"),
    )
    grace: str = field(
        default="10s",
        metadata=_text("Time between TERM and KILL for a job that is ended.", "TIME"),
    )
    run_memory: str = field(
        default="90%",
        metadata=_text(
            "Memory that all jobs of the run may use together: a size, or a percentage of what "
            "the host (or the cgroup that Snakemake runs in) has. Default: 90 percent.",
            "SIZE",
        ),
    )
    run_pids: str = field(
        default="16384",
        metadata=_text("How many processes and threads all jobs of the run may have together, or none.", "N"),
    )
    metrics_file: Optional[Path] = field(
        default=None,
        metadata=_text(
            "File that is kept up to date with metrics of this run, in Prometheus' text format, "
            "for example /var/lib/node_exporter/forge.prom.",
            "FILE",
        ),
    )
    stream_cap: str = field(
        default="100MiB",
        metadata=_text(
            "How much of a job's stdout, and of its stderr, is kept on record: of more, the beginning and the end. "
            "At least 64KiB, or none.",
            "SIZE",
        ),
    )
    gpus: str = field(
        default="auto",
        metadata=_text(
            "GPUs for jobs whose rule has the resource gpu: auto (those found in /dev), none, or device "
            "nodes with commas between them, for example /dev/nvidia0,/dev/nvidia1.",
            "NODES",
        ),
    )
    oom_retries: str = field(
        default="0",
        metadata=_text(
            "How many times a job that was killed at its own memory limit is run again with more memory, within one "
            "try of Snakemake. Other failures follow Snakemake's retries.",
            "N",
        ),
    )
    oom_factor: str = field(
        default="2",
        metadata=_text("By what the memory limit is multiplied each time, above 1.", "FACTOR"),
    )
    oom_max: str = field(
        default="none",
        metadata=_text(
            "The highest memory limit that a job gets in this way, for example 64GiB. "
            "Default: what all jobs of the run may use together.",
            "SIZE",
        ),
    )
    checksums: str = field(
        default="auto",
        metadata=_choice(
            ["auto", "off", "full"],
            "Checksums of outputs on record: whole where that costs next to nothing beside the job, else of samples; "
            "none; always whole. A rule overrides it with the resource forge_checksums.",
        ),
    )
    check_formats: str = field(
        default="warn",
        metadata=_choice(
            ["warn", "fail", "off"],
            "What an output that is truncated is to its job: BAM, CRAM, BCF, gzip and HDF5 files are looked at. "
            "A rule overrides it with the resource forge_check_formats.",
        ),
    )
    on_disconnect: str = field(
        default="kill",
        metadata=_choice(
            ["kill", "finish"],
            "What becomes of the jobs on this host when Snakemake is killed or loses its terminal (SIGHUP): with "
            "'finish' those whose outputs are staged go on, and wait for the next run, which adopts them. "
            "Ctrl-C and SIGTERM end them in any case.",
        ),
    )
    backend: str = field(
        default="local",
        metadata=_text(
            "Where jobs run: local (this host), slurm (batch jobs of the cluster that SLURM_CONF names; -j is then "
            "how many cores of the cluster may be in use, and rules in localrules stay on this host), or a backend "
            "that another package registers.",
            "NAME",
        ),
    )
