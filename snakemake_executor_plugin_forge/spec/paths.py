"""Names of the files and directories that Forge keeps or reads in a working directory."""

from __future__ import annotations

CATALOG_FILE = "forge.yaml"
"""The catalog of the runtimes, in the working directory."""

STATE = ".snakemake/forge"
"""The folder of Forge in the working directory."""

RUNS = f"{STATE}/runs"
"""Directory below the working directory that holds the records of all runs."""

HOME = f"{STATE}/home"
"""Directory below the working directory that holds what jobs write to $HOME and to caches."""

STAGING = f"{STATE}/staging"
"""Directory below the working directory that holds the working directory's layers."""

STAGING_ELSEWHERE = ".forge-staging"
"""Directory, below any other directory that has a layer, that holds this layer."""

COPY = ".forge-copy-"
"""Beginning of names beside the places of outputs, with the pid of a supervisor: what it makes there for a moment."""

CHECKPOINTS = f"{STATE}/checkpoints"
"""Directory below the working directory that holds a directory for each job that keeps checkpoints of its own."""


COPY_SIGN = "@"
"""Separates the run from the copy of an attempt in names on a cluster node: see backends/slurm/exchange.py."""


def run_name(run_id: str) -> str:
    """The name of a run's scratch base and cgroup, with which the names of its layers begin."""
    return f"forge-{run_id}"
