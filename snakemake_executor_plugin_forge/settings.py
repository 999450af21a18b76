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
    network: str = field(
        default="on",
        metadata=_choice(
            ["on", "off"],
            "Network of the jobs: the host's, or only a loopback of the job's own. "
            "A rule overrides it with the resource forge_network.",
        ),
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
    gpus: str = field(
        default="auto",
        metadata=_text("GPUs for jobs whose rule has the resource gpu: auto (those found in /dev), none, or device "
                       "nodes with commas between them, for example /dev/nvidia0,/dev/nvidia1.", "NODES"),
    )
