"""``snakemake-forge slurm``: questions to the cluster of ``SLURM_CONF``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from .select import add_command

_EXAMPLES = """examples:
  snakemake-forge slurm partitions > partitions.yaml     partitions with the limits of their largest nodes
  snakemake --executor forge --forge-backend slurm --forge-slurm-partitions partitions.yaml -j 500
"""
_HEAD = """\
# The partitions of this cluster, and what the largest node of each has: for --forge-slurm-partitions.
# Take out those that you may not use, and lower what a QOS or your account limits. A limit that is not here is none.
# max_runtime: minutes, or d-hh:mm:ss; max_mem_mb, max_threads, max_gpu: on one node; lists: none means any.
"""


def add_parser(commands: Any) -> None:
    """Add the sub-command."""
    parser = add_command(commands, "slurm", _EXAMPLES)
    parser.add_argument("what", choices=["partitions"], help="partitions: print a file of partitions and their limits")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask the cluster and print."""
    import yaml

    from ..backends.slurm.client import SlurmClient

    del options
    found = SlurmClient().partitions()
    sys.stdout.write(_HEAD + yaml.safe_dump({"partitions": found}, sort_keys=False))
    return 0
