"""Slurm: submission, states and adoption in Snakemake's process; ``node`` on the compute node."""
